"""How much one site may ask for: how often, how many calls at once, and for how long."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from polyclinic.core.errors import TrustError


@dataclass(frozen=True)
class Limits:
    """What the governance service grants.

    Attributes:
        rate, burst: calls a second of one site, and how many of them may come at once.
        calls, streams: calls and event streams of one site at the same time.
        call_seconds, stream_seconds: after which a call or an event stream ends, whatever it waits for.
        together: calls of all sites at the same time.
        handshake_seconds: within which a connection must have proved who it is, and have spoken HTTP/2.
        idle_seconds: after which a connection without calls is closed; one that does not answer goes sooner.
        connection_seconds: after which any connection is closed, so that certificates are looked at again.
        connections: at the same time.
        poll: seconds between two looks for events.
    """

    rate: float = 20.0
    burst: int = 40
    calls: int = 8
    streams: int = 4
    call_seconds: float = 30.0
    stream_seconds: float = 3600.0
    together: int = 128
    handshake_seconds: float = 10.0
    idle_seconds: float = 300.0
    connection_seconds: float = 4 * 3600.0
    connections: int = 700
    poll: float = 0.5


@dataclass
class Ticket:
    """A call that is under way."""

    site: str
    kind: str
    due: float
    cancel: Callable[[], object] = field(repr=False)


class Guard:
    """Counts the calls of every site, and ends those that take too long."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits, self._clock = limits, clock
        self._lock = threading.Lock()
        self._buckets: dict[str, tuple[float, float]] = {}  # site → (calls left, when that was so)
        self._open: dict[int, Ticket] = {}

    def enter(self, site: str, *, stream: bool, cancel: Callable[[], object]) -> int:
        """A number for a call that may go on; ``cancel`` is called if it is still there when its time is up.

        Raises:
            TrustError: the site asks too often, or has too many calls under way.
        """
        limits, now = self._limits, self._clock()
        kind, most, seconds = ("event streams", limits.streams, limits.stream_seconds)
        if not stream:
            kind, most, seconds = "calls", limits.calls, limits.call_seconds
        with self._lock:
            left, since = self._buckets.get(site, (float(limits.burst), now))
            left = min(limits.burst, left + (now - since) * limits.rate)
            self._buckets[site] = (left - 1.0 if left >= 1.0 else left, now)
            if left < 1.0:
                raise TrustError(f"this site asks more than {limits.rate:g} times a second", remedy="ask less often")
            if Counter((t.site, t.kind) for t in self._open.values())[site, kind] >= most:
                raise TrustError(f"this site has {most} {kind} under way", remedy="wait until one of them has ended")
            ticket = Ticket(site, kind, now + seconds, cancel)
            self._open[id(ticket)] = ticket
        return id(ticket)

    def leave(self, number: int) -> None:
        """The call is over."""
        with self._lock:
            self._open.pop(number, None)

    def sweep(self) -> int:
        """Ends what has had its time; how many calls those were."""
        now = self._clock()
        with self._lock:
            overdue = [ticket for ticket in self._open.values() if now >= ticket.due]
        for ticket in overdue:
            ticket.cancel()
        return len(overdue)
