"""Whether a run folder still is what its run left: ledger, rounds, adapter and summary, each against the others."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from polyclinic.core import ledger, runs
from polyclinic.core.errors import RunError
from polyclinic.core.ledger import Entry
from polyclinic.core.runs import Run

ALTERED = "it was altered or damaged: restore the folder from a copy"


def verify(folder: Path) -> Iterator[str]:
    """A sentence on everything that was found in order, one after another.

    Raises:
        RunError: naming the first thing that is not.
    """
    run = runs.read(folder)
    yield f"study.toml is the study that was run ({run.study.digest})"
    entries = read_ledger(folder / "ledger.jsonl")
    _demand(entries[-1].digest == run.summary["ledger_head"], folder / "ledger.jsonl", "its last line is not the head "
            "that summary.json names: lines were dropped or added")  # fmt: skip
    started = entries[0].body.get("study")
    _demand(started == run.study.digest, folder / "ledger.jsonl", "line 1 tells of another study")
    yield f"ledger.jsonl: {len(entries)} lines, each following from the one before, up to the head in summary.json"
    _rounds(run, entries)
    yield f"rounds.jsonl: {len(run.rounds)} rounds, with the states that the ledger names"
    told = {key: value for key, value in run.summary.items() if key != "ledger_head"}
    same = entries[-1].body.get("summary") == ledger.fingerprint(told)
    _demand(same, folder / "summary.json", "is not the summary whose digest the ledger's last line holds")
    yield "summary.json: every figure as the ledger's last line seals it"
    yield f"adapter: the weights that summary.json and the ledger name ({_adapter(run, entries)})"


def read_ledger(path: Path) -> Sequence[Entry]:
    """Its entries, at least one.

    Raises:
        RunError: naming the first line that does not follow from the one before it.
    """
    try:
        entries = tuple(ledger.verify(path.read_text(encoding="utf-8").splitlines()))
    except (OSError, UnicodeDecodeError) as failure:
        raise RunError(f"cannot be read: {failure}", where=str(path), remedy=ALTERED) from failure
    except RunError as failure:
        raise RunError(failure.problem, where=f"{path}: {failure.where}", remedy=ALTERED) from failure
    _demand(bool(entries), path, "is empty")
    return entries


def _rounds(run: Run, entries: Sequence[Entry]) -> None:
    path = run.folder / "rounds.jsonl"
    told = [entry.body for entry in entries if entry.kind == "round"]
    records = run.rounds
    _demand(len(records) == len(told) == run.summary["rounds"], path, f"holds {len(records)} rounds, the ledger "
            f"{len(told)}, summary.json {run.summary['rounds']}")  # fmt: skip
    for number, (record, body) in enumerate(zip(records, told, strict=True), 1):
        same = body.get("record") == ledger.fingerprint(record)
        _demand(same, path, f"line {number} is not the round that the ledger tells of")


def _adapter(run: Run, entries: Sequence[Entry]) -> str:
    weights = run.adapter / "adapter_model.safetensors"
    try:
        found = hashlib.sha256(weights.read_bytes()).hexdigest()
        card = json.loads((run.adapter / "polyclinic.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as failure:
        raise RunError(f"cannot be read: {failure}", where=str(run.adapter), remedy=ALTERED) from failure
    _demand(found == run.summary["adapter_sha256"], weights, "is not the file that summary.json names by its SHA-256")
    ends = [entry.body.get("adapter_sha256") for entry in entries if entry.kind == "end"]
    _demand(found == (ends or [None])[-1], weights, "is not the file that the ledger names by its SHA-256")
    _demand(_of(card, "study_digest") == run.study.digest, run.adapter / "polyclinic.json", "names another study")
    return found


def _of(document: Any, key: str) -> Any:
    return document.get(key) if isinstance(document, dict) else None


def _demand(fine: bool, where: Path, problem: str) -> None:
    if not fine:
        raise RunError(problem, where=str(where), remedy=ALTERED)
