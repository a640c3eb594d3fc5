"""Several processes, a book that fails, a process that dies: nothing is lost, nothing is told twice."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from polyclinic.core.book import Book, verify_book
from polyclinic.core.errors import EngineError, RunError, TrustError
from polyclinic.core.signing import SigningKey
from polyclinic.server.governance.registry import Registry


def test_notes_reach_the_book_after_the_change(tmp_path: Path) -> None:
    path, seen = tmp_path / "registry.db", []

    def note(kind: str, body: Mapping[str, Any]) -> None:
        with sqlite3.connect(path) as other:  # another connection sees what is committed
            seen.append((kind, body["site"], other.execute("SELECT count(*) FROM invitations").fetchone()[0]))
        other.close()

    registry = Registry(path, note=note)
    registry.invite("north", 60.0)
    assert seen == [("invited", "north", 1)]


def test_what_is_undone_is_not_told(tmp_path: Path) -> None:
    told: list[str] = []
    registry = Registry(tmp_path / "registry.db", note=lambda kind, body: told.append(kind))

    def change() -> None:
        with registry.change() as db:
            registry.note(db, "never", {})
            raise TrustError("no")

    with pytest.raises(TrustError, match="no"):
        change()
    registry.invite("north", 60.0)
    assert told == ["invited"]


def test_a_book_that_fails_is_told_later_and_once(tmp_path: Path) -> None:
    told: list[str] = []

    def fails(kind: str, body: Mapping[str, Any]) -> None:
        raise RunError("the disk is full")

    registry = Registry(tmp_path / "registry.db", note=fails)
    with pytest.raises(RunError, match="full"):
        registry.invite("north", 60.0)
    assert registry.invited()[0][0] == "north"  # the change itself stands
    registry.close()
    without = Registry(tmp_path / "registry.db")  # a process without a book leaves the notes to others
    without.invite("south", 60.0)
    without.close()
    Registry(tmp_path / "registry.db", note=lambda kind, body: told.append(body["site"])).close()
    Registry(tmp_path / "registry.db", note=lambda kind, body: told.append(body["site"])).close()
    assert told == ["north", "south"]


def test_threads_and_processes_share_registry_and_book(tmp_path: Path) -> None:
    key = SigningKey.new()
    key.save(tmp_path / "signing.key")
    program = (
        "import sys; from pathlib import Path\n"
        "from polyclinic.core.book import Book\n"
        "from polyclinic.core.signing import SigningKey\n"
        "from polyclinic.server.governance.registry import Registry\n"
        "home = Path(sys.argv[1])\n"
        "book = Book(home / 'book', SigningKey.load(home / 'signing.key'))\n"
        "registry = Registry(home / 'registry.db', note=book.append)\n"
        "for number in range(15): registry.invite(f'{sys.argv[2]}{number}', 60.0)\n"
        "registry.close(); book.close()\n"
    )
    command = [sys.executable, "-W", "error", "-c", program, str(tmp_path)]
    others = [subprocess.Popen([*command, name]) for name in ("a", "b")]  # both make file and book, at the same time
    book = Book(tmp_path / "book", key)
    registry = Registry(tmp_path / "registry.db", note=book.append)
    threads = [
        threading.Thread(target=lambda name=name: [registry.invite(f"{name}{n}", 60.0) for n in range(15)])
        for name in ("c", "d")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [other.wait(timeout=60) for other in others] == [0, 0]
    invited = {f"{name}{number}" for name in "abcd" for number in range(15)}
    assert {name for name, _ in registry.invited()} == invited
    registry.close()
    book.close()
    entries = verify_book(tmp_path / "book", key.public)
    assert sorted(entry.body["site"] for entry in entries) == sorted(invited)


def test_a_killed_process_leaves_whole_changes_whose_notes_are_told_once(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path\n"
        "from polyclinic.server.governance.registry import Registry\n"
        "def note(kind, body):\n"
        "    if body['site'] == 'site7': os.kill(os.getpid(), 9)\n"
        "registry = Registry(Path(sys.argv[1]), note=note)\n"
        "for number in range(20): registry.invite(f'site{number}', 60.0)\n"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(tmp_path / "registry.db")], check=False)
    assert killed.returncode == -9
    told: list[str] = []
    registry = Registry(tmp_path / "registry.db", note=lambda kind, body: told.append(body["site"]))
    assert told == ["site7"]
    assert {name for name, _ in registry.invited()} == {f"site{number}" for number in range(8)}


def test_the_file_is_its_owners(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry.db")
    registry.invite("north", 60.0)
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0


def test_it_is_on_the_disk_when_a_change_returns(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry.db")
    assert registry.rows("PRAGMA synchronous") == [(2,)]  # FULL
    assert registry.rows("PRAGMA journal_mode") == [("wal",)]


def test_a_backup_is_whole(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry.db")
    registry.invite("north", 60.0)
    registry.backup(tmp_path / "copy.db")
    registry.invite("south", 60.0)
    copy = Registry(tmp_path / "copy.db")
    assert [name for name, _ in copy.invited()] == ["north"]
    with pytest.raises(EngineError, match="cannot be used"):
        registry.backup(tmp_path / "copy.db")


def test_no_registry(tmp_path: Path) -> None:
    (tmp_path / "registry.db").write_bytes(b"no database at all, but long enough" * 100)
    for path in (tmp_path / "registry.db", tmp_path / "nowhere" / "registry.db"):
        with pytest.raises(EngineError, match="cannot be used") as raised:
            Registry(path)
        assert raised.value.where == str(path)
