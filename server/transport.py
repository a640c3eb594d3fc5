"""Sites behind a Flower grid: one message a site, replies pulled one at a time, nobody waited for beyond a deadline."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from flwr.app import Array, ArrayRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from polyclinic.core.errors import EngineError, PolyclinicError
from polyclinic.core.messages import REFUSED
from polyclinic.server.receive import Delivery

PAUSE = (0.05, 0.5)
"""Seconds between two looks for replies: at first and after each reply, and at most."""

Roster = Callable[[Grid], Mapping[str, int]]
"""Which site is behind which node of a grid: name → node id."""


class FlowerSites:
    """See ``polyclinic.server.rounds.Sites``.

    Replies are asked for by the ids of the messages that were just pushed, so what arrives for an earlier round is
    never seen; and one id at a time, so that memory holds one reply, not one a site.
    """

    def __init__(self, grid: Grid, roster: Roster | None = None) -> None:
        self._grid, self._roster = grid, roster or by_name

    def names(self) -> Sequence[str]:
        """Sites whose nodes are there now, sorted."""
        with reported():
            return sorted(self._roster(self._grid))

    def send(self, message: bytes, to: Sequence[str], deadline: float) -> Iterator[Delivery]:
        """Replies come in the order in which they are ready; who has not answered in time is not yielded."""
        end = time.monotonic() + deadline
        waiting = self._push(message, to, deadline)
        for site in sorted(set(to) - set(waiting.values())):
            yield Delivery(site, failure="its node is gone or did not take the message")
        pause = PAUSE[0]
        while waiting:
            before = len(waiting)
            for identifier in list(waiting):
                if time.monotonic() >= end:
                    return
                if (delivery := self._pull(identifier, waiting[identifier])) is not None:
                    del waiting[identifier]
                    yield delivery
                    del delivery  # before the next one is pulled
            pause = PAUSE[0] if len(waiting) < before else min(1.5 * pause, PAUSE[1])
            if waiting:
                time.sleep(max(0.0, min(pause, end - time.monotonic())))

    def _push(self, message: bytes, to: Sequence[str], deadline: float) -> dict[str, str]:
        """Message id → site, of those that were taken."""
        # an Array is cut into chunks that are known by their content, so the same bytes go to the SuperLink once
        record = ArrayRecord({"bytes": Array("uint8", (len(message),), "polyclinic", message)})
        content = RecordDict({"message": record})
        with reported():
            nodes = self._roster(self._grid)
            sent = {s: Message(content, nodes[s], MessageType.TRAIN, ttl=deadline) for s in to if s in nodes}
            taken = set(self._grid.push_messages(list(sent.values())))
        return {m.metadata.message_id: site for site, m in sent.items() if m.metadata.message_id in taken}

    def _pull(self, identifier: str, site: str) -> Delivery | None:
        with reported():
            for reply in self._grid.pull_messages([identifier]):
                return opened(site, reply)
        return None


def by_name(grid: Grid) -> Mapping[str, int]:
    """Node ids by the names under which nodes were registered; a node without a name is no site."""
    nodes = [(node.name, node.node_id) for node in grid.get_nodes() if node.name]
    if nodes and (most := Counter(name for name, _ in nodes).most_common(1)[0])[1] > 1:
        raise EngineError("two nodes bear this site's name", where=most[0], remedy="unregister one of them")
    return dict(nodes)


def opened(site: str, reply: Message) -> Delivery:
    """What a reply says."""
    if reply.has_error():
        error = reply.error
        reason = error.reason or "no reason given"
        return Delivery(
            site, failure=reason if error.code >= REFUSED else f"Flower error {error.code}: {brief(reason)}"
        )
    record = reply.content.get("message")
    if not isinstance(record, ArrayRecord) or "bytes" not in record:
        return Delivery(site, failure="answered with something that is no reply")
    return Delivery(site, record["bytes"].data)


def brief(reason: str) -> str:
    """One line of a reason that may be a whole traceback: the last, where Python puts what happened."""
    lines = [line.strip() for line in reason.splitlines() if line.strip()]
    return (lines or ["no reason given"])[-1][:300]


@contextmanager
def reported() -> Iterator[None]:
    """Turns whatever a grid raises into an EngineError."""
    try:
        yield
    except PolyclinicError:
        raise
    except Exception as failure:
        raise EngineError(
            f"Flower's SuperLink failed: {type(failure).__name__}: {brief(str(failure))}",
            remedy="see that it runs, and resume; nothing is lost",
        ) from failure
