"""What a stream sends, to whom, and when it ends."""

from __future__ import annotations

import json
import re
import time

import pytest

from polyclinic.server.live.page import stream
from tests.server.live.page.chromium import eventually
from tests.server.live.page.replay import Replay, Stream, get, served

RUN = "/runs/made-0a1b2c3d"


def test_a_stream_sends_what_changes(port: int, replay: Replay) -> None:
    with Stream(port, f"{RUN}/events") as found:
        hello = found.until("hello")
        assert hello[0] == {"retry": "1000"}
        assert abs(json.loads(hello[1]["data"])["now"] - time.time()) < 60
        assert len(found.batch()) == 15
        replay.begin(1)
        sent: dict[str, str] = {}
        while "phase" not in sent:
            sent |= found.batch()
        assert "Round 1 of 4" in sent["phase"]
        assert "part-rounds" not in sent
        replay.commit(1)
        while "part-rounds" not in sent:
            sent |= found.batch()
        assert "<svg" in sent["part-rounds"]
        raw = found.raw
    assert b"\r" not in raw
    assert raw.isascii()


def test_only_the_last_of_a_batch_has_an_id(port: int) -> None:
    with Stream(port, f"{RUN}/events") as found:
        blocks = []
        for block in found.blocks():
            blocks.append(block)
            if "id" in block:
                break
    fragments = [block for block in blocks if block.get("event") == "fragment"]
    assert ["id" in block for block in fragments] == [False] * 14 + [True]


def test_who_comes_back_is_sent_what_changed_since(port: int, replay: Replay) -> None:
    with Stream(port, f"{RUN}/events") as found:
        found.batch()
        known = found.version
    replay.site("north", "working")
    for path, headers in ((f"{RUN}/events", {"Last_Event_ID": known}), (f"{RUN}/events?seen={known}", {})):
        with Stream(port, path, **headers) as found:
            assert set(found.batch()) == {"clock", "now"}
    with Stream(port, f"{RUN}/events?seen=elder", Last_Event_ID=known) as found:
        assert set(found.batch()) == {"clock", "now"}
    with Stream(port, f"{RUN}/events", Last_Event_ID="never-heard-of") as found:
        assert len(found.batch()) == 15


def test_a_page_knows_its_own_version(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "BEAT", 0.6)
    version = re.search(r'data-version="(\w+)"', get(port, RUN).text)
    assert version
    with Stream(port, f"{RUN}/events?seen={version.group(1)}") as found:
        assert [block.get("event") for block in found.until("beat")] == [None, "hello", "", "beat"] or found.raw
        assert b"event: fragment" not in found.raw
        assert b"\n: beat\n\nevent: beat\n" in found.raw


def test_the_version_outlives_the_server(replay: Replay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "BEAT", 0.6)
    with served(replay.folder.parent) as port, Stream(port, f"{RUN}/events") as found:
        found.batch()
        version = found.version
    with served(replay.folder.parent) as port, Stream(port, f"{RUN}/events", Last_Event_ID=version) as found:
        found.until("beat")
        assert b"event: fragment" not in found.raw


def test_sixteen_streams_and_no_more(port: int) -> None:
    open_ones = [Stream(port, f"{RUN}/events") for _ in range(16)]
    try:
        assert {one.status for one in open_ones} == {200}
        answer = get(port, f"{RUN}/events")
        assert (answer.status, answer.headers["retry-after"]) == (503, "5")
        assert get(port, RUN).status == 200
        open_ones.pop().close()
        eventually(lambda: reopened(port))
    finally:
        for one in open_ones:
            one.close()


def reopened(port: int) -> bool:
    """Whether one more stream has room."""
    with Stream(port, f"{RUN}/events") as one:
        return one.status == 200


def test_the_list_of_runs_is_live_too(port: int, replay: Replay) -> None:
    with Stream(port, "/events") as found:
        assert "Waiting to begin" in found.batch()["runs"]
        replay.begin(2)
        assert "Round 2 of 4" in found.batch()["runs"]


def test_a_stream_ends_with_the_server_and_not_before_it_must(replay: Replay) -> None:
    with served(replay.folder.parent) as port:
        one = Stream(port, f"{RUN}/events")
        one.batch()
        began = time.monotonic()
    assert time.monotonic() - began < 5
    assert list(one.blocks()) == []
    one.close()


def test_a_run_that_goes_away_ends_its_stream(port: int, replay: Replay) -> None:
    with Stream(port, f"{RUN}/events") as found:
        found.batch()
        (replay.folder / "study.toml").unlink()
        assert list(found.blocks()) == []
