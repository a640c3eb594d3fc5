"""polyclinic verify: a sound run passes, and of an altered one the first bad thing is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from polyclinic.core import runs
from tests.cli.conftest import Call


def test_a_sound_run_passes(polyclinic: Call, finished: runs.Run) -> None:
    said = polyclinic("verify", finished.folder)
    assert said.code == 0
    assert said.out.count("ok: ") == len(said.out.splitlines()) == 5
    assert finished.summary["adapter_sha256"] in said.out


def replaced(name: str, old: str, new: str) -> Callable[[Path], None]:
    def alter(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new, 1))

    return alter


def without_line(name: str, number: int) -> Callable[[Path], None]:
    def alter(folder: Path) -> None:
        lines = (folder / name).read_text().splitlines(True)
        del lines[number]
        (folder / name).write_text("".join(lines))

    return alter


def flipped(folder: Path) -> None:
    weights = folder / "adapter" / "adapter_model.safetensors"
    body = bytearray(weights.read_bytes())
    body[100] ^= 1
    weights.write_bytes(body)


def swapped_state(folder: Path) -> None:
    lines = (folder / "rounds.jsonl").read_text().splitlines()
    record = json.loads(lines[1])
    record["result"] = "0" * 64
    (folder / "rounds.jsonl").write_text(f"{lines[0]}\n{json.dumps(record)}\n")


ALTERED: dict[str, tuple[Callable[[Path], object], str]] = {
    "study": (replaced("study.toml", "seed = 3", "seed = 4"), "study.toml is not the study that was run"),
    "ledger, a weight": (
        replaced("ledger.jsonl", '"weight":24', '"weight":25'),
        "ledger.jsonl: ledger line 2: does not",
    ),
    "ledger, first line": (without_line("ledger.jsonl", 0), "ledger.jsonl: ledger line 1: does not follow"),
    "ledger, last line": (without_line("ledger.jsonl", -1), "ledger.jsonl: its last line is not the head"),
    "ledger, no JSON": (replaced("ledger.jsonl", "{", "?"), "ledger line 1: is no ledger entry"),
    "ledger, empty": (lambda folder: (folder / "ledger.jsonl").write_text(""), "ledger.jsonl: is empty"),
    "ledger, absent": (lambda folder: (folder / "ledger.jsonl").unlink(), "ledger.jsonl: cannot be read"),
    "rounds, a line less": (without_line("rounds.jsonl", 1), "rounds.jsonl: holds 1 rounds, the ledger 2"),
    "rounds, a state": (swapped_state, "rounds.jsonl: line 2 is not the round that the ledger tells of"),
    "adapter": (flipped, "adapter_model.safetensors: is not the file that summary.json names"),
    "adapter, absent": (lambda folder: shutil.rmtree(folder / "adapter"), "adapter: cannot be read"),
    "summary, head": (replaced("summary.json", '"ledger_head": "', '"ledger_head": "0'), "is not the head"),
    "summary, adapter": (
        replaced("summary.json", '"adapter_sha256": "', '"adapter_sha256": "0'),
        "not the summary whose",
    ),
    "summary, a figure": (replaced("summary.json", '"nll": {\n', '"nll": {"note": 1,\n'), "not the summary whose"),
    "rounds, a figure": (
        replaced("rounds.jsonl", '"accuracy": {"value": ', '"accuracy": {"value": 1'),
        "line 1 is not",
    ),
}


@pytest.mark.parametrize("case", ALTERED)
def test_the_first_bad_thing_is_named(case: str, polyclinic: Call, finished: runs.Run, tmp_path: Path) -> None:
    alter, expected = ALTERED[case]
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    alter(folder)
    assert expected in polyclinic("verify", folder).complaint
