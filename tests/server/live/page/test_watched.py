"""A run folder is read as it grows, mended or damaged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from polyclinic.server.live.page import watched
from polyclinic.server.live.page.watched import Watched
from polyclinic.server.report import data, partial
from tests.server.live.page.replay import Replay, put
from tests.server.report.conftest import Made


def test_nothing_is_read_again_until_something_changes(replay: Replay, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watched(replay.folder)
    first = watch.look()
    monkeypatch.setattr(Path, "read_bytes", lambda _: pytest.fail("read again"))
    assert watch.look() is first


def test_evidence_stays_the_same_object_while_only_live_changes(replay: Replay) -> None:
    watch = Watched(replay.folder)
    replay.begin(1)
    replay.commit(1)
    first = watch.look()
    replay.site("north", "working")
    second = watch.look()
    assert second is not first
    assert second.evidence is first.evidence


def test_growing_gives_what_reading_at_once_gives(replay: Replay) -> None:
    watch = Watched(replay.folder)
    for number in range(1, 5):
        replay.begin(number)
        replay.commit(number)
        grown = watch.look().evidence
        rows = replay.made.rounds[:number]
        names = list(replay.state["sites"])
        once = partial.partial(grown.study, rows, {"study": "made", "rounds": 4}, names, replay.made.study)
        assert grown == once
        assert [one.number for one in grown.rounds] == list(range(1, number + 1))


def test_half_a_line_waits_for_its_other_half(replay: Replay) -> None:
    line = json.dumps(replay.made.rounds[0]) + "\n"
    watch, path = Watched(replay.folder), replay.folder / "rounds.jsonl"
    path.write_text(line[:100])
    assert (watch.look().evidence.rounds, watch.look().troubles) == ((), ())
    with path.open("a") as out:
        out.write(line[100:])
    assert [one.number for one in watch.look().evidence.rounds] == [1]


def test_a_mended_file_is_read_anew(replay: Replay) -> None:
    watch, path = Watched(replay.folder), replay.folder / "rounds.jsonl"
    lines = [json.dumps(row) + "\n" for row in replay.made.rounds]
    path.write_text("".join(lines[:2]))
    assert len(watch.look().evidence.rounds) == 2
    put(path, lines[0])
    assert len(watch.look().evidence.rounds) == 1
    put(path, "".join([lines[0], *lines[2:]]))
    assert [one.number for one in watch.look().evidence.rounds] == [1, 3, 4]


def test_a_damaged_line_is_named_and_can_be_mended(replay: Replay) -> None:
    watch, path = Watched(replay.folder), replay.folder / "rounds.jsonl"
    lines = [json.dumps(row) + "\n" for row in replay.made.rounds]
    path.write_text(lines[0] + '{"round": "x"}\n' + lines[2])
    seen = watch.look()
    assert "rounds.jsonl cannot be read: line 2" in seen.troubles[0]
    assert len(seen.evidence.rounds) == 1
    put(path, "".join(lines))
    assert (len(watch.look().evidence.rounds), watch.look().troubles) == (4, ())


@pytest.mark.parametrize("name", ["live.json", "summary.json", "study.toml"])
@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"sites": 3}'])
def test_a_damaged_file_is_named_and_what_was_there_stands(replay: Replay, name: str, content: bytes) -> None:
    watch = Watched(replay.folder)
    replay.begin(1)
    before = watch.look()
    (replay.folder / name).write_bytes(content)
    seen = watch.look()
    if (name, content) != ("live.json", b'{"sites": 3}'):
        assert [text.startswith(f"{name} cannot be read: ") for text in seen.troubles] == [True]
        assert seen.live == before.live
    assert seen.evidence == before.evidence or name == "live.json"


def test_a_file_that_is_too_big_is_not_read(replay: Replay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(watched.CAPS, "live.json", 10)
    assert Watched(replay.folder).look().troubles == ("live.json cannot be read: it is too big.",)


def test_the_end_is_what_the_report_is_made_of(replay: Replay) -> None:
    watch = Watched(replay.folder)
    for number in range(1, 5):
        replay.commit(number)
    assert not watch.look().evidence.finished
    replay.finish()
    seen = watch.look()
    assert seen.report
    assert seen.evidence == data.evidence(
        seen.evidence.study, replay.made.summary, replay.made.rounds, replay.made.study
    )


def test_a_simulation_has_no_live_json(three: Made, tmp_path: Path) -> None:
    folder = three.write(tmp_path / "simulated")
    seen = Watched(folder).look()
    assert (seen.live.phase, seen.live.study, seen.live.rounds) == ("finished", "made", 4)
    (folder / "summary.json").unlink()
    assert Watched(folder).look().live.phase == "running"
    (folder / "rounds.jsonl").unlink()
    assert Watched(folder).look().live.phase == "waiting"


def test_a_glance_leaves_the_records_unread(replay: Replay, monkeypatch: pytest.MonkeyPatch) -> None:
    replay.begin(2)
    replay.commit(1)
    with monkeypatch.context() as patched:
        patched.setattr(watched, "more", lambda *_: pytest.fail("the records were read"))
        watch = Watched(replay.folder)
        found = watch.glance()
    assert (found.live.round, found.begun, found.report) == (2, True, False)
    assert len(watch.look().evidence.rounds) == 1
    replay.write(round=3)
    assert watch.glance().live.round == 3
    assert watch.look().live.round == 3


def test_files_that_go_away(replay: Replay) -> None:
    watch = Watched(replay.folder)
    replay.commit(1)
    watch.look()
    (replay.folder / "rounds.jsonl").unlink()
    (replay.folder / "live.json").unlink()
    assert watch.look().evidence.rounds == ()
