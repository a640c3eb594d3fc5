"""The site's link to the coordinator: it carries statements out and studies, receipts and others' heads in.

It faces the network, reads no image and cannot sign. Whatever happens, it tries again; what is wrong, it says once.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

from polyclinic.client import governance, record, witness
from polyclinic.client.credentials import DAY, begin_renewal, credentials, finish_renewal
from polyclinic.client.delivery import Delivery
from polyclinic.client.governance import Client, DeclinedError
from polyclinic.client.home import Home
from polyclinic.client.outbox import Inbox, Outbox, letter_id
from polyclinic.core.errors import EngineError, PolyclinicError, TrustError
from polyclinic.core.governance.wire import STATUS_LIMIT
from polyclinic.core.version import VERSION

POLL, BEAT = 0.3, 5.0
"""Seconds between two looks at the agent's status and outbox, and between two reports at the most."""
LEDGERS, GREETING, RENEWAL = 30.0, 600.0, 3600.0
"""Seconds between two looks at others' heads, two greetings, and two looks at the certificate's end."""
SKEW = 60.0
"""Seconds by which the clocks may differ before it is warned of."""
RENEW_DAYS, WARN_DAYS = 30.0, 21.0
PAUSES, DISTRUST = (0.5, 10.0), 60.0
"""Seconds of the first and the longest pause while the coordinator is away; and while it does not trust this site."""

_log = logging.getLogger(__name__)
Connect = Callable[[Home], Client]


def run(
    home: Home,
    stop: Callable[[], bool],
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
    connect: Connect = lambda home: governance.connect(home, tries=1),
) -> None:
    """Links until ``stop``. Nothing ends it: it waits longer, up to a bound, and says why when the reason changes."""
    link, pause = Link(home, clock), PAUSES[0]
    while not stop():
        try:
            with closing(connect(home)) as client:
                link.greet(client)
                pause = PAUSES[0]
                while not stop() and link.turn(client):
                    sleep(POLL)
            continue
        except TrustError as failure:
            link.away(str(failure))
            pause = DISTRUST
        except PolyclinicError as failure:
            link.away(str(failure))
            pause = min(2 * pause, PAUSES[1])
        except Exception:  # whatever came from outside or broke inside: the log has it, the link goes on
            _log.exception("the link failed")
            link.away("the link failed; its log says why")
            pause = PAUSES[1]
        _wait(pause, stop, sleep)


def main(home: Home) -> None:
    """Links until the process is ended; being ended at any moment loses nothing."""
    os.umask(0o027)
    run(home, lambda: False)


