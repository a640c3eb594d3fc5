"""The pieces of the page: sound, escaped, made anew only where they changed, and the same as the report's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from polyclinic.server.live.page.board import Board
from polyclinic.server.live.page.fragments import FIGURES, NOW, Renderer, View
from polyclinic.server.live.page.watched import Watched
from polyclinic.server.report import page
from tests.server.live.page.replay import Replay
from tests.server.report.conftest import Made
from tests.server.report.test_page import Page, drawn_within, pictures

EVIL = "<script>document.title='owned'</script><img src=x onerror=alert(1)>\"'&"


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    """The templates."""
    return Renderer()


def viewed(renderer: Renderer, folder: Path) -> dict[str, str]:
    """Fragments by id, each of which is well-formed by itself and all of which go together."""
    view = renderer.run(Watched(folder).look())
    assert [f.id for f in view.fragments] == [*NOW, *(f"part-{name}" for name in FIGURES)]
    sound(view)
    return {f.id: f.html for f in view.fragments}


def sound(view: View) -> None:
    """What holds for any page."""
    tags = [tag for f in view.fragments for tag in Page(f.html).tags]
    ids = [attributes["id"] for _, attributes in tags if "id" in attributes] + [f.id for f in view.fragments]
    assert len(ids) == len(set(ids))
    names = [tag for tag, _ in tags]
    assert names.count("h1") == 1
    assert not {"script", "img", "iframe", "object", "style", "form"} & set(names)
    assert not [a for _, a in tags if "style" in a or any(key.startswith("on") for key in a)]
    assert {a["href"] for tag, a in tags if tag == "a" and str(a["href"])[0] == "#"} <= {f"#{name}" for name in ids}
    for f in view.fragments:
        for picture in pictures(f.html):
            drawn_within(picture)


def test_every_step_of_a_run(renderer: Renderer, replay: Replay) -> None:
    found = viewed(renderer, replay.folder)
    assert "Waiting to begin" in found["phase"]
    assert {name for name, html in found.items() if html} == {"phase", "clock", "now", "log", "part-study"}
    for number in range(1, 5):
        replay.begin(number)
        assert f"Round {number} of 4" in viewed(renderer, replay.folder)["phase"]
        replay.commit(number)
        found = viewed(renderer, replay.folder)
        assert "What can be said so far" in found["part-so-far"]
        assert "The model on validation images" in found["part-sites"]
        assert "MMD² from all others" in found["part-shift"]
        assert not found["part-digests"]
    assert "harbour: no answer within" in found["part-travelled"]
    replay.begin(5)
    assert "The final model is judged at every site" in viewed(renderer, replay.folder)["phase"]
    replay.finish()
    found = viewed(renderer, replay.folder)
    assert 'href="/runs/made-0a1b2c3d/report"' in found["phase"]
    assert "Was it worth federating?" in found["part-so-far"]
    assert "ab" * 32 in found["part-digests"]


def test_at_the_end_its_sections_are_those_of_the_report(renderer: Renderer, replay: Replay) -> None:
    for number in range(1, 5):
        replay.commit(number)
    replay.finish()
    found, report = viewed(renderer, replay.folder), (replay.folder / "report.html").read_text(encoding="utf-8")
    for name in ("compared", "rounds", "sites", "calibration", "shift", "travelled", "digests"):
        assert len(found[f"part-{name}"]) > 300
        assert found[f"part-{name}"] in report
    for name in ("study", "method"):
        section = re.search(r"<section.*</section>", found[f"part-{name}"], flags=re.DOTALL)
        assert section
        assert section.group() in report
    assert page.render(Watched(replay.folder).look().evidence) == report


def test_nobody_can_write_markup(renderer: Renderer, replay: Replay) -> None:
    replay.begin(1)
    replay.commit(1)
    replay.begin(2)
    replay.site(EVIL, "refused", EVIL, last=1)
    replay.site("other", EVIL)
    replay.event("alarm", EVIL, EVIL)
    replay.event("excluded", EVIL, EVIL)
    replay.event(EVIL, "")
    replay.write(study=EVIL, run=EVIL, why=EVIL)
    for phase in ("running", "paused", "failed", "finished", EVIL):
        replay.write(phase=phase)
        found = viewed(renderer, replay.folder)
        assert "&lt;script&gt;" in found["now"] + found["log"]


def test_a_hostile_reason_in_a_record(renderer: Renderer, three: Made, tmp_path: Path) -> None:
    first = {**three.rounds[0], "excluded": {"village": f"{EVIL}\u202e"}}
    first["sites"] = {name: row for name, row in first["sites"].items() if name != "village"}
    folder = Replay(replace(three, rounds=[first, *three.rounds[1:]]), tmp_path / "run")
    folder.commit(1)
    found = viewed(renderer, folder.folder)
    assert "&lt;script&gt;" in found["part-travelled"]
    assert "\u202e" not in found["part-travelled"] + found["now"]


@pytest.mark.parametrize(
    ("phase", "words"),
    [("paused", ("The run is paused", "Too few good", "What to do")), ("failed", ("The run has failed", "resume"))],
)
def test_what_needs_somebody_is_an_alarm(renderer: Renderer, replay: Replay, phase: str, words: Sequence[str]) -> None:
    replay.begin(1)
    assert not viewed(renderer, replay.folder)["alarms"]
    replay.write(phase=phase, why="too few good answers")
    assert all(word in viewed(renderer, replay.folder)["alarms"] for word in words)


def test_an_alarm_of_an_earlier_round_steps_back(renderer: Renderer, replay: Replay) -> None:
    replay.begin(1)
    replay.event("alarm", "revoked", "north")
    assert '<div class="alarm">' in viewed(renderer, replay.folder)["alarms"]
    replay.begin(2)
    alarms = viewed(renderer, replay.folder)["alarms"]
    assert '<div class="alarm">' not in alarms
    assert "Earlier alarms: 1" in alarms


def test_damage_is_an_alarm(renderer: Renderer, replay: Replay) -> None:
    (replay.folder / "rounds.jsonl").write_text("{}\n")
    assert "line 1 is no record of a round" in viewed(renderer, replay.folder)["alarms"]


def test_many_sites_fold(renderer: Renderer, replay: Replay, fifty_states: dict[str, str]) -> None:
    for name, state in fifty_states.items():
        replay.state["sites"][name] = {"state": state}
    replay.write()
    assert "The other 29 sites" in viewed(renderer, replay.folder)["now"]


@pytest.fixture
def fifty_states() -> dict[str, str]:
    """Fifty sites more."""
    return {f"site-{i:02d}": ("working", "away", "refused")[i % 3] for i in range(50)}


def test_only_what_changed_is_sent(replay: Replay) -> None:
    board = Board(replay.folder.parent, Renderer())
    name = replay.folder.name
    first = told(board, name)
    replay.begin(1)
    replay.commit(1)
    second = told(board, name)
    replay.site("north", "working")
    third = told(board, name)
    assert {f.id for f in board.since(name, third, second.version)} == {"clock", "now"}
    assert {f.id for f in board.since(name, third, first.version)} >= {"phase", "clock", "part-rounds"}
    assert board.since(name, third, third.version) == []
    for unknown in ("", "0" * 24, "'"):
        assert board.since(name, third, unknown) == list(third.fragments)


def told(board: Board, name: str) -> View:
    """The page of a run that is there."""
    view = board.run(name)
    assert view is not None
    return view


def test_a_name_is_looked_up_and_never_made_into_a_path(replay: Replay, tmp_path: Path) -> None:
    outside = replay.made.write(tmp_path / "outside")
    board = Board(replay.folder.parent, Renderer())
    for name in ("../outside", str(outside), "..", ".", "", "made-0a1b2c3d/", "made-0a1b2c3d/../../outside"):
        assert board.folder(name) is None
    assert board.folder("made-0a1b2c3d") == replay.folder


def test_runs_may_be_given_as_a_function(replay: Replay) -> None:
    known: list[Any] = []
    board = Board(lambda: known, Renderer())
    assert (board.on(), "No run has been wanted yet" in board.runs().fragments[0].html) == (None, True)
    known.append(replay.folder)
    assert board.on() == "made-0a1b2c3d"
    assert "/runs/made-0a1b2c3d" in board.runs().fragments[0].html
    replay.write(phase="stopped")
    assert board.on() is None
