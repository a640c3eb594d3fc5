"""What a site writes down and states: every statement follows from a line of its own book, so that none gets lost."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from typing import Any

from polyclinic.client import approvals
from polyclinic.client.approvals import Decision, Limits, Verb
from polyclinic.client.home import Home
from polyclinic.client.offer import Offer
from polyclinic.client.outbox import Inbox, Outbox
from polyclinic.client.witness import Witness
from polyclinic.core import files
from polyclinic.core.book import EMPTY, Book, Head, follow
from polyclinic.core.errors import EngineError, RunError
from polyclinic.core.ledger import Entry
from polyclinic.core.signing import SigningKey, sign

STATED = ("approve", "withdraw", "refused", "head")
"""Kinds of entries of which the coordinator is told."""
OWN_HEAD = 60.0
"""Seconds between two statements of where this site's own book ends."""
_POSTED = "posted"


def statement(entry: Entry, site: str) -> dict[str, Any]:
    """What the coordinator is told of an entry of the book: the same entry gives the same statement."""
    if entry.kind in approvals.VERBS:
        return approvals.decision(entry, site).document()
    kind = {"refused": "refusal", "head": "head"}[entry.kind]
    return {"kind": kind, "site": site, **entry.body, "time": entry.time}


def post(home: Home, book: Book, key: SigningKey) -> None:
    """Puts into the outbox what the book says and is not there yet, also after a crash in between."""
    outbox = Outbox(home.outbox)
    entries = book.entries(after=outbox.mark(_POSTED), kinds=STATED)
    if entries:
        told = [sign(statement(entry, home.settings.name), key) for entry in entries]
        outbox.put_all(told, {_POSTED: entries[-1].sequence})


def state_decision(
    home: Home,
    verb: Verb,
    offer: Offer,
    limits: Limits = Limits(),
    clock: Callable[[], float] = time.time,
) -> Decision:
    """Approves a study that is offered, or withdraws from it: in the book first, then on its way to the coordinator.

    Raises:
        PolicyError: there is nothing to withdraw.
        TrustError, RunError: the key or the book cannot be used.
    """
    key = home.demand().key()
    book = Book(home.book, key, clock)
    try:
        told = (home.settings.name, offer.study.digest, verb, offer.version, offer.backbone_sha256)
        decided = approvals.decide(book, *told, limits)
        post(home, book, key)
        return decided
    finally:
        book.close()


class Recorder:
    """The agent's own desk: states what the book says, and takes down what the inbox shows to be true.

    Attributes:
        seen: run → how far this site has followed the coordinator's ledger, as its book says.
    """

    def __init__(self, home: Home, book: Book, key: SigningKey, clock: Callable[[], float] = time.time) -> None:
        self._home, self._book, self._key, self._clock = home, book, key, clock
        self._outbox, self._inbox = Outbox(home.outbox), Inbox(home.inbox)
        settings = home.settings
        self._witness = Witness(settings.name, settings.coordinator.key, home.book, self._inbox)
        heads, alarms = book.entries(kinds=("head",)), book.entries(kinds=("alarm",))
        self.seen: dict[str, Head] = {e.body["run"]: (e.body["sequence"], e.body["digest"]) for e in heads}
        self._alarms = {entry.body["what"] for entry in alarms}
        self._before: object = None
        self._own: tuple[float, Head] = (float("-inf"), EMPTY)

    def settle(self) -> None:
        """Brings book and outbox up to date; costs next to nothing while nothing has changed.

        Raises:
            RunError: one of the files cannot be read or written.
        """
        now, changed = self._clock(), (_when(self._home.inbox), _when(self._home.book / "book"))
        due = abs(now - self._own[0]) >= OWN_HEAD and self._own[1] != self._book.head()
        if changed == self._before and not due:
            return
        self._take_down(now)
        post(self._home, self._book, self._key)
        if due:
            self._state_own_head(now)
        self._outbox.clear(self._inbox.told() & self._outbox.untold())
        self._before = (_when(self._home.inbox), _when(self._home.book / "book"))

    def _take_down(self, now: float) -> None:
        found = [*self._witness.examine(now), *(alarm.what for alarm in self._inbox.alarms())]
        for run in self._inbox.runs():
            before = self.seen.get(run, EMPTY)
            try:
                last = [*follow(self._inbox.lines(run, before[0]), before)][-1:]
            except RunError as failure:  # what the link left here is not what this site has followed so far
                found.append(f"the lines of {run or 'the book'} that the link brought do not go on: {failure.problem}")
                continue
            for entry in last:
                self.seen[run] = entry.sequence, entry.digest
                self._book.append("head", {"run": run, "sequence": entry.sequence, "digest": entry.digest})
        for what in found:
            if what not in self._alarms:
                self._alarms.add(what)
                self._book.append("alarm", {"what": what, "at": now})

    def _state_own_head(self, now: float) -> None:
        sequence, digest = head = self._book.head()
        site = self._home.settings.name
        told = {"kind": "own-head", "site": site, "sequence": sequence, "digest": digest, "time": now}
        self._outbox.put(sign(told, self._key))
        self._own = now, head


def hold(home: Home) -> list[int]:
    """Keeps this process known as the site's agent until it ends; handles of two locks.

    Raises:
        EngineError: another process is the agent.
    """
    handles = []
    for path in (home.private / "agent.lock", home.shared / "agent.lock"):
        with files.explained(path):
            handles.append(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640))
            os.fchmod(handles[-1], 0o640)
    if not _locked(handles[0]):
        raise EngineError("another agent is at work", where=str(home.folder), remedy="stop it first")
    end = time.monotonic() + 1.0
    while not _locked(handles[1]) and time.monotonic() < end:  # somebody is just looking: see ``held``
        time.sleep(0.01)
    return handles


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def held(home: Home) -> bool | None:
    """Whether an agent is alive; None if none ever said so."""
    try:
        handle = os.open(home.shared / "agent.lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _when(path: Any) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size
