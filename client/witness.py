"""What a site holds against the coordinator's word: receipts, ledger lines and what other sites saw must agree.

Nothing here trusts the link that brought them. The sentences are alarms: the same finding gives the same sentence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from polyclinic.client.outbox import Inbox
from polyclinic.core.book import follow, read_entries
from polyclinic.core.errors import RunError, TrustError
from polyclinic.core.signing import Signed, opened

PATIENCE = 600.0
"""Seconds after which lines that another site saw must have been shown to this one, too."""
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,127}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Witness:
    """Examines an inbox again and again; each receipt is looked at once by one of these.

    Args:
        site: this site's name.
        coordinator: the key that was pinned when the site joined.
        book: folder of the site's own book.
    """

    def __init__(self, site: str, coordinator: str, book: Path, inbox: Inbox) -> None:
        self._site, self._coordinator, self._book, self._inbox = site, coordinator, book, inbox
        self._seen: dict[str, int] = {}
        self._waiting: dict[tuple[str, int], float] = {}

    def examine(self, now: float) -> list[str]:
        """Everything that must not be, as far as can be told by now."""
        found = [*self._receipts(now), *self._heads(now)]
        return list(dict.fromkeys(found))

    def _receipts(self, now: float) -> Iterator[str]:
        for run in self._inbox.runs():
            new = self._inbox.receipts(run, self._seen.get(run, 0)) if run else {}
            sent = self._sent(run) if new else {}
            for number, signed in new.items():
                try:
                    told = receipt(signed, self._coordinator, run, number)
                except TrustError as failure:
                    yield f"the receipt of round {number} of {run} is not to be trusted: {failure.problem}"
                    continue
                line = next(iter(self._inbox.lines(run, told["sequence"] - 1, 1)), "")
                if self._inbox.head(run)[0] < told["sequence"]:
                    if now - self._waiting.setdefault((run, number), now) <= PATIENCE:
                        break  # its line has not come yet
                    yield f"the receipt of round {number} of {run} names a line that the coordinator does not show"
                    self._seen[run] = number
                    continue
                yield from _against_line(told, line)
                yield from _against_book(told, self._site, sent.get(number, []))
                self._seen[run] = number

    def _sent(self, run: str) -> dict[int, list[Mapping[str, Any]]]:
        """Round → what this site's book says that it answered."""
        found: dict[int, list[Mapping[str, Any]]] = {}
        for entry in read_entries(self._book, kinds=("answered",)):
            if entry.body.get("run") == run:
                found.setdefault(entry.body["round"], []).append(entry.body)
        return found

    def _heads(self, now: float) -> Iterator[str]:
        signers = self._inbox.signers()
        for site, run, since, signed in self._inbox.heads():
            try:
                told = head(signed, site, signers.get(site, ""))
            except TrustError as failure:
                yield f"what {site} saw of {_ledger(run)} is not to be trusted: {failure.problem}"
                continue
            sequence, seen = told["sequence"], self._inbox.digest(run, told["sequence"])
            if seen is None and now - since > PATIENCE:
                yield f"{site} saw line {sequence + 1} of {_ledger(run)}; the coordinator does not show it to this site"
            elif seen is not None and seen != told["digest"]:
                where = f"line {sequence + 1} of {_ledger(run)}"
                yield f"{site} saw another {where} than this site: there are two histories"


def receipt(signed: Signed, coordinator: str, run: str, number: int) -> dict[str, Any]:
    """What a receipt says.

    Raises:
        TrustError: it is not the coordinator's, or not of this round of this run.
    """
    told = opened(signed, "receipt", coordinator)
    sound = (
        told.get("run") == run
        and told.get("round") == number
        and _whole(told.get("sequence"))
        and all(isinstance(told.get(key), str) for key in ("study", "base", "result", "record", "digest"))
        and all(isinstance(told.get(key), dict) for key in ("sites", "excluded"))
        and all(isinstance(part, dict) for part in told["sites"].values())
    )
    if not sound:
        raise TrustError("the receipt is not of the agreed form, or of another round")
    return told


