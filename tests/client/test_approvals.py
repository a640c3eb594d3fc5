"""Nothing is done that was not approved: every way of not being covered has a reason of its own."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyclinic.client.approvals import Decision, Limits, decide, decisions, demand, demand_manifest, instruction_fits
from polyclinic.client.home import Home
from polyclinic.client.settings import Coordinator, DataPlace, Settings
from polyclinic.core.book import Book
from polyclinic.core.errors import PolicyError, TrustError, UpdateError
from polyclinic.core.messages import Instruction
from polyclinic.core.signing import SigningKey, opened, sign
from polyclinic.core.study import Study

STUDY, BACKBONE, NOON = "a" * 64, "b" * 64, datetime(2026, 11, 24, 12, tzinfo=UTC).timestamp()
KEY = SigningKey.new()


def instruction(**others: Any) -> Instruction:
    given_ = {"study": STUDY, "run": "tiny-1", "round": 1, "nonce": "n", "base": "c" * 64, "fit": True}
    tensors = {"w": np.ones((2, 3), np.float32), "head": np.zeros(2, np.float32)}
    more = {"evaluate": ("val",), "describe": False, "version": "0.1.0", "tensors": tensors}
    return Instruction(**{**given_, **more, **others})


def approved(limits: Limits = Limits()) -> Decision:
    return Decision("north", STUDY, "approve", "0.1.0", BACKBONE, limits, 1.0, 0)


def asked(decided: Decision | None, order: Instruction, **others: Any) -> None:
    given_ = {"version": "0.1.0", "backbone_sha256": BACKBONE, "now": NOON, "zone": UTC}
    demand(decided, order, **{**given_, **others})


def test_what_was_approved_is_done() -> None:
    asked(approved(), instruction())
    asked(approved(Limits(1, NOON, "11:59-12:01")), instruction())


@pytest.mark.parametrize(
    ("decided", "others", "reason"),
    [
        (None, {}, "was not approved here"),
        (replace(approved(), study="d" * 64), {}, "was not approved here"),
        (replace(approved(), verb="withdraw"), {}, "has withdrawn"),
        (replace(approved(), version="0.0.9"), {}, r"0\.0\.9 was approved, this site runs 0\.1\.0"),
        (approved(), {"version": "0.2.0"}, r"0\.1\.0 was approved, this site runs 0\.2\.0"),
        (approved(), {"backbone_sha256": "e" * 64}, "backbone is not the one"),
        (approved(Limits(until=NOON - 1)), {}, "approval has ended"),
        (approved(Limits(hours="20:00-06:00")), {}, "only from 20:00 to 06:00, now it is 12:00"),
        (approved(Limits(hours="08:00-12:00")), {}, "only from 08:00 to 12:00"),
        (approved(Limits(rounds=2)), {"answered_rounds": [("tiny-1", 7), ("other", 1)]}, "allows 2 rounds"),
    ],
)
def test_each_limit_has_its_reason(decided: Decision | None, others: dict[str, Any], reason: str) -> None:
    with pytest.raises(PolicyError, match=reason):
        asked(decided, instruction(), **others)


def test_another_version_at_the_coordinator_is_refused() -> None:
    with pytest.raises(PolicyError, match=r"0\.1\.0 was approved, the coordinator runs 9"):
        asked(approved(), instruction(version="9"))


def test_a_round_that_was_answered_may_be_asked_for_again_and_the_last_evaluation_is_free() -> None:
    decided, answered = approved(Limits(rounds=1)), [("tiny-1", 1)]
    asked(decided, instruction(), answered_rounds=answered)
    asked(decided, instruction(round=3, fit=False), answered_rounds=answered)
    with pytest.raises(PolicyError, match="judges no model of a run"):
        asked(decided, instruction(run="other", round=3, fit=False), answered_rounds=answered)


@given(st.integers(0, 1439), st.integers(0, 1439), st.integers(0, 1439))
def test_hours_are_those_between_also_past_midnight(begin: int, end: int, now: int) -> None:
    if begin == end:
        return
    hours = f"{begin // 60:02}:{begin % 60:02}-{end // 60:02}:{end % 60:02}"
    inside = (now - begin) % 1440 < (end - begin) % 1440
    moment = datetime(2026, 11, 24, now // 60, now % 60, 30, tzinfo=UTC).timestamp()
    try:
        asked(approved(Limits.read(hours=hours)), instruction(), now=moment)
        assert inside
    except PolicyError:
        assert not inside


def test_what_was_typed_is_understood() -> None:
    zone = timezone(timedelta(hours=2))
    found = Limits.read("12", "2027-01-31", " 20:00 - 06:00 ", zone)
    assert found == Limits(12, datetime(2027, 1, 31, 23, 59, 59, tzinfo=zone).timestamp(), "20:00-06:00")
    assert Limits.read(until="2027-01-31T18:00+00:00").until == datetime(2027, 1, 31, 18, tzinfo=UTC).timestamp()
    assert Limits.read(until="2027-01-31 18:00", zone=zone).until == datetime(2027, 1, 31, 16, tzinfo=UTC).timestamp()
    assert Limits.read() == Limits()
    assert found.words(UTC) == (
        "at most 12 rounds of training, until 2027-01-31 21:59 UTC, only from 20:00 to 06:00"
    )  # fmt: skip
    assert Limits().words() == "no limits beyond the study's own"


@pytest.mark.parametrize("typed", ["0", "-1", "1e3", "many", "", "99999999"])
def test_wrong_rounds(typed: str) -> None:
    with pytest.raises(PolicyError, match=r"rounds: .*no number of rounds"):
        Limits.read(rounds=typed)


@pytest.mark.parametrize("typed", ["tomorrow", "31.1.2027", "", "9999-12-31"])
def test_wrong_dates(typed: str) -> None:
    with pytest.raises(PolicyError, match=r"until: .*no date"):
        Limits.read(until=typed)


@pytest.mark.parametrize("typed", ["20-6", "20:00", "24:00-06:00", "06:00-06:00", "8:00-9:00", "20:00–06:00"])
def test_wrong_hours(typed: str) -> None:
    with pytest.raises(PolicyError, match=r"hours: .*no hours of a day"):
        Limits.read(hours=typed)


def site(folder: Path) -> Home:
    at = Coordinator(host="hub.example", fleet_port=1, governance_port=2, key="c" * 64)
    return Home.create(folder, Settings(name="north", key=KEY.public, coordinator=at, data=DataPlace(manifest="m")))


def test_the_last_decision_counts_and_can_be_stated(tmp_path: Path) -> None:
    home = site(tmp_path)
    book = Book(home.book, KEY, lambda: 5.5)
    assert decisions(home) == {}
    with pytest.raises(PolicyError, match="was not approved here, so there is nothing"):
        decide(book, "north", STUDY, "withdraw", "0.1.0", BACKBONE)
    decide(book, "north", STUDY, "approve", "0.1.0", BACKBONE, Limits(rounds=3))
    other = decide(book, "north", "f" * 64, "approve", "0.1.0", BACKBONE)
    book.append("reply", {"study": STUDY})
    last = decide(book, "north", STUDY, "withdraw", "0.1.0", BACKBONE)
    with pytest.raises(PolicyError, match="was withdrawn already"):
        decide(book, "north", STUDY, "withdraw", "0.1.0", BACKBONE)
    assert decisions(home) == {STUDY: last, "f" * 64: other}
    assert (last.verb, last.sequence, last.time) == ("withdraw", 3, 5.5)
    told = opened(sign(other.document(), KEY), "decision", KEY.public)
    assert told == {
        "kind": "decision", "site": "north", "study": "f" * 64, "verb": "approve", "version": "0.1.0",
        "backbone_sha256": BACKBONE, "limits": {"rounds": None, "until": None, "hours": None}, "time": 5.5,
        "sequence": 1,
    }  # fmt: skip
    book.close()


def test_a_decision_that_the_site_did_not_sign_is_refused(tmp_path: Path) -> None:
    home, forger = site(tmp_path), SigningKey.new()
    book = Book(home.book, forger)
    decide(book, "north", STUDY, "approve", "0.1.0", BACKBONE)
    book.close()
    with pytest.raises(TrustError, match="not signed"):
        decisions(home)


MANIFEST = [
    {"name": "w", "shape": [2, 3], "dtype": "float32"},
    {"name": "head", "shape": [2], "dtype": "float32"},
]


def test_an_instruction_as_agreed_fits(tiny_study: Study) -> None:
    instruction_fits(instruction(), MANIFEST, tiny_study)
    last = tiny_study.rounds.count + 1
    instruction_fits(instruction(round=last, fit=False, evaluate=("val", "test")), MANIFEST, tiny_study)


@pytest.mark.parametrize(
    ("others", "reason"),
    [
        ({"round": 0}, "round 0 is not"),
        ({"round": 4, "fit": False}, "round 4 is not"),
        ({"round": 3}, "fit: training is asked for after"),
        ({"fit": False}, "fit: .*or not before"),
        ({"evaluate": ("val", "test")}, "evaluate: another split"),
        ({"round": 3, "fit": False, "evaluate": ("train",)}, "evaluate: another split"),
    ],
)
def test_an_instruction_beyond_the_study_does_not(others: dict[str, Any], reason: str, tiny_study: Study) -> None:
    with pytest.raises(UpdateError, match=reason):
        instruction_fits(instruction(**others), MANIFEST, tiny_study)


@pytest.mark.parametrize(
    ("name", "array", "reason"),
    [
        ("w", None, "w: tensor is missing"),
        ("more", np.zeros(1, np.float32), "more: tensor was not agreed on"),
        ("w", np.zeros((3, 2), np.float32), "w: shape"),
        ("w", np.zeros((2, 3), np.float64), "w: dtype"),
        ("w", np.full((2, 3), np.nan, np.float32), "w: .*NaN"),
        ("head", np.array([0, -np.inf], np.float32), "head: .*infinity"),
        ("head", np.array([0, -(2.0**21)], np.float32), "head: .*above"),
    ],
)
def test_tensors_other_than_offered_are_named(
    name: str, array: np.ndarray | None, reason: str, tiny_study: Study
) -> None:
    tensors = dict(instruction().tensors)
    if array is None:
        del tensors[name]
    else:
        tensors[name] = array
    with pytest.raises(UpdateError, match=reason):
        instruction_fits(instruction(tensors=tensors), MANIFEST, tiny_study)


@pytest.mark.parametrize(
    "row",
    [
        {"name": "w", "shape": [2], "dtype": "float32"},
        {"name": "v", "shape": [2], "dtype": "float64"},
        {"name": "v", "shape": [2.0], "dtype": "float32"},
        {"name": "v", "shape": [-2], "dtype": "float32"},
        {"name": "v", "shape": 2, "dtype": "float32"},
        {"name": "v\n", "shape": [2], "dtype": "float32"},
        {"name": "v", "shape": [2], "dtype": "float32", "more": 1},
        {"shape": [2], "dtype": "float32"},
    ],
)
def test_a_wrong_manifest_is_refused(row: dict[str, Any]) -> None:
    with pytest.raises(UpdateError):
        demand_manifest([*MANIFEST, row])
