"""Studies, decisions, refusals, receipts, heads, runs, events: what is kept, and what is not believed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyclinic.core.errors import RunError, TrustError, UpdateError
from polyclinic.core.signing import Signed, SigningKey, sign
from polyclinic.server.governance import statements
from polyclinic.server.governance.registry import Registry, SiteRecord
from polyclinic.server.governance.store import EVENTS, HOURLY
from tests.server.governance.coordinator import STUDY, WEIGHTS, node_key

NOW = 1_790_000_000.0
KEY = SigningKey.new()


class Clock:
    """Time that a test sets."""

    now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def book() -> list[tuple[str, Any]]:
    return []


@pytest.fixture
def registry(tmp_path: Path, clock: Clock, book: list[tuple[str, Any]]) -> Registry:
    registry = Registry(tmp_path / "registry.db", clock, lambda kind, body: book.append((kind, body)))
    registry.publish(sign({"kind": "offer", "study": STUDY}, KEY), STUDY)
    registry.enrol(SiteRecord("north", KEY.public, node_key(), "c" * 64, 9e9, b"", NOW))
    book.clear()
    return registry


def said(**document: Any) -> tuple[dict[str, Any], Signed]:
    document = {"site": "north", "time": NOW, **document}
    return document, sign(document, KEY)


def decision(sequence: int, verb: str = "approve", **changes: Any) -> tuple[dict[str, Any], Signed]:
    limits = {"rounds": 3, "until": None, "hours": "19:00-06:00"}
    rest = {"version": "0.1.0", "backbone_sha256": WEIGHTS, "limits": limits, "study": STUDY}
    return said(kind="decision", verb=verb, sequence=sequence, **rest | changes)


def head(sequence: int, digest: str = "d", *, run: str = "r-1", **changes: Any) -> tuple[dict[str, Any], Signed]:
    return said(kind="head", run=run, sequence=sequence, digest=digest * 64, **changes)


def test_offers(registry: Registry, clock: Clock, book: list[tuple[str, Any]]) -> None:
    second = sign({"kind": "offer", "study": "2" * 64}, KEY)
    clock.now += 1
    registry.publish(second, "2" * 64)
    assert [json.loads(offer.document)["study"][0] for offer in registry.offers()] == ["5", "2"]
    assert registry.offer("2" * 64) == second
    registry.retire("2" * 64)
    assert registry.offer("2" * 64) is None
    assert registry.retired() == ["2" * 64]
    assert len(registry.offers()) == 1
    with pytest.raises(TrustError, match="not offered"):
        registry.retire("2" * 64)
    registry.publish(second, "2" * 64)
    assert registry.retired() == []
    assert [kind for kind, _ in book] == ["published", "retired", "published"]
    assert book[0][1]["statement"]["signature"] == second.signature.hex()


def test_the_latest_decision_counts(registry: Registry, book: list[tuple[str, Any]]) -> None:
    registry.decide("north", *decision(4))
    found = registry.decisions(STUDY)["north"]
    assert (found.verb, found.version, found.limits["rounds"], found.received) == ("approve", "0.1.0", 3, NOW)
    document, signed = decision(5, "withdraw")
    registry.decide("north", document, signed)
    registry.decide("north", document, signed)  # resent
    found = registry.decisions(STUDY)["north"]
    assert (found.verb, found.sequence, found.signed) == ("withdraw", 5, signed)
    assert [kind for kind, _ in book] == ["decision", "decision"]
    assert registry.decisions("2" * 64) == {}


def test_decisions_that_are_not_believed(registry: Registry, clock: Clock) -> None:
    first, replayed = decision(4), decision(3)
    registry.decide("north", *first)
    for verb, sequence in (("approve", 4), ("withdraw", 4), ("approve", 0)):
        with pytest.raises(TrustError, match="not newer than decision 4"):
            registry.decide("north", *decision(sequence, verb, version="0.1.9"))
    with pytest.raises(TrustError, match="not newer"):
        registry.decide("north", *replayed)
    with pytest.raises(TrustError, match="not offered"):
        registry.decide("north", *decision(5, study="2" * 64))
    with pytest.raises(TrustError, match="another site's"):
        registry.decide("north", *decision(5, site="south"))
    for late in (-8 * 86400.0, 700.0):
        with pytest.raises(TrustError, match="before the coordinator's"):
            registry.decide("north", *decision(5, time=NOW + late))
    registry.decide("north", *decision(5, time=NOW - 599.0))
    clock.now += 3600
    registry.decide("north", *decision(6, "withdraw"))  # what only takes back may come late
    registry.retire(STUDY)
    with pytest.raises(TrustError, match="not offered"):
        registry.decide("north", *decision(7, time=clock.now))
    registry.decide("north", *decision(7, "withdraw", time=clock.now))


@pytest.mark.parametrize(
    "changes",
    [
        {"verb": "order"},
        {"study": "../study"},
        {"sequence": -1},
        {"sequence": 1.5},
        {"sequence": True},
        {"version": "0.1.0 and more"},
        {"backbone_sha256": None},
        {"limits": {}},
        {"limits": {"rounds": -1, "until": None, "hours": None}},
        {"limits": {"rounds": None, "until": "soon", "hours": None}},
        {"limits": {"rounds": None, "until": None, "hours": "x" * 65}},
        {"limits": {"rounds": None, "until": None, "hours": None, "patient": "Jane"}},
        {"patient": "Jane"},
        {"time": "now"},
    ],
)
def test_decisions_that_are_none(registry: Registry, changes: dict[str, Any]) -> None:
    document, signed = said(**decision(1)[0] | changes)
    with pytest.raises(UpdateError):
        registry.decide("north", document, signed)
    assert registry.decisions(STUDY) == {}


def test_refusals(registry: Registry, book: list[tuple[str, Any]]) -> None:
    document, signed = said(kind="refusal", study=STUDY, run="r-1", round=2, why="past the approved rounds")
    registry.refuse("north", document, signed)
    registry.refuse("north", document, signed)  # resent
    assert registry.refusals("r-1") == [document]
    assert [kind for kind, _ in book] == ["refusal"]
    assert registry.events()[-1].text == "north refused round 2: past the approved rounds"
    with pytest.raises(TrustError, match="another site's"):
        registry.refuse("south", document, signed)
    for changes in ({"why": "x" * 501}, {"why": "a\nb"}, {"why": ""}, {"run": "../r"}, {"round": -1}, {"more": 1}):
        with pytest.raises(UpdateError):
            registry.refuse("north", *said(**document | changes))


def test_statuses(registry: Registry, clock: Clock) -> None:
    status = {"agent": "idle", "study": None, "run": None, "round": None, "since": NOW}
    status |= {"answered": {"run": "r-1", "round": 2, "at": NOW}, "version": "0.1.0", "skew": -0.5}
    assert statements.status(json.dumps(status).encode()) == status
    registry.report("north", status)
    clock.now += 7
    registry.report("north", status | {"agent": "working"})
    assert registry.statuses() == {"north": (status | {"agent": "working"}, NOW + 7)}
    for changes in (
        {"agent": "Jane Doe"},
        {"patient": "Jane"},
        {"run": "a b/c"},
        {"answered": {"at": 1}},
        {"skew": True},
    ):
        with pytest.raises(UpdateError):
            statements.status(json.dumps(status | changes).encode())
    for text in (
        b"",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 4000,
        b" " * 4097,
        json.dumps(status | {"since": 1e999}).encode(),
    ):
        with pytest.raises(UpdateError):
            statements.status(text)


@given(st.binary(max_size=200))
def test_no_bytes_are_a_status_by_chance(text: bytes) -> None:
    with pytest.raises(UpdateError):
        statements.status(text)


def test_receipts(registry: Registry) -> None:
    made = [sign({"kind": "receipt", "run": "r-1", "round": n, "time": 1.0}, KEY) for n in range(1, 5)]
    for number, signed in enumerate(made, 1):
        registry.add_receipt("r-1", number, signed)
    assert registry.receipts("r-1", 0, 64) == made
    assert registry.receipts("r-1", 2, 1) == made[2:3]
    assert registry.receipts("r-2", 0, 64) == []
    registry.add_receipt("r-1", 1, sign({"kind": "receipt", "run": "r-1", "round": 1, "time": 9.0}, KEY))
    assert registry.receipts("r-1", 0, 1) == made[:1]  # the first one stands
    with pytest.raises(RunError, match="another receipt"):
        registry.add_receipt(
            "r-1", 1, sign({"kind": "receipt", "run": "r-1", "round": 1, "base": "x", "time": 1.0}, KEY)
        )


def test_heads_go_forward(registry: Registry) -> None:
    registry.put_head("north", *head(3))
    registry.put_head("north", *head(3))  # resent
    registry.put_head("north", *head(7, "e", time=NOW + 1))
    registry.put_head("north", *head(1, run="", time=NOW + 1))
    registry.put_head("north", *said(kind="own-head", sequence=9, digest="f" * 64))
    assert {(h.site, h.run, h.sequence, h.digest[0]) for h in registry.heads()} == {
        ("north", "r-1", 7, "e"),
        ("north", "", 1, "d"),
    }
    assert [h.sequence for h in registry.heads("own-head")] == [9]
    assert [event for event in registry.events() if event.kind == "alarm"] == []
    registry.revoke("north")
    assert registry.heads() == []


def test_heads_that_contradict_raise_an_alarm(registry: Registry, book: list[tuple[str, Any]]) -> None:
    registry.put_head("north", *head(7))
    for document, signed in (head(6, time=NOW + 1), head(7, "e", time=NOW + 2), head(6, time=NOW + 3)):
        with pytest.raises(TrustError, match="rewritten"):
            registry.put_head("north", document, signed)
    alarms = [event for event in registry.events() if event.kind == "alarm"]
    assert len(alarms) == 2  # the same one only once
    assert alarms[0].text == "north says that the ledger of r-1 ends at line 6, and said before that it ends at line 7"
    assert [kind for kind, _ in book] == ["alarm", "alarm"]
    assert [h.sequence for h in registry.heads()] == [7]


def test_an_older_head_that_comes_again_is_no_alarm(registry: Registry) -> None:
    registry.put_head("north", *head(7, time=NOW + 5))
    with pytest.raises(TrustError, match="older statement"):
        registry.put_head("north", *head(6))
    assert [event.kind for event in registry.events() if event.kind == "alarm"] == []
    with pytest.raises(TrustError, match="another site's"):
        registry.put_head("south", *head(8))
    for changes in ({"digest": "x" * 64}, {"run": "../r"}, {"sequence": -1}, {"more": 1}):
        with pytest.raises(UpdateError):
            registry.put_head("north", *said(**head(9)[0] | changes))


def test_a_site_fills_the_book_up_to_a_point(registry: Registry, clock: Clock) -> None:
    registry.demand_quota("north")
    with registry.change() as db:
        for _ in range(HOURLY):
            registry.note(db, "refusal", {}, by="north")
    with pytest.raises(TrustError, match="within an hour"):
        registry.demand_quota("north")
    registry.demand_quota("south")
    clock.now += 3600
    registry.demand_quota("north")


def test_runs(registry: Registry, clock: Clock, book: list[tuple[str, Any]]) -> None:
    run = registry.want("tiny-0a1b", STUDY, "/runs/tiny-0a1b")
    assert registry.runs() == [run] == [registry.run("tiny-0a1b")]
    with pytest.raises(RunError, match="already"):
        registry.want("tiny-0a1b", STUDY, "/runs/tiny-0a1b")
    assert registry.set_state("tiny-0a1b", "running", only_from=("wanted", "paused"))
    assert registry.set_state("tiny-0a1b", "running")  # nothing new
    assert not registry.set_state("tiny-0a1b", "paused", "quorum", only_from=("wanted",))
    assert registry.set_state("tiny-0a1b", "paused", "fewer than the quorum")
    found = registry.run("tiny-0a1b")
    assert found is not None
    assert (found.state, found.why) == ("paused", "fewer than the quorum")
    assert [body["state"] for _, body in book] == ["wanted", "running", "paused"]
    with pytest.raises(RunError, match="no run"):
        registry.set_state("other", "running")
    with pytest.raises(RunError, match="no state"):
        registry.set_state("tiny-0a1b", "asleep")  # type: ignore[arg-type]
    assert registry.run("other") is None


def test_events_are_kept_up_to_a_number(registry: Registry) -> None:
    last = registry.last_event()
    with registry.change() as db:
        for number in range(EVENTS + 5):
            registry.tell(db, "r-1", "round", f"{number}")
    registry.event("r-1", "done", "x" * 1000)
    assert len(registry.rows("SELECT 1 FROM events")) == EVENTS
    assert registry.last_event() == last + EVENTS + 6
    assert [event.text for event in registry.events(last + EVENTS + 4, 1)] == [f"{EVENTS + 4}"]
    assert len(registry.events(last + EVENTS + 5)[0].text) == 500
    assert registry.events(10**9) == []