def head(signed: Signed, site: str, key: str) -> dict[str, Any]:
    """What a site says of one of the coordinator's ledgers.

    Raises:
        TrustError: it is not signed with the site's key, or malformed.
    """
    told = opened(signed, "head", key)
    run, digest = told.get("run"), told.get("digest")
    named = isinstance(run, str) and (run == "" or _RUN.fullmatch(run) is not None)
    if not (named and _whole(told.get("sequence")) and isinstance(digest, str) and _DIGEST.fullmatch(digest)):
        raise TrustError("the head is not of the agreed form")
    if told.get("site") != site:
        raise TrustError("the head is another site's")
    return told


def take_lines(inbox: Inbox, run: str, lines: Sequence[str], coordinator: str) -> tuple[int, str]:
    """Adds lines of a ledger that begin with the last one that is here, if any is; those of the book must be signed.

    Returns:
        (how many are new, an alarm or "").
    """
    sequence, digest = inbox.head(run)
    if sequence >= 0:
        if not lines:
            return 0, f"{_ledger(run)} is shorter than it was: line {sequence + 1} is gone"
        if lines[0] != inbox.lines(run, sequence - 1, 1)[0]:
            return 0, f"{_ledger(run)} was rewritten: line {sequence + 1} is another than it was"
        lines = lines[1:]
    found: list[tuple[int, str, str]] = []
    problem, signer = "", "" if run else coordinator
    try:
        for line, entry in zip(lines, follow(lines, (sequence, digest), signer), strict=False):
            found.append((entry.sequence, entry.digest, line))
    except RunError as failure:
        problem = f"{_ledger(run)} does not hold together: {failure.where} {failure.problem}"
    if found:
        inbox.add_lines(run, found)
    return len(found), problem


def _against_line(told: Mapping[str, Any], line: str) -> Iterator[str]:
    """Whether a receipt says what the ledger's line says that it names."""
    where = f"the receipt of round {told['round']} of {told['run']}"
    try:
        entry = json.loads(line)
        body, sites = entry["body"], entry["body"]["sites"]
        if entry["sequence"] != told["sequence"] or entry["digest"] != told["digest"]:
            yield f"{where} names a line that does not stand in the ledger"
            return
        for key in ("round", "base", "result", "record"):
            if body[key] != told[key]:
                yield f"{where} and the ledger differ in '{key}'"
        for key in ("update", "weight"):
            if {site: part[key] for site, part in sites.items()} != {s: p.get(key) for s, p in told["sites"].items()}:
                yield f"{where} and the ledger differ in the sites' '{key}'"
    except (ValueError, TypeError, KeyError, AttributeError):
        yield f"{where} names a line that tells of no round"


def _against_book(told: Mapping[str, Any], site: str, sent: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Whether a receipt says of this site what its own book says."""
    counted = told["sites"].get(site)
    if counted is None:
        return
    where = f"the receipt of round {told['round']} of {told['run']}"
    mine = [body for body in sent if body.get("base") == told["base"]]
    if not mine:
        yield f"{where} counts an update of this site, which sent none"
    elif not any(body.get("update") == counted.get("update") for body in mine):
        yield f"{where} counts another update than the one that this site sent"
    elif not any(body.get("weight") == counted.get("weight") for body in mine):
        yield f"{where} counts this site's update with another weight than it was sent with"


def _ledger(run: str) -> str:
    return f"the coordinator's ledger of {run}" if run else "the coordinator's book"


def _whole(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53


def demand_run(name: str) -> str:
    """``name``, if a run can have it.

    Raises:
        TrustError: it is none.
    """
    if _RUN.fullmatch(name) is None:
        raise TrustError("is no name of a run", where=ascii(name)[1:-1][:80])
    return name
