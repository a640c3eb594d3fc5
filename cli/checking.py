"""Verification: everything that can be checked is, what is wrong is named, and one fault hides no other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from polyclinic.cli.answers import answer, listed

if TYPE_CHECKING:
    from polyclinic.server.governance.registry import Registry, Run
    from polyclinic.server.live.home import Home


@dataclass(frozen=True)
class Found:
    """What one check found: a sentence, and whether that is as it should be."""

    fine: bool
    sentence: str


def each(check: Callable[[], Iterator[str]]) -> Iterator[Found]:
    """The sentences of a check, up to the first thing that it names as wrong."""
    from polyclinic.core.errors import PolyclinicError

    try:
        for sentence in check():
            yield Found(True, sentence)
    except PolyclinicError as failure:
        yield Found(False, str(failure))


def report(found: Sequence[Found], as_json: bool) -> None:
    """Says all of it; the command ends with code 1 if anything is wrong."""
    fine = all(one.fine for one in found)
    wrong = sum(not one.fine for one in found)
    verdict = f"{len(found)} checks: {'all in order.' if fine else f'{wrong} not in order, see WRONG.'}"
    told = {"ok": fine, "checks": [vars(one) for one in found]}
    answer(as_json, told, [f"{'ok' if one.fine else 'WRONG'}: {one.sentence}" for one in found] + [verdict])
    raise typer.Exit(0 if fine else 1)


def checks(home: Home, registry: Registry) -> Iterator[Found]:
    """Everything of a coordinator's: its book, what sites saw of it, alarms, and each run."""
    yield from each(lambda: _book(home, registry))
    yield from each(lambda: _alarms(registry))
    for run in registry.runs():
        yield from each(lambda run=run: _run(home, registry, run))  # type: ignore[misc]


def _book(home: Home, registry: Registry) -> Iterator[str]:
    from polyclinic.core.book import verify_book
    from polyclinic.core.errors import RunError

    entries = verify_book(home.book, home.signing_key().public)
    mended = sum(entry.kind == "mirror" for entry in entries)
    told = (
        f"; ledger.jsonl was altered or torn and written anew {mended} times: see the lines 'mirror'" if mended else ""
    )
    yield f"book: {len(entries)} lines, each signed and following from the one before{told}"
    seen = [head for head in registry.heads() if not head.run]
    for head in seen:
        if head.sequence >= len(entries) or entries[head.sequence].digest != head.digest:
            problem = f"{head.site} saw another line {head.sequence} of the book than stands there now"
            raise RunError(problem, where=str(home.book / "ledger.jsonl"), remedy="it was rewritten: ask that site")
    if seen:
        yield f"book: as {listed(sorted(head.site for head in seen))} saw it"


def _alarms(registry: Registry) -> Iterator[str]:
    from polyclinic.core.errors import TrustError

    alarms, after = list[str](), 0
    while events := registry.events(after, 1000):
        alarms += [event.text for event in events if event.kind == "alarm"]
        after = events[-1].sequence
    if alarms:
        raise TrustError(f"{len(alarms)} alarms, the latest: {alarms[-1]}", remedy="see the book: ledger.jsonl")
    yield "no site raised an alarm"


def _run(home: Home, registry: Registry, run: Run) -> Iterator[str]:
    from polyclinic.core.verify import read_ledger, verify

    folder = Path(run.folder)
    if run.state == "finished":
        for sentence in verify(folder):
            yield f"{run.name}: {sentence}"
    elif not (folder / "ledger.jsonl").exists():
        yield f"{run.name}: not begun"
        return
    entries = read_ledger(folder / "ledger.jsonl")
    if run.state != "finished":
        yield f"{run.name}: {run.state}; ledger.jsonl: {len(entries)} lines, each following from the one before"
    count = _receipts(home, registry, run, [entry.digest for entry in entries])
    yield f"{run.name}: {count} receipts, each signed here and naming the ledger's line of its round"


def _receipts(home: Home, registry: Registry, run: Run, digests: Sequence[str]) -> int:
    from polyclinic.core.errors import RunError
    from polyclinic.core.signing import opened

    signed = registry.receipts(run.name, 0, 1_000_000)
    for one in signed:
        receipt = opened(one, "receipt", home.signing_key().public)
        at = receipt["sequence"]
        if at >= len(digests) or digests[at] != receipt["digest"]:
            problem = f"{run.name}: the receipt of round {receipt['round']} names another line {at} than stands there"
            raise RunError(problem, where=f"{run.folder}/ledger.jsonl", remedy="the run's ledger was rewritten")
    return len(signed)
