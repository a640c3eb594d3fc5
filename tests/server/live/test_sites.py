"""Live sites over a grid that does what real ones do: loses messages, dies, comes back, answers late, lies."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from polyclinic.core.envelope import seal
from polyclinic.core.messages import Instruction, encode_instruction
from polyclinic.core.signing import SigningKey
from polyclinic.core.update import digest
from polyclinic.core.version import VERSION
from polyclinic.server.live import sites as module
from polyclinic.server.live.sites import LiveSites, Member, needed
from polyclinic.server.receive import Delivery

STATE = {"head.weight": np.zeros(2, np.float32)}
STUDY = "a" * 64
ASKED = Instruction(STUDY, "run", 3, "nonce", digest(STATE), True, ("val",), False, VERSION, STATE)
NORTH, SOUTH, OTHER = SigningKey.new(), SigningKey.new(), SigningKey.new()
KEYS = {"north": NORTH, "south": SOUTH}


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("run_id", "node_id", "task_id"):
        monkeypatch.setattr(TaskIdentity, f"_{name}", 1, raising=False)
    monkeypatch.setattr(module, "LOOK", 0.01)
    monkeypatch.setattr(module, "LOST", 0.15)


def sealed(site: str, body: bytes = b"body", key: SigningKey | None = None, **other: Any) -> bytes:
    fields: dict[str, Any] = {
        "site": site, "study": STUDY, "run": "run", "round": 3, "nonce": "nonce", "base": digest(STATE),
        "kind": "reply", "version": VERSION,
    }  # fmt: skip
    return seal(**(fields | other), body=body, key=key or KEYS[site])


@dataclass
class Node:
    node_id: int
    name: str
    last_activated_at: str = "one"


@dataclass
class Grid:
    """``script``: site → what becomes of each message that is pushed to it, in turn: bytes, an Error, or None."""

    script: dict[str, list[Any]]
    nodes: dict[str, Node] = field(default_factory=dict)
    pushed: list[str] = field(default_factory=list)
    replies: dict[str, Message] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=itertools.count)
    asked: dict[str, tuple[str, Message]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.nodes = self.nodes or {site: Node(i, site) for i, site in enumerate(sorted(self.script), 1)}

    def get_nodes(self) -> list[Node]:
        return list(self.nodes.values())

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        (message,) = messages
        (site,) = (name for name, node in self.nodes.items() if node.node_id == message.metadata.dst_node_id)
        identifier = str(next(self.numbers))
        message.metadata.__dict__["_message_id"] = identifier
        self.pushed.append(site)
        self.asked[identifier] = (site, message)
        what = self.script[site].pop(0) if self.script[site] else None
        if what is not None:
            self.answer(identifier, what)
        return [identifier]

    def answer(self, identifier: str, what: Any) -> None:
        message = self.asked[identifier][1]
        if isinstance(what, Error):
            self.replies[identifier] = Message(what, reply_to=message)
        else:
            record = ArrayRecord({"bytes": Array("uint8", (len(what),), "polyclinic", what)})
            self.replies[identifier] = Message(RecordDict({"message": record}), reply_to=message)

    def pull_messages(self, identifiers: Iterable[str]) -> list[Message]:
        return [self.replies.pop(i) for i in identifiers if i in self.replies]


@dataclass
class Cohort:
    statuses: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    seen: dict[str, float] = field(default_factory=dict)
    out: set[str] = field(default_factory=set)
    notes: list[tuple[str, str]] = field(default_factory=list)
    shorts: list[str] = field(default_factory=list)

    def members(self) -> Mapping[str, Member]:
        now = time.time()
        return {
            site: Member(key.public, self.seen.get(site, now), self.statuses.get(site, {}))
            for site, key in KEYS.items()
            if site not in self.out
        }

    def note(self, site: str, state: str, why: str = "") -> None:
        self.notes.append((site, state))

    def short(self, why: str) -> None:
        if not self.shorts or self.shorts[-1] != why:
            self.shorts.append(why)


def live(grid: Grid, cohort: Cohort | None = None, **more: Any) -> LiveSites:
    settings: dict[str, Any] = {"quorum": 0.5, "absence": 0.2, "overdue": set(), "halted": lambda: None}
    return LiveSites(grid, cohort or Cohort(), **(settings | more))  # type: ignore[arg-type]


def send(found: LiveSites, deadline: float = 3.0) -> dict[str, Delivery]:
    return {d.site: d for d in found.send(encode_instruction(ASKED), ("north", "south"), deadline)}


def test_signed_replies_arrive_with_their_proof() -> None:
    got = send(live(Grid({"north": [sealed("north")], "south": [sealed("south", b"other")]})))
    assert (got["north"].message, got["south"].message) == (b"body", b"other")
    assert '"site":"north"' in got["north"].proof
    assert got["north"].failure == got["south"].failure == ""


LIES: dict[str, tuple[bytes, str]] = {
    "another key": (sealed("north", key=OTHER), "signature is wrong"),
    "another site's reply": (sealed("south", key=NORTH), "another site's name"),
    "another round": (sealed("north", round=2), "another round"),
    "another run": (sealed("north", run="other"), "another run"),
    "an old nonce": (sealed("north", nonce="old"), "another nonce"),
    "another study": (sealed("north", study="b" * 64), "another study"),
    "another state": (sealed("north", base="c" * 64), "another base"),
    "a future version": (sealed("north", version="99.0.0"), "version 99.0.0"),
    "a swapped body": (sealed("north")[:-4] + b"evil", "not the one that was sealed"),
    "no seal": (b"PLC1 and something", "no sealed message"),
    "nothing": (b"", "no sealed message"),
}


@pytest.mark.parametrize("name", LIES)
def test_what_is_not_signed_over_this_very_instruction_is_refused_with_why(name: str) -> None:
    lie, why = LIES[name]
    got = send(live(Grid({"north": [lie], "south": [sealed("south")]})))
    assert why in got["north"].failure
    assert got["north"].message is None
    assert got["south"].message == b"body"


def test_a_signed_refusal_is_told_and_cannot_be_replayed() -> None:
    no = sealed("north", b"not approved here\x1b[31m", kind="refusal")
    got = send(live(Grid({"north": [no], "south": [sealed("south", b"no", kind="refusal", nonce="old")]})))
    assert got["north"].failure == "refused: not approved here [31m"
    assert "another nonce" in got["south"].failure


def test_what_only_the_carrier_says_is_no_answer_and_the_instruction_goes_out_again() -> None:
    grid = Grid({"north": [Error(5, "gone"), None], "south": [sealed("south")]})
    cohort = Cohort()
    cohort.statuses["north"] = {"agent": "idle", "since": time.time() - 60, "answered": None}
    original = grid.push_messages

    def push(messages: Iterable[Message]) -> list[str]:
        if grid.pushed.count("north") == 2:
            grid.script["north"] = [sealed("north")]
        return original(messages)

    grid.push_messages = push  # type: ignore[method-assign]
    got = send(live(grid, cohort), 8.0)
    assert got["north"].message == b"body"
    assert grid.pushed.count("north") == 3


def test_a_node_that_began_anew_is_sent_the_instruction_again_at_once() -> None:
    grid = Grid({"north": [None, sealed("north")], "south": [sealed("south")]})
    found = live(grid).send(encode_instruction(ASKED), ("north", "south"), 3.0)
    assert next(found).site == "south"
    grid.nodes["north"] = Node(1, "north", "two")
    begun = time.monotonic()
    assert next(found).message == b"body"
    assert time.monotonic() - begun < 1.0


def test_one_who_is_at_work_is_not_disturbed() -> None:
    cohort = Cohort({"north": {"agent": "working", "since": 0.0, "run": "run", "round": 3}})
    grid = Grid({"north": [None], "south": [sealed("south")]})
    got = send(live(grid, cohort), 1.2)
    assert "north" not in got
    assert grid.pushed.count("north") == 1


def test_both_copies_may_be_answered_and_one_counts() -> None:
    grid = Grid({"north": [None, sealed("north")], "south": [sealed("south")]})
    found = live(grid).send(encode_instruction(ASKED), ("north", "south"), 3.0)
    assert next(found).site == "south"
    grid.nodes["north"] = Node(1, "north", "two")
    assert next(found).site == "north"
    first = next(i for i, (site, _) in grid.asked.items() if site == "north")
    grid.answer(first, sealed("north"))
    assert list(found) == []


def test_a_site_that_cannot_even_sign_is_named_and_not_waited_for_but_asked_again() -> None:
    full = Error(1000, "the book cannot be written: free some space")
    grid = Grid({"north": [full, full, full, full], "south": [sealed("south")]})
    begun = time.monotonic()
    got = send(live(grid), 30.0)
    assert time.monotonic() - begun < 5.0
    assert got["north"].failure == "no reply before the deadline; it last said: " + str(full.reason)
    grid = Grid({"north": [full, sealed("north")], "south": [None]})  # without a quorum it is waited for all the same
    assert next(live(grid).send(encode_instruction(ASKED), ("north", "south"), 30.0)).message == b"body"


def test_a_large_instruction_on_a_slow_line_is_not_taken_for_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLOW", 1.0)  # byte a second
    cohort = Cohort({"north": {"agent": "idle", "answered": None}})
    grid = Grid({"north": [None], "south": [sealed("south")]})
    send(live(grid, cohort), 1.5)
    assert grid.pushed.count("north") == 1


def test_what_was_lost_is_sent_again_more_and_more_slowly() -> None:
    cohort = Cohort({"north": {"agent": "idle", "answered": None}})
    grid = Grid({"north": [], "south": [sealed("south")]})
    send(live(grid, cohort), 2.0)
    assert 3 <= grid.pushed.count("north") <= 4  # after 0.15 s, 0.3 s, 0.6 s


def test_whose_reply_has_begun_to_arrive_is_given_time() -> None:
    cohort = Cohort({"north": {"agent": "idle", "answered": {"run": "run", "round": 3, "at": 1.0}}})
    grid = Grid({"north": [None], "south": [sealed("south")]})
    send(live(grid, cohort, coming=grid.asked.keys), 1.0)
    assert grid.pushed.count("north") == 1
    grid = Grid({"north": [None, None], "south": [sealed("south")]})
    send(live(grid, cohort, coming=lambda: ["another"]), 1.0)  # it answered, but the answer got lost
    assert grid.pushed.count("north") >= 2


def test_who_was_overdue_or_is_away_is_not_waited_for_once_there_is_a_quorum() -> None:
    for more in ({"overdue": {"north"}}, {}):
        grid = Grid({"north": [None], "south": [sealed("south")]})
        cohort = Cohort(seen={} if more else {"north": time.time() - 60})
        if not more:
            del grid.nodes["north"]
        begun = time.monotonic()
        found = live(grid, cohort, **more)
        assert set(send(found, 30.0)) == {"south"}
        assert time.monotonic() - begun < 3.0
        assert found.overdue == {"north"}


def test_without_a_quorum_even_they_are_waited_for_until_the_deadline() -> None:
    begun = time.monotonic()
    found = live(Grid({"north": [None], "south": [None]}), overdue={"north", "south"})
    assert send(found, 0.5) == {}
    assert time.monotonic() - begun >= 0.5


def test_a_late_answer_is_not_read_but_makes_its_site_welcome_again() -> None:
    grid = Grid({"north": [None, sealed("north")], "south": [sealed("south"), sealed("south")]})
    found = live(grid)
    assert set(send(found, 0.4)) == {"south"}
    assert found.overdue == {"north"}
    late = next(i for i, (site, _) in grid.asked.items() if site == "north")
    grid.answer(late, sealed("north", b"late"))
    got = send(found)
    assert got["north"].message == b"body"
    assert found.overdue == set()


def test_who_withdraws_or_is_revoked_is_out_at_once() -> None:
    grid, cohort = Grid({"north": [None], "south": [sealed("south")]}), Cohort()
    found = live(grid, cohort).send(encode_instruction(ASKED), ("north", "south"), 30.0)
    assert next(found).site == "south"
    cohort.out.add("north")
    assert next(found) == Delivery("north", failure="withdrawn, or revoked")
    assert list(live(grid, cohort).names()) == ["south"]


def test_a_round_begins_when_a_quorum_is_there_and_a_halt_ends_the_waiting() -> None:
    class StopError(Exception):
        pass

    grid = Grid({"north": [], "south": []})
    del grid.nodes["north"]
    assert live(grid).names() == ["north", "south"]  # half is a quorum; the other counts as chosen all the same
    looks = iter(range(5))

    def halted() -> None:
        if next(looks, None) is None:
            raise StopError

    with pytest.raises(StopError):
        live(grid, quorum=1.0, halted=halted).names()


@pytest.mark.parametrize(("quorum", "count", "wanted"), [(0.5, 3, 2), (0.6, 5, 3), (1.0, 7, 7), (0.55, 100, 55)])
def test_quorum(quorum: float, count: int, wanted: int) -> None:
    assert needed(quorum, count) == wanted
