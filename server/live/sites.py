"""Hospitals behind a Flower grid: signed replies, nobody waited for in vain, nothing lost when a process dies."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from flwr.app import Array, ArrayRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from polyclinic.core import envelope
from polyclinic.core.errors import PolyclinicError, TrustError
from polyclinic.core.messages import REFUSED, peek
from polyclinic.server.receive import LATE, Delivery
from polyclinic.server.transport import reported

LOOK = 0.2
"""Seconds between two looks for replies."""
LOST = 4.0
"""Seconds for which a site says it has nothing to do before an instruction counts as lost, and is sent again."""
SLOW = 1e6
"""Bytes a second of a slow line, for which time is allowed beyond that."""
MOST = 60.0
"""Seconds of the longest pause before an instruction that comes back with an error goes out again."""


@dataclass(frozen=True)
class Member:
    """What the coordinator knows of one site of a run's cohort, now.

    Attributes:
        key: its public signing key.
        seen: when it was heard of last (seconds since the epoch; 0: never).
        status: what its link reported then.
    """

    key: str
    seen: float
    status: Mapping[str, Any]


class Cohort(Protocol):
    """Who takes part: asked again and again, since sites come, go, withdraw and are revoked."""

    def members(self) -> Mapping[str, Member]:
        """Site → what is known, of those that approved the study, did not withdraw, and are not revoked."""

    def note(self, site: str, state: str, why: str = "") -> None:
        """Tells onlookers of a site's state."""

    def short(self, why: str) -> None:
        """Tells onlookers that too few sites are there, and which are not; "": that there are enough."""


@dataclass
class Flight:
    """An instruction on its way to one site; one that got lost is sent again and may be answered twice."""

    node: int = 0
    activated: str = ""
    sent: float = 0.0
    messages: list[str] = field(default_factory=list)
    pushes: int = 0
    idle: float | None = None
    pause: float = 0.0
    why: str = ""


