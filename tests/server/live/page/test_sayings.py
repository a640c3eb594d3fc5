"""Sentences, and the run on the terminal."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from polyclinic.core.errors import RunError
from polyclinic.server.live.page import sayings, snapshot
from polyclinic.server.live.page.live import Happened, Live, SiteNow
from tests.server.live.page.replay import Replay

RUN = Live(run="r", study="s", phase="running", round=3, rounds=5, quorum=2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "Round 3 of 5"),
        ({"round": 6}, "The final model is judged at every site"),
        ({"phase": "paused"}, "Paused in round 3 of 5"),
        ({"phase": "paused", "round": 6}, "Paused in the last evaluation"),
        ({"phase": "stopped"}, "Stopped, with 2 rounds done"),
        ({"phase": "waiting", "round": 0}, "Waiting to begin"),
        ({"phase": "finished", "round": 6}, "Finished: 5 rounds"),
        ({"phase": "failed"}, "Failed in round 3 of 5"),
        ({"phase": "stopped", "round": 0}, "Stopped"),
        ({"phase": "dreaming"}, "Dreaming in round 3 of 5"),
    ],
)
def test_headlines(changes: dict[str, object], said: str) -> None:
    assert sayings.headline(replace(RUN, **changes)) == said  # type: ignore[arg-type]


def test_a_runner_that_was_started_again_knows_of_no_round() -> None:
    assert sayings.headline(Live(run="r", study="s", rounds=5), 3) == "Waiting to go on"
    assert sayings.headline(Live(run="r", study="s", phase="stopped", rounds=5), 3) == "Stopped, with 3 rounds done"


def test_a_reason_that_begins_with_a_site_keeps_its_letters() -> None:
    paused = replace(RUN, phase="paused", why="north: no answer", sites=(SiteNow("north", "away"),))
    assert sayings.why(paused) == "north: no answer."
    assert sayings.why(replace(paused, why="disk full")) == "Disk full."


def test_how_many_are_needed() -> None:
    sites = (SiteNow("a", "answered", last=3), SiteNow("b", "answered", last=2), SiteNow("c", "working"))
    assert sayings.needed(replace(RUN, sites=sites)) == "2 needed: 1 more"
    assert sayings.needed(replace(RUN, sites=sites, quorum=1)) == "1 needed: enough"


def test_who_needs_attention_comes_first() -> None:
    rows = [
        SiteNow("a", "answered"),
        SiteNow("b", "overdue", missed=2),
        SiteNow("c", "refused", why="not finite"),
        SiteNow("d", "working", certificate_days=9),
        SiteNow("e", "strange"),
    ]
    assert [site.name for site in sayings.ranked(rows)] == ["c", "d", "b", "e", "a"]
    assert sayings.explained(rows[1]) == "Missed 2 rounds in a row: not waited for, and welcome back at any time."
    assert sayings.explained(rows[2]) == "not finite."
    assert sayings.certificate(rows[3]) == "certificate ends in 9 days"
    assert sayings.certificate(SiteNow("x", "working", certificate_days=0)) == "certificate has expired"
    assert not sayings.expiring(SiteNow("x", "revoked", certificate_days=0))


def test_alarms_are_told_once_with_how_often_they_were_raised() -> None:
    events = (
        Happened(1.0, "alarm", 2, "north", "revoked"),
        Happened(2.0, "alarm", 3, "", "too few"),
        Happened(3.0, "site", 3, "south", "overdue"),
        Happened(4.0, "alarm", 3, "", "too few"),
    )
    assert [(e.text, n) for e, n in sayings.alarms(replace(RUN, events=events))] == [("too few", 2), ("revoked", 1)]
    paused = replace(RUN, events=events, phase="paused", why="too few")
    assert [e.text for e, _ in sayings.alarms(paused)] == ["revoked"]


def test_what_is_told_twice_is_shown_once() -> None:
    events = (
        Happened(1.0, "site", 3, "south", "refused: not finite"),
        Happened(1.1, "excluded", 3, "south", "not finite"),
        Happened(2.0, "site", 3, "north", "overdue"),
    )
    assert [e.at for e in sayings.told(events)] == [2.0, 1.1]
    assert sayings.happened(events[1]) == "set aside: not finite"


def test_the_run_on_a_terminal(replay: Replay) -> None:
    replay.begin(1)
    replay.commit(1)
    replay.begin(2)
    replay.site("north", "answered", last=2)
    replay.site("harbour", "refused", "the update holds a number that is not finite", certificate_days=5)
    replay.event("alarm", "its certificate was revoked", "village")
    text = "\n".join(snapshot(replay.folder, clock=lambda: time.time() + 30))
    for line in (
        "  Round 2 of 4",
        "1 of 3 sites answered; 2 needed: 1 more; waited for 119 min more at the most; about 2 min left in all",
        "harbour  refused    30 s ago. the update holds a number that is not finite. certificate ends in 5 days",
        "Sites: 1 refused, 1 waiting, 1 answered",
        "ALARM 30 s ago: village its certificate was revoked",
        "The model after 0 rounds of training",
        "AUROC, pooled",
    ):
        assert line in text
    replay.write(phase="failed", why="the disk is full")
    text = "\n".join(snapshot(replay.folder))
    assert "Failed in round 2 of 4\n  The disk is full.\n  Nothing that was committed is lost." in text
    for number in (2, 3, 4):
        replay.commit(number)
    replay.finish()
    assert "Finished: 4 rounds" in snapshot(replay.folder)[1]


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(RunError):
        snapshot(tmp_path)
