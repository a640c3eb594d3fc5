"""What a site can prove by itself: its own book, and everything that the coordinator ever told, held together."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from polyclinic.cli.answers import moment
from polyclinic.cli.checking import Found, each

if TYPE_CHECKING:
    from polyclinic.client.home import Home
    from polyclinic.client.outbox import Inbox
    from polyclinic.core.book import Head

PAGE = 1000
"""Lines that are read at a time."""


def checks(home: Home) -> Iterator[Found]:
    """Everything of a site's: book, ledgers of the coordinator, receipts, what other sites saw, alarms."""
    from polyclinic.client.outbox import Inbox
    from polyclinic.client.witness import Witness

    inbox, settings = Inbox(home.inbox), home.settings
    yield from each(lambda: _book(home))
    for run in inbox.runs():
        yield from each(lambda run=run: _ledger(home, inbox, run))  # type: ignore[misc]
    found = Witness(settings.name, settings.coordinator.key, home.book, inbox).examine(time.time())
    yield from (Found(False, what) for what in found)
    heads = [head for head in inbox.heads() if inbox.digest(head[1], _sequence(head[3].document)) is not None]
    if heads and not found:
        yield Found(True, f"{len(heads)} views of other sites on the coordinator's ledgers: the same as here")
    for alarm in inbox.alarms():
        if alarm.what not in found:
            yield Found(False, f"alarm of {moment(alarm.at)}: {alarm.what}")


def _book(home: Home) -> Iterator[str]:
    from polyclinic.core.book import verify_book

    entries = verify_book(home.book, home.settings.key)
    yield f"this site's book: {len(entries)} lines, each signed by this site and following from the one before"


def _ledger(home: Home, inbox: Inbox, run: str) -> Iterator[str]:
    """A ledger of the coordinator's as it came here, the lines that this site noted in its book, and the receipts."""
    from polyclinic.client.witness import receipt
    from polyclinic.core.book import EMPTY, follow, read_entries
    from polyclinic.core.errors import RunError

    key, name = home.settings.coordinator.key, f"ledger of {run}" if run else "book"
    noted = {
        entry.body["sequence"]: entry.body["digest"]
        for entry in read_entries(home.book, kinds=("head",), public=home.settings.key)
        if entry.body.get("run") == run
    }
    head: Head = EMPTY
    while lines := inbox.lines(run, head[0], PAGE):
        for entry in follow(lines, head, "" if run else key):
            if noted.get(entry.sequence, entry.digest) != entry.digest:
                remedy = "one of the two was rewritten: ask the coordinator by another way"
                problem = f"line {entry.sequence + 1} is another than this site's book says that it was"
                raise RunError(problem, where=f"the coordinator's {name}", remedy=remedy)
            head = entry.sequence, entry.digest
    signed = "" if run else "signed by the coordinator and "
    yield f"the coordinator's {name}: {head[0] + 1} lines, each {signed}following from the one before"
    receipts = inbox.receipts(run) if run else {}
    for number, signed_receipt in receipts.items():
        receipt(signed_receipt, key, run, number)
    if receipts:
        yield f"{run}: {len(receipts)} receipts, each signed by the coordinator"


def _sequence(document: bytes) -> int:
    import json

    try:
        return int(json.loads(document)["sequence"])
    except (ValueError, TypeError, KeyError, OverflowError):
        return -1