class LiveSites:
    """See ``polyclinic.server.rounds.Sites``.

    Whatever the carrier says – a node is gone, a message expired – is no answer: the instruction goes out again, and a
    site that had answered already answers the same. A reply counts if the site's key signed it over this very
    instruction. A site is waited for until the deadline, unless it or its node has been away for ``absence`` seconds,
    or it was overdue before; it is welcome as soon as it answers anything.

    Args:
        overdue: sites that did not answer in the last round.
        coming: tells the instructions to which a reply has begun to arrive.
    """

    def __init__(
        self,
        grid: Grid,
        cohort: Cohort,
        *,
        quorum: float,
        absence: float,
        overdue: set[str],
        halted: Callable[[], None],
        coming: Callable[[], Collection[str]] = tuple,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._grid, self._cohort, self._quorum, self._absence = grid, cohort, quorum, absence
        self._coming = coming
        self._halted, self._clock = halted, clock
        self.overdue = overdue
        self._late: dict[str, str] = {}
        self._there: dict[str, float] = {}

    def names(self) -> Sequence[str]:
        """The cohort, as soon as a quorum of it is there; until then this waits, and says so."""
        while True:
            self._halted()
            members, nodes = self._cohort.members(), self._nodes()
            for site in members:
                there = site in nodes
                self._cohort.note(site, "overdue" if site in self.overdue else "waiting" if there else "away")
            here, quorum = members.keys() & nodes.keys(), max(1, needed(self._quorum, len(members)))
            self._cohort.short(lacking(len(here), quorum, members.keys() - here))
            if len(here) >= quorum:
                return sorted(members)
            time.sleep(LOOK)

    def send(self, message: bytes, to: Sequence[str], deadline: float) -> Iterator[Delivery]:
        """Replies in the order in which they come; who has not answered when it ends is not yielded."""
        end = time.monotonic() + deadline
        flights = {site: Flight() for site in to}
        answered = 0
        content, asked = _content(message), peek(message) | {"bytes": len(message)}
        while flights and time.monotonic() < end:
            self._halted()
            members, nodes = self._cohort.members(), self._nodes()
            for site in flights.keys() - members.keys():
                del flights[site]
                yield Delivery(site, failure="withdrawn, or revoked")
            for identifier, site, taken in self._pull(flights):
                if (flight := flights.get(site)) is None or identifier not in flight.messages:
                    self._back(site, identifier, taken.reply)
                elif taken.reply.has_error():
                    self._failed(site, flight, identifier, taken.reply.error)
                else:
                    delivery = opened(site, taken.let_go(), members[site].key, asked)
                    answered += not delivery.failure
                    del flights[site]
                    flight.messages.remove(identifier)
                    self._late |= dict.fromkeys(flight.messages, site)
                    self.overdue.discard(site)
                    why = delivery.failure.removeprefix("refused: ")
                    self._cohort.note(site, "refused" if why else "answered", why)
                    yield delivery
                    del delivery  # before the next one is pulled
            for site, flight in flights.items():
                if site in nodes and self._due(flight, nodes[site], members[site], asked):
                    self._push(content, site, flight, nodes[site], end - time.monotonic())
            there = {site for site in flights if self._is_there(site, members, nodes)}
            quorum = needed(self._quorum, len(to))
            if answered >= quorum and there <= self.overdue:
                break
            self._cohort.short(lacking(answered + len(there), quorum, flights.keys() - there) if flights else "")
            time.sleep(LOOK if flights else 0.0)
        for site, flight in flights.items():
            self.overdue.add(site)
            self._cohort.note(site, "overdue", flight.why)
            self._late |= dict.fromkeys(flight.messages, site)
            if flight.why:
                yield Delivery(site, failure=f"{LATE}; it last said: {flight.why}")

    def _nodes(self) -> dict[str, Any]:
        with reported():
            return {node.name: node for node in self._grid.get_nodes() if node.name}

    def _is_there(self, site: str, members: Mapping[str, Member], nodes: Mapping[str, Any]) -> bool:
        """Whether a site may answer: its node is connected, or was a moment ago, as the site itself was heard of."""
        now = time.monotonic()
        if site in nodes:
            self._there[site] = now
        gone = max(now - self._there.setdefault(site, now), self._clock() - members[site].seen)
        there = site in nodes or gone < self._absence  # a link that reports is of no use without a node
        if not there:
            self._cohort.note(site, "away")
        return there

    def _due(self, flight: Flight, node: Any, member: Member, asked: Mapping[str, Any]) -> bool:
        """Whether the instruction must be sent (again): never was, to a node that began anew, or was lost."""
        now = self._clock()
        if (node.node_id, node.last_activated_at) != (flight.node, flight.activated):
            return True
        if not flight.messages:
            return now - flight.sent >= flight.pause
        if member.seen <= flight.sent or member.status.get("agent") != "idle":
            flight.idle = None
            return False
        flight.idle = now if flight.idle is None else flight.idle
        if set(self._coming()).intersection(flight.messages):
            return False
        return now - flight.idle > LOST * 2.0 ** (flight.pushes - 1) + float(asked["bytes"]) / SLOW

    def _push(self, content: RecordDict, site: str, flight: Flight, node: Any, ttl: float) -> None:
        message = Message(content, node.node_id, MessageType.TRAIN, ttl=max(1.0, ttl))
        with reported():
            taken = [identifier for identifier in self._grid.push_messages([message]) if identifier]
        if taken:
            flight.node, flight.activated, flight.sent = node.node_id, node.last_activated_at, self._clock()
            flight.messages, flight.idle, flight.pushes = flight.messages + taken, None, flight.pushes + 1
            self._cohort.note(site, "sent", flight.why)

    def _pull(self, flights: Mapping[str, Flight]) -> Iterator[tuple[str, str, Taken]]:
        """(message, site, reply) of all that is there, one reply after another: one call, and memory for one."""
        owners = self._late | {message: site for site, flight in flights.items() for message in flight.messages}
        with reported():
            replies = iter(self._grid.pull_messages(list(owners)) if owners else ())
        while True:
            with reported():
                reply = next(replies, None)
            if reply is None:
                return
            identifier, taken = reply.metadata.reply_to_message_id, Taken(reply)
            del reply
            if identifier in owners:
                yield identifier, owners[identifier], taken

    def _failed(self, site: str, flight: Flight, identifier: str, error: Any) -> None:
        """The carrier's word is no answer; a site that cannot even sign is not waited for, but is asked again."""
        flight.messages.remove(identifier)
        flight.pause = min(MOST, 2 * flight.pause or LOST / 4)
        if error.code >= REFUSED:
            flight.why = printable(error.reason or "")
            self.overdue.add(site)
            self._cohort.note(site, "refused", flight.why)

    def _back(self, site: str, identifier: str, reply: Message) -> None:
        """A site that answers too late is there again; what it answers is for a round that is over, and not read."""
        self._late.pop(identifier, None)
        if site in self.overdue and not reply.has_error():
            self.overdue.discard(site)
            self._cohort.note(site, "waiting", "answered too late; welcome back")


@dataclass
class Taken:
    """A reply that can be let go of while somebody up the stack still holds this."""

    reply: Message

    def let_go(self) -> bytes | None:
        """The bytes that the reply carries, which nobody else then holds."""
        record = self.reply.content.get("message")
        array = record.get("bytes") if isinstance(record, ArrayRecord) else None
        content = array.data if isinstance(array, Array) else None
        del self.reply
        return content


def needed(quorum: float, count: int) -> int:
    """How many of ``count`` sites make a quorum."""
    return math.ceil(quorum * count - 1e-9)


def lacking(there: int, quorum: int, missing: Collection[str]) -> str:
    """Why a run cannot go on; "" if it can."""
    if there >= quorum:
        return ""
    away = f"away: {', '.join(sorted(missing))}" if missing else "no other site has approved the study"
    return f"{there} {'site is' if there == 1 else 'sites are'} there, {quorum} needed; {away}"


def opened(site: str, message: bytes | None, key: str, asked: Mapping[str, Any]) -> Delivery:
    """What a site's signed reply to what was ``asked`` says, or why it is not believed."""
    if message is None:
        return Delivery(site, failure="answered with something that is no reply")
    try:
        seal, signature, body = envelope.unseal(message)
        envelope.verify(seal, signature, key)
        if seal.site != site:
            raise TrustError("reply carries another site's name")
        for name in ("study", "run", "round", "nonce", "base"):
            if getattr(seal, name) != asked[name]:
                raise TrustError(f"reply is to another {name}")
        if seal.version != asked["version"]:
            raise TrustError(f"the site has version {printable(seal.version)}, the run {asked['version']}")
        if seal.kind == "refusal":
            return Delivery(site, failure=f"refused: {printable(envelope.refusal_text(body))}")
        return Delivery(site, bytes(body), proof=f"{seal.header().decode()}{signature.hex()}")
    except PolyclinicError as failure:
        return Delivery(site, failure=str(failure))


def printable(text: str) -> str:
    """One line without control characters."""
    return "".join(sign if sign.isprintable() else " " for sign in text)[:500]


def _content(message: bytes) -> RecordDict:
    array = Array("uint8", (len(message),), "polyclinic", message)
    return RecordDict({"message": ArrayRecord({"bytes": array})})
