"""live.json: written whole, soon, and not too often."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from polyclinic.core.study import Study
from polyclinic.server.live import state as module
from polyclinic.server.live.state import LiveState, read
from polyclinic.server.rounds import Event


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def state(tiny_study: Study, tmp_path: Path, clock: Clock) -> LiveState:
    return LiveState(tmp_path, "tiny-1", tiny_study, clock)


def shown(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "live.json").read_text())  # type: ignore[no-any-return]


def test_what_changes_a_moment_after_a_writing_is_written_at_the_next_look(
    state: LiveState, tmp_path: Path, clock: Clock
) -> None:
    clock.now += 1
    state.note("north", "waiting")
    state.note("south", "away")  # too soon
    assert "south" not in shown(tmp_path)["sites"]
    clock.now += 2 * module.OFTEN
    state.flush()
    assert shown(tmp_path)["sites"]["south"]["state"] == "away"


def test_a_reader_can_tell_that_it_is_alive(state: LiveState, tmp_path: Path, clock: Clock) -> None:
    clock.now += module.SELDOM - 0.1
    state.flush()
    assert shown(tmp_path)["updated"] == 1000.0
    clock.now += 0.1
    state.flush()
    assert shown(tmp_path)["updated"] == clock.now


def test_missed_rounds_are_counted_until_the_site_answers(state: LiveState, tmp_path: Path, clock: Clock) -> None:
    for number in (1, 2):
        state.observe(Event("round", number))
        state.note("north", "sent")
        state.note("north", "overdue")
    state.flush(now=True)
    assert shown(tmp_path)["sites"]["north"]["missed"] == 2
    state.observe(Event("round", 3))
    state.note("north", "answered")
    state.flush(now=True)
    assert (shown(tmp_path)["sites"]["north"]["missed"], shown(tmp_path)["sites"]["north"]["last"]) == (0, 3)


def test_who_says_that_it_is_at_work_on_this_round_is_shown_so(state: LiveState, tmp_path: Path) -> None:
    state.observe(Event("round", 1))
    state.note("north", "sent")
    state.working("north", {"agent": "working", "run": "tiny-1", "round": 9})
    assert state._state["sites"]["north"]["state"] == "sent"
    state.working("north", {"agent": "working", "run": "tiny-1", "round": 1})
    assert state._state["sites"]["north"]["state"] == "working"


def test_pauses_failures_and_revocations_are_alarms(state: LiveState, tmp_path: Path) -> None:
    state.phase("paused", "too few")
    state.note("north", "revoked")
    state.phase("failed", "diverged")
    state.flush(now=True)
    assert [line["kind"] for line in shown(tmp_path)["events"]] == ["alarm", "alarm", "alarm"]


def test_time_left_follows_from_the_last_rounds(state: LiveState, tmp_path: Path, tiny_study: Study) -> None:
    state.observe(Event("round", 1))
    state.observe(Event("done", 1, record={"seconds": 30.0}))
    assert shown(tmp_path)["left"] == 30.0 * (tiny_study.rounds.count - 1)


def test_a_full_disk_stops_nobody(tiny_study: Study, tmp_path: Path, clock: Clock) -> None:
    state = LiveState(tmp_path / "gone", "tiny-1", tiny_study, clock)
    state.note("north", "waiting")
    assert read(tmp_path / "gone") == {}


def test_the_log_goes_on_after_a_restart_and_stays_short(state: LiveState, tiny_study: Study, tmp_path: Path) -> None:
    for number in range(70):
        state.event("site", "north", str(number))
    state.flush(now=True)
    again = LiveState(tmp_path, "tiny-1", tiny_study)
    again.event("site", "north", "after")
    again.flush(now=True)
    texts = [line["text"] for line in shown(tmp_path)["events"]]
    assert len(texts) == module.KEPT
    assert texts[-2:] == ["69", "after"]
