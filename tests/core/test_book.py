"""A book keeps one chain whoever writes, is mended after a crash, and shows whatever was done to it."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st

from polyclinic.core import ledger
from polyclinic.core.book import EMPTY, Book, follow, read_entries, verify_book
from polyclinic.core.errors import RunError, TrustError
from polyclinic.core.signing import SigningKey

KEY = SigningKey.new()


def clock() -> Callable[[], float]:
    times: Iterator[float] = iter(1.5 + i for i in range(10_000))
    return lambda: next(times)


def written(folder: Path, count: int = 5) -> Path:
    book = Book(folder, KEY, clock())
    for i in range(count):
        book.append("reply", {"round": i, "name": "ä"})
    book.close()
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return (written(tmp_path_factory.mktemp("whole")) / "ledger.jsonl").read_bytes()


def test_lines_can_be_checked_by_hand(tmp_path: Path) -> None:
    lines = (written(tmp_path) / "ledger.jsonl").read_text().splitlines()
    before = "0" * 64
    for number, line in enumerate(lines):
        found = json.loads(line)
        parts = [found[key] for key in ("sequence", "time", "kind", "body", "previous")]
        by_hand = json.dumps(parts, separators=(",", ":"), ensure_ascii=False, sort_keys=True)
        assert (found["sequence"], found["previous"]) == (number, before)
        assert found["digest"] == hashlib.sha256(by_hand.encode()).hexdigest()
        message = b"polyclinic/ledger\x00" + found["digest"].encode()
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(KEY.public)).verify(bytes.fromhex(found["signature"]), message)
        before = found["digest"]
    assert [entry.body["round"] for entry in verify_book(tmp_path, KEY.public, (4, before))] == [0, 1, 2, 3, 4]


def test_it_tells_what_it_holds_and_goes_on(tmp_path: Path) -> None:
    book = Book(tmp_path / "new" / "book", KEY, clock())
    assert (book.head(), book.entries(), read_entries(tmp_path / "none")) == (EMPTY, [], [])
    first, second = book.append("reply", {"round": 1}), book.append("refusal", {"why": "no"})
    book.close()
    book = Book(tmp_path / "new" / "book", KEY, clock())
    third = book.append("reply", {"round": 2})
    assert book.entries() == [first, second, third] == read_entries(book.folder, public=KEY.public)
    assert book.entries(0) == [second, third]
    assert book.entries(-1, ["reply"]) == [first, third] == read_entries(book.folder, -1, ["reply"])
    assert book.head() == (2, third.digest)
    assert third.previous == second.digest
    book.close()


def test_another_owner_is_refused(tmp_path: Path) -> None:
    written(tmp_path)
    other = SigningKey.new()
    with pytest.raises(TrustError, match="not signed by the book's owner"):
        Book(tmp_path, other)
    with pytest.raises(TrustError, match="not signed"):
        read_entries(tmp_path, public=other.public)
    with pytest.raises(RunError, match="line 1: is not signed"):
        verify_book(tmp_path, other.public)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda lines: lines[:1] + lines[2:], 2),
        (lambda lines: [lines[1], lines[0], *lines[2:]], 1),
        (lambda lines: [*lines[:3], lines[2], *lines[3:]], 4),
        (lambda lines: [*lines, lines[0]], 6),
        (lambda lines: [*lines, b"\n"], 6),
        (lambda lines: [*lines, b"{}\n"], 6),
        (lambda lines: [*lines[:4], lines[4][:-1]], 5),
        (lambda lines: [*lines[:4], lines[4][:40]], 5),
        (lambda lines: [lines[0].replace(b":0,", b":false,"), *lines[1:]], 1),
        (lambda lines: [*lines[:2], b" " + lines[2], *lines[3:]], 3),
    ],
)
def test_the_first_bad_line_is_named(
    whole: bytes, change: Callable[[list[bytes]], list[bytes]], line: int, tmp_path: Path
) -> None:
    (tmp_path / "ledger.jsonl").write_bytes(b"".join(change(whole.splitlines(keepends=True))))
    with pytest.raises(RunError, match=rf"ledger\.jsonl: line {line}: "):
        verify_book(tmp_path, KEY.public)


@settings(max_examples=800, deadline=None)
@given(st.data())
def test_any_flipped_byte_is_named_by_its_line(
    whole: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.getbasetemp()
    place = data.draw(st.integers(0, len(whole) - 1))
    body = bytearray(whole)
    body[place] ^= data.draw(st.integers(1, 255))
    (folder / "ledger.jsonl").write_bytes(body)
    line = whole[:place].count(b"\n") + 1
    with pytest.raises(RunError, match=rf"ledger\.jsonl: line {line}: "):
        verify_book(folder, KEY.public)


def test_a_signature_has_one_spelling(whole: bytes, tmp_path: Path) -> None:
    first, rest = whole.split(b"\n", 1)
    found = json.loads(first)
    spelled = first.replace(found["signature"].encode(), found["signature"].upper().encode())
    (tmp_path / "ledger.jsonl").write_bytes(spelled + b"\n" + rest)
    with pytest.raises(RunError, match="line 1: is not signed"):
        verify_book(tmp_path, KEY.public)


def test_missing_last_lines_are_seen_by_who_knows_a_head(whole: bytes, tmp_path: Path) -> None:
    lines = whole.splitlines(keepends=True)
    (tmp_path / "ledger.jsonl").write_bytes(b"".join(lines[:3]))
    assert len(verify_book(tmp_path, KEY.public)) == 3
    known = json.loads(lines[4])["digest"]
    with pytest.raises(RunError, match=r"line 4: ends after 3 lines, but 5 are known"):
        verify_book(tmp_path, KEY.public, (4, known))
    with pytest.raises(RunError, match="line 2: is not the line that was known"):
        verify_book(tmp_path, KEY.public, (1, known))
    with pytest.raises(RunError, match="cannot be read"):
        verify_book(tmp_path / "none", KEY.public)


def test_a_line_signed_anew_by_the_owner_is_seen_by_who_knows_a_head(whole: bytes, tmp_path: Path) -> None:
    (tmp_path / "ledger.jsonl").write_bytes(whole)
    head = verify_book(tmp_path, KEY.public)[-1]
    book = Book(tmp_path / "again", KEY, clock())
    for i in range(6):
        book.append("reply", {"round": i + 1})
    book.close()
    with pytest.raises(RunError, match=r"line 5: .*rewritten"):
        verify_book(tmp_path / "again", KEY.public, (4, head.digest))


@pytest.mark.parametrize("kept", [0, 1, 200, 373, 374, 375, 500])
def test_a_crash_before_the_copy_is_mended(kept: int, tmp_path: Path) -> None:
    """Whatever prefix of ledger.jsonl reached the disk: the rest is written, nothing is said to be altered."""
    before = (written(tmp_path) / "ledger.jsonl").read_bytes()
    (tmp_path / "ledger.jsonl").write_bytes(before[:kept])
    Book(tmp_path, KEY).close()
    assert (tmp_path / "ledger.jsonl").read_bytes() == before
    (tmp_path / "ledger.jsonl").write_bytes(before[:kept])
    book = Book(tmp_path, KEY)
    (tmp_path / "ledger.jsonl").write_bytes(before[:kept])
    book.append("late", {})
    book.close()
    assert [entry.kind for entry in verify_book(tmp_path, KEY.public)] == ["reply"] * 5 + ["late"]


def test_a_copy_that_was_altered_is_put_aside_and_told_of(tmp_path: Path) -> None:
    before = (written(tmp_path) / "ledger.jsonl").read_bytes()
    altered = before[:-10] + bytes(10)
    (tmp_path / "ledger.jsonl").write_bytes(altered)
    Book(tmp_path, KEY).close()
    assert (tmp_path / "ledger.aside-5.jsonl").read_bytes() == altered
    assert verify_book(tmp_path, KEY.public)[-1].body["aside"] == "ledger.aside-5.jsonl"


def test_an_older_book_under_a_longer_copy_is_refused(tmp_path: Path) -> None:
    written(tmp_path)
    (tmp_path / "book").unlink()
    with pytest.raises(RunError, match=r"ledger\.jsonl: knows more than the book"):
        Book(tmp_path, KEY)


def test_a_file_that_is_no_book(tmp_path: Path) -> None:
    (tmp_path / "book").write_bytes(b"no database at all, but long enough to look at" * 20)
    with pytest.raises(RunError, match="cannot be written: file is not a database"):
        Book(tmp_path, KEY)
    with pytest.raises(RunError, match="cannot be read"):
        read_entries(tmp_path)


def many(folder: Path, name: int) -> None:
    book = Book(folder, KEY)
    for i in range(25):
        book.append("reply", {"by": name, "number": i})
    book.close()


def test_several_processes_write_one_chain(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=many, args=(tmp_path, name)) for name in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = [(entry.body["by"], entry.body["number"]) for entry in verify_book(tmp_path, KEY.public)]
    assert sorted(found) == [(name, i) for name in range(3) for i in range(25)]
    assert all([i for by, i in found if by == name] == list(range(25)) for name in range(3))


def test_killed_writers_lose_nothing_that_they_were_told_is_written(tmp_path: Path) -> None:
    KEY.save(tmp_path / "key")
    script = (
        "import sys; from pathlib import Path; from polyclinic.core.book import Book\n"
        "from polyclinic.core.signing import SigningKey\n"
        f"book = Book(Path({str(tmp_path / 'book')!r}), SigningKey.load(Path({str(tmp_path / 'key')!r})))\n"
        "while True: print(book.append('reply', {}).sequence, flush=True)"
    )
    told = -1
    for pause in (0.0, 0.013, 0.031):
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            told = int(writer.stdout.readline())
            time.sleep(pause)
            writer.kill()
            told = int((writer.stdout.read().split("\n")[-2:] or [""])[0] or told)
    Book(tmp_path / "book", KEY).close()
    entries = verify_book(tmp_path / "book", KEY.public)
    assert told <= entries[-1].sequence <= told + 1


def test_an_entry_costs_the_same_in_a_long_book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted in bytes that are read and written, not in seconds: disks differ."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    book = Book(tmp_path, KEY, clock())

    def cost() -> int:
        def count() -> int:
            figures = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
            return int(figures["rchar"]) + int(figures["wchar"])

        before = count()
        for _ in range(20):
            book.append("reply", {"round": 1})
        return count() - before

    early = cost()
    for _ in range(2000):
        book.append("reply", {"round": 1})
    assert cost() < 2 * early
    book.close()


def test_lines_are_followed_from_a_known_head() -> None:
    chain: list[ledger.Entry] = []
    for i in range(5):
        chain.append(ledger.entry(chain[-1] if chain else None, "round", {"round": i}, 2.5))
    lines = [entry.line() for entry in chain]
    assert list(follow(lines)) == chain
    assert list(follow(lines[3:], (2, chain[2].digest))) == chain[3:]
    for head, some, line in [((2, chain[1].digest), lines[3:], 4), ((1, chain[1].digest), lines[3:], 3)]:
        with pytest.raises(RunError, match=f"ledger line {line}: does not follow"):
            list(follow(some, head))
    for garbage in ("", "[]", "{}", "1e999", lines[0].replace("round", "rownd", 1), '{"sequence":' * 9000):
        with pytest.raises(RunError, match="ledger line 1"):
            list(follow([garbage]))