class Link:
    """What the link remembers between its turns."""

    def __init__(self, home: Home, clock: Callable[[], float]) -> None:
        self._home, self._clock, settings = home, clock, home.settings
        self._outbox, self._inbox = Outbox(home.outbox), Inbox(home.inbox)
        self._witness = witness.Witness(settings.name, settings.coordinator.key, home.book, self._inbox)
        self._delivery = Delivery(home, self._inbox, self.alarm, self.complain)
        self._last: dict[str, float] = {}
        self._said: dict[str, str] = {}
        self._reported = b""
        self._number, self._told = 0, self._inbox.told()
        self._skew: float | None = None
        self._rest = 0.0

    def away(self, why: str) -> None:
        """Notes that the coordinator is not reached."""
        self.complain("link", why)
        self._state("link", {"reached": False, "why": why, "at": self._clock()})

    def complain(self, about: str, what: str) -> None:
        """Says what is wrong, once; "": nothing any more."""
        before = self._said.pop(about, "")
        if what:
            self._said[about] = what
        if what != before:
            _log.warning("%s", what) if what else _log.info("%s: in order again", about)

    def alarm(self, what: str) -> None:
        """Raises an alarm: in the log, and for agent and command line in the inbox."""
        if self._inbox.alarm(what, self._clock()):
            _log.error("ALARM: %s", what)

    def greet(self, client: Client) -> None:
        """Compares versions and clocks, and replaces a certificate that ends soon."""
        before = self._clock()
        reply = client.hello(VERSION, before)
        after = self._clock()
        skew = (before + after) / 2 - reply.clock
        self._skew = round(skew, 3) if abs(skew) < 1e9 else None  # neither NaN nor infinity
        self._last["greeting"] = after
        warnings = [ascii(warning)[1:-1][:300] for warning in reply.warnings[:20]]
        told = {"at": after, "skew": self._skew, "version": ascii(reply.version)[1:-1][:40], "warnings": warnings}
        ends = {"certificate_not_after": reply.certificate_not_after, "ca_not_after": reply.ca_not_after}
        self._state("hello", told | ends)
        where = "ahead of" if skew > 0 else "behind"
        off = f"this site's clock is {abs(skew):.0f} s {where} the coordinator's: set one of them"
        self.complain("clock", "" if abs(skew) <= SKEW else off)
        if self._said.pop("link", None) is not None or "link" not in self._last:
            _log.info("the coordinator is reached; it runs polyclinic %s", ascii(reply.version)[1:-1][:40])
        self._last["link"] = after
        self._state("link", {"reached": True, "why": "", "at": after})

    def turn(self, client: Client) -> bool:
        """Does whatever is due; whether the connection may be kept."""
        self._part("status", lambda: self._report(client))
        if self._due("outbox", self._rest):
            self._part("outbox", lambda: self._carry(client))
        fetch = self._delivery
        if self._due("beat", BEAT):
            self._part("studies", lambda: fetch.studies(client))
            if self._due("ledgers", LEDGERS):
                self._part("heads", lambda: fetch.heads(client, self._clock()))
                self._part("book", lambda: fetch.lines(client, ""))
                self._forget()
            self._part("receipts", lambda: fetch.runs(client))
        if self._delivery.news:
            self._delivery.news = False
            for what in self._witness.examine(self._clock()):
                self.alarm(what)
        if self._due("greeting", GREETING):
            self.greet(client)
        return not (self._due("renewal", RENEWAL) and self._renewed(client))

    def _forget(self) -> None:
        waiting = self._outbox.untold()
        self._inbox.forget_told(waiting)
        self._told &= waiting

    def _part(self, name: str, act: Callable[[], object]) -> None:
        """One thing that the coordinator does not take is no reason to leave the others."""
        try:
            act()
            self.complain(name, "")
        except DeclinedError as failure:
            self.complain(name, f"{name}: {failure}")

    def _report(self, client: Client) -> None:
        status = self._status()
        if status != self._reported or self._due("report", BEAT):
            client.report(status)
            self._reported, self._last["report"] = status, self._clock()

    def _status(self) -> bytes:
        """As the agent left it, with the skew of the clock; "away" if no agent is alive."""
        told: dict[str, Any] = dict.fromkeys(("study", "run", "round", "since", "answered"))
        try:
            found = json.loads(self._home.status.read_bytes())
            told |= {key: found[key] for key in told}
            agent = found["agent"] if record.held(self._home) is not False else "away"
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            agent = "away"
        mine = {"agent": agent, "version": VERSION, "skew": self._skew}
        text = json.dumps(told | mine).encode()
        return text if len(text) <= STATUS_LIMIT else json.dumps(dict.fromkeys(told) | mine).encode()

    def _carry(self, client: Client) -> None:
        """Tells what waits in the outbox, in order; what is declined is noted and not told again.

        A coordinator that has no time for it now may have time for the rest: that goes on, and this rests a while.
        """
        self._rest = PAUSES[1]
        if self._outbox.last() < self._number:
            self._number = 0  # a new outbox
        for number, signed in self._outbox.waiting(self._number):
            if (digest := letter_id(signed)) not in self._told:
                try:
                    client.tell(signed)
                except DeclinedError as failure:
                    self._return(signed.document, failure)
                except EngineError as failure:
                    self.complain("statements", str(failure))
                    return
                self._inbox.note_told(digest)
                self._told.add(digest)
            self._number = number
        self.complain("statements", "")
        self._rest = 0.0

    def _return(self, document: bytes, failure: DeclinedError) -> None:
        said = json.loads(document)
        what = {key: said.get(key) for key in ("kind", "verb", "study", "run", "round", "sequence") if key in said}
        _log.warning("the coordinator declined a statement (%s): %s", json.dumps(what), failure)
        if said.get("kind") == "decision":
            returned = [*(self._inbox.state("declined") or [])[-19:], what | {"why": str(failure), "at": self._clock()}]
            self._state("declined", returned)

    def _renewed(self, client: Client) -> bool:
        """Whether there is a new certificate, with which to connect anew."""
        days = (credentials(self._home).until - self._clock()) / DAY
        if days >= RENEW_DAYS:
            return False
        try:
            finish_renewal(self._home, client.renew(begin_renewal(self._home)))
        except (DeclinedError, TrustError) as failure:
            self.complain("certificate", f"it ends in {days:.0f} days and cannot be renewed: {failure}")
            if days < WARN_DAYS:
                _log.warning("this site's certificate ends in %.0f days", days)
            return False
        self.complain("certificate", "")
        _log.info("this site's certificate was renewed, with a new key")
        return True

    def _due(self, what: str, every: float) -> bool:
        """Whether so many seconds have passed, or the clock was put back; counts from now on."""
        now = self._clock()
        if 0 <= now - self._last.get(what, float("-inf")) < every:
            return False
        self._last[what] = now
        return True

    def _state(self, name: str, value: Any) -> None:
        try:
            self._inbox.set_state(name, value)
        except PolyclinicError as failure:  # a full disk must not end the link
            _log.warning("%s", failure)


def _wait(seconds: float, stop: Callable[[], bool], sleep: Callable[[float], None]) -> None:
    while seconds > 0 and not stop():
        sleep(min(POLL, seconds))
        seconds -= POLL
