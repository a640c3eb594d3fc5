"""The same question gets the same bytes, or none; nothing that happens to the disk fails an answer."""

from __future__ import annotations

import logging
import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polyclinic.client.replies import Question, Replies

ASKED = Question("tiny-1", 3, "0f", "a" * 64)


def test_the_same_question_gets_the_same_bytes(tmp_path: Path) -> None:
    kept = Replies(tmp_path)
    assert kept.get(ASKED) is None
    assert kept.put(ASKED, b"sealed" * 1000)
    assert Replies(tmp_path).get(ASKED) == b"sealed" * 1000
    for other in (
        Question("tiny-2", 3, "0f", "a" * 64),
        Question("tiny-1", 2, "0f", "a" * 64),
        Question("tiny-1", 3, "0e", "a" * 64),
        Question("tiny-1", 3, "0f", "b" * 64),
    ):
        assert kept.get(other) is None
    assert kept.put(ASKED, b"")
    assert kept.get(ASKED) == b""


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
@given(st.text(), st.integers(-(2**40), 2**40), st.text(), st.text())
def test_whatever_is_asked_no_path_leaves_the_folder(
    tmp_path: Path, run: str, number: int, nonce: str, base: str
) -> None:
    try:
        run.encode()
    except UnicodeEncodeError:
        run = ""
    folder = tmp_path / "replies"
    folder.mkdir(exist_ok=True)
    asked = Question(f"../../{run}", number, f"/{nonce}", base)
    assert Replies(folder).put(asked, b"x")
    assert Replies(folder).get(asked) == b"x"
    assert [path.name for path in tmp_path.iterdir()] == ["replies"]


def test_a_damaged_file_is_a_miss(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = Replies(tmp_path)
    kept.put(ASKED, b"sealed")
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1
        path.write_bytes(damaged)
        assert kept.get(ASKED) is None
        path.write_bytes(whole[:place])
        assert kept.get(ASKED) is None
    assert "was damaged" in caplog.text
    kept.put(ASKED, b"again")
    assert kept.get(ASKED) == b"again"


def test_the_last_two_rounds_of_each_run_are_kept(tmp_path: Path) -> None:
    kept = Replies(tmp_path)
    for run in ("a", "b"):
        for number in range(1, 5):
            kept.put(Question(run, number, "", ""), f"{run}{number}".encode())
    there = {(run, n) for run in "ab" for n in range(1, 5) if kept.get(Question(run, n, "", ""))}
    assert there == {("a", 3), ("a", 4), ("b", 3), ("b", 4)}
    kept.forget("a", 4)
    assert kept.get(Question("a", 3, "", "")) is None
    assert kept.get(Question("a", 4, "", "")) == b"a4"
    assert kept.get(Question("b", 3, "", "")) == b"b3"


def test_it_does_not_grow_without_bound(tmp_path: Path) -> None:
    kept = Replies(tmp_path, most_files=3, most_bytes=2000)
    for number in range(6):
        kept.put(Question(f"run {number}", 1, "", ""), b"x")
        os.utime(max(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime_ns), ns=(0, number * 10**9))
    assert [bool(kept.get(Question(f"run {n}", 1, "", ""))) for n in range(6)] == [False] * 3 + [True] * 3
    assert kept.put(Question("large", 1, "", ""), bytes(1990))
    assert [path.stat().st_size > 1990 for path in tmp_path.iterdir()] == [True]
    assert not kept.put(Question("larger", 1, "", ""), bytes(2001))


def test_what_a_crash_left_half_written_is_dropped(tmp_path: Path) -> None:
    (tmp_path / ".x.reply.77.part").write_bytes(b"half")
    Replies(tmp_path).put(ASKED, b"sealed")
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_is_not_there_is_told_of_and_nothing_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = Replies(tmp_path / "none")
    assert not kept.put(ASKED, b"sealed")
    assert kept.get(ASKED) is None
    assert "goes out all the same" in caplog.text


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_full_disk_is_told_of_and_nothing_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", tmp_path], check=False).returncode:
        pytest.skip("cannot mount here")
    try:
        with caplog.at_level(logging.WARNING):
            assert not Replies(tmp_path).put(ASKED, bytes(2**20))
        assert "goes out all the same" in caplog.text
        assert list(tmp_path.iterdir()) == []
        assert Replies(tmp_path).put(ASKED, bytes(2**10))
    finally:
        subprocess.run(["umount", tmp_path], check=True)
