"""An append-only record of everything that happened: each line carries the digest of the line before it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import rfc8785

from polyclinic.core.errors import RunError

START = "0" * 64
"""What the first entry carries in place of a predecessor's digest."""


@dataclass(frozen=True)
class Entry:
    """One thing that happened.

    Attributes:
        sequence: 0, 1, 2 …
        time: seconds since the epoch, by the writer's clock; order is told by ``sequence`` alone.
        kind: such as "start", "round", "excluded", "end".
        body: JSON data; digests rather than contents.
        previous: digest of the entry before.
        digest: SHA-256 of the canonical form (RFC 8785) of all the above.
    """

    sequence: int
    time: float
    kind: str
    body: Mapping[str, Any]
    previous: str
    digest: str

    def line(self) -> str:
        """The entry as one line of JSON."""
        return rfc8785.dumps(vars(self)).decode()


def entry(previous: Entry | None, kind: str, body: Mapping[str, Any], time: float) -> Entry:
    """The entry that follows ``previous`` (None: the first)."""
    sequence = previous.sequence + 1 if previous else 0
    before = previous.digest if previous else START
    return Entry(sequence, time, kind, body, before, _digest(sequence, time, kind, body, before))


def verify(lines: Iterable[str]) -> Iterator[Entry]:
    """The entries of a ledger, each checked against its digest and its predecessor.

    Raises:
        RunError: naming the first line that was altered, dropped, added or moved.
    """
    previous: Entry | None = None
    for number, line in enumerate(lines, 1):
        here = f"ledger line {number}"
        try:
            found = Entry(**json.loads(line))
            expected = entry(previous, found.kind, found.body, found.time)
        except (ValueError, TypeError, AttributeError) as failure:
            raise RunError(f"is no ledger entry: {failure}", where=here) from failure
        if found != expected:
            raise RunError("does not follow from the line before it: the ledger was altered", where=here)
        yield found
        previous = found


def fingerprint(document: Any) -> str:
    """SHA-256 of the canonical form (RFC 8785) of JSON data, in hex."""
    return hashlib.sha256(rfc8785.dumps(document)).hexdigest()


def _digest(*parts: Any) -> str:
    return fingerprint(list(parts))
