"""The two boxes between a site's processes lose nothing, keep the order, and are written from one side each."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import stat
from pathlib import Path

import pytest

from polyclinic.client.outbox import Alarm, Inbox, Outbox, letter_id
from polyclinic.core.book import EMPTY, Book
from polyclinic.core.errors import RunError
from polyclinic.core.signing import Signed, SigningKey, sign

KEY = SigningKey.new()


def letter(number: int, kind: str = "refusal") -> Signed:
    return sign({"kind": kind, "number": number}, KEY)


def test_letters_wait_in_order_until_they_were_told_and_are_put_once(tmp_path: Path) -> None:
    box = Outbox(tmp_path / "outbox.db")
    assert (box.waiting(), box.count(), box.last(), box.untold()) == ([], 0, 0, set())
    for number in (1, 2, 2, 3, 1):
        box.put(letter(number))
    assert [signed for _, signed in box.waiting()] == [letter(1), letter(2), letter(3)]
    (first, _), (second, _), (third, _) = box.waiting()
    assert first < second < third == box.last()
    assert [signed for _, signed in box.waiting(first, 1)] == [letter(2)]
    box.clear([letter_id(letter(2)), "unknown"])
    assert [signed for _, signed in box.waiting()] == [letter(1), letter(3)]
    box.put(letter(2))
    assert box.count() == 2
    assert box.untold() == {letter_id(letter(1)), letter_id(letter(3))}


def test_marks_are_set_with_the_letters_or_not_at_all(tmp_path: Path) -> None:
    box = Outbox(tmp_path / "outbox.db")
    assert box.mark("posted") == -1
    box.put_all([letter(1)], {"posted": 7})
    assert (box.count(), box.mark("posted")) == (1, 7)
    with pytest.raises(RunError):
        box.put_all([letter(2), Signed(b"x", "y", object())], {"posted": 9})  # type: ignore[arg-type]
    assert (box.count(), box.mark("posted")) == (1, 7)


def fill(path: Path, start: int) -> None:
    for number in range(start, start + 20):
        Outbox(path).put(letter(number))


def test_several_processes_put_at_once(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=fill, args=(path, 20 * i)) for i in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert Outbox(path).untold() == {letter_id(letter(i)) for i in range(60)}


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_owner_and_group_can_read_and_nobody_else(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        Outbox(tmp_path / "outbox.db").put(letter(1))
        Inbox(tmp_path / "inbox.db").note_told("x")
        Book(tmp_path, KEY).append("start", {})
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o640}
    assert len(list(tmp_path.iterdir())) == 4


def test_what_is_no_box_is_refused(tmp_path: Path) -> None:
    (tmp_path / "outbox.db").write_bytes(b"nothing of the sort" * 100)
    with pytest.raises(RunError, match="cannot be written"):
        Outbox(tmp_path / "outbox.db").put(letter(1))
    with pytest.raises(RunError, match="cannot be read"):
        Outbox(tmp_path / "outbox.db").waiting()
    with pytest.raises(RunError, match="cannot be written"):
        Outbox(tmp_path / "none" / "outbox.db").put(letter(1))


def test_what_was_told_is_forgotten_once_the_outbox_has_dropped_it(tmp_path: Path) -> None:
    box = Inbox(tmp_path / "inbox.db")
    assert box.told() == set()
    for digest in ("a", "b", "a", "c"):
        box.note_told(digest)
    assert box.told() == {"a", "b", "c"}
    box.forget_told({"b", "d"})
    assert box.told() == {"b"}


def test_receipts_and_lines_are_kept_by_run_and_never_replaced(tmp_path: Path) -> None:
    box = Inbox(tmp_path / "inbox.db")
    assert (box.receipts("r"), box.lines("r"), box.head("r"), box.digest("r", 0), box.runs()) == (
        {},
        [],
        EMPTY,
        None,
        [],
    )
    box.add_receipts("r", {1: letter(1), 2: letter(2)})
    box.add_receipts("r", {2: letter(9), 3: letter(3)})
    assert box.receipts("r") == {1: letter(1), 2: letter(2), 3: letter(3)}
    assert box.receipts("r", 2) == {3: letter(3)}
    box.add_lines("r", [(0, "d0", "l0"), (1, "d1", "l1")])
    box.add_lines("r", [(1, "other", "other"), (2, "d2", "l2")])
    box.add_lines("", [(0, "b0", "book")])
    assert box.lines("r") == ["l0", "l1", "l2"]
    assert box.lines("r", 0, 1) == ["l1"]
    assert (box.head("r"), box.digest("r", 1), box.digest("r", 9)) == ((2, "d2"), "d1", None)
    assert box.runs() == ["", "r"]


def test_of_heads_the_latest_is_kept_and_how_long_its_line_is_waited_for(tmp_path: Path) -> None:
    box = Inbox(tmp_path / "inbox.db")
    box.set_head("south", "r", 3, letter(3), 100.0)
    box.set_head("south", "r", 2, letter(2), 110.0)
    assert box.heads() == [("south", "r", 100.0, letter(3))]
    box.set_head("south", "r", 5, letter(5), 200.0)
    assert box.heads() == [("south", "r", 100.0, letter(5))], "line 3 has not come: waited for since 100"
    box.add_lines("r", [(n, f"d{n}", "") for n in range(6)])
    box.set_head("south", "r", 6, letter(6), 300.0)
    assert box.heads() == [("south", "r", 300.0, letter(6))]


def test_a_key_is_trusted_on_first_use(tmp_path: Path) -> None:
    box = Inbox(tmp_path / "inbox.db")
    assert box.trust("south", "k1") == "k1"
    assert box.trust("south", "k2") == "k1"
    assert box.signers() == {"south": "k1"}
    box.retrust("south", "k2")
    assert box.trust("south", "k1") == "k2"


def test_an_alarm_rings_once_and_alarms_do_not_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    box = Inbox(tmp_path / "inbox.db")
    assert [box.alarm("b", 1.0), box.alarm("a", 2.0), box.alarm("b", 3.0)] == [True, True, False]
    assert box.alarms() == [Alarm("b", 1.0), Alarm("a", 2.0)]
    monkeypatch.setattr("polyclinic.client.outbox.MOST_ALARMS", 2)
    assert not box.alarm("c", 4.0)


def test_state_is_any_json(tmp_path: Path) -> None:
    box = Inbox(tmp_path / "inbox.db")
    assert box.state("hello") is None
    box.set_state("hello", {"skew": -1.5})
    box.set_state("hello", {"skew": 2})
    assert box.state("hello") == {"skew": 2}


def test_a_reader_needs_no_right_to_write(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    Outbox(path).put(letter(1))
    with sqlite3.connect(path) as other:
        other.execute("BEGIN IMMEDIATE")  # a writer is at work
        assert Outbox(path).count() == 1
    other.close()
