"""What a run must not forget, in one SQLite file: a round is committed whole, or has not happened.

The journal is the truth; ``ledger.jsonl`` and ``rounds.jsonl`` are written from it and mended from it on resume.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyclinic.core import files, ledger
from polyclinic.core.errors import RunError
from polyclinic.core.update import Tensors, decode, encode

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE state (
    id INTEGER PRIMARY KEY CHECK (id = 0), round INTEGER NOT NULL, tensors BLOB NOT NULL, memory BLOB NOT NULL
);
CREATE TABLE rounds (round INTEGER PRIMARY KEY, record TEXT NOT NULL);
CREATE TABLE told (site TEXT, name TEXT, statistic BLOB NOT NULL, PRIMARY KEY (site, name));
CREATE TABLE results (name TEXT PRIMARY KEY, result TEXT NOT NULL);
CREATE TABLE ledger (sequence INTEGER PRIMARY KEY, line TEXT NOT NULL);
CREATE TABLE keys (name TEXT PRIMARY KEY, key BLOB NOT NULL);
"""


@dataclass(frozen=True)
class State:
    """The federation after ``round`` rounds: its global tensors and the server step's memory."""

    round: int
    tensors: Tensors
    memory: Tensors


class Journal:
    """One run's journal. Use ``create`` or ``open``; ``close`` when done.

    Errors of the file system arrive as RunError; the file is never left between two rounds.
    """

    def __init__(self, connection: sqlite3.Connection, folder: Path | None, clock: Callable[[], float]) -> None:
        self._db, self._folder, self._clock = connection, folder, clock

    @staticmethod
    def begun(folder: Path) -> bool:
        """Whether ``folder`` holds a journal; one that was killed while it was being created had not begun.

        Raises:
            RunError: there is a file of that name that is no journal.
        """
        path = folder / "journal"
        if not path.is_file():
            return False
        try:
            connection = _connect(path)
            found = connection.execute("SELECT count(*) FROM sqlite_master WHERE name = 'ledger'").fetchone()
            connection.close()
        except sqlite3.DatabaseError as failure:
            raise RunError(f"is no journal: {failure}", where=str(path), remedy="restore it from a backup") from failure
        return bool(found[0])

    @staticmethod
    def create(folder: Path | None, meta: Mapping[str, str], clock: Callable[[], float] = time.time) -> Journal:
        """A new journal in ``folder``, or in memory (None) for a run that leaves no trace."""
        if folder is not None and Journal.begun(folder):
            raise RunError("holds a run already", where=str(folder), remedy="resume it, or choose another folder")
        journal = Journal(_connect(folder / "journal" if folder else None), folder, clock)
        with journal._commit() as db:
            for statement in _SCHEMA.split(";\n"):
                db.execute(statement)
            db.executemany("INSERT INTO meta VALUES (?, ?)", meta.items())
        return journal

    @staticmethod
    def open(folder: Path, clock: Callable[[], float] = time.time) -> Journal:
        """The journal of a run that was begun; what a crash left half-written beside it is mended."""
        if not Journal.begun(folder):
            raise RunError("holds no run", where=str(folder), remedy="check the folder's name")
        journal = Journal(_connect(folder / "journal"), folder, clock)
        journal._project()
        return journal

    def close(self) -> None:
        """Lets go of the file."""
        self._db.close()

    @property
    def meta(self) -> dict[str, str]:
        """What the run was created with."""
        return dict(self._db.execute("SELECT key, value FROM meta"))

    def state(self) -> State | None:
        """The last committed state; None before the first."""
        row = self._db.execute("SELECT round, tensors, memory FROM state").fetchone()
        return State(row[0], decode(row[1]), decode(row[2])) if row else None

    def rounds(self) -> list[dict[str, Any]]:
        """Records of the committed rounds, in order."""
        return [json.loads(row[0]) for row in self._db.execute("SELECT record FROM rounds ORDER BY round")]

    def told(self, name: str) -> list[tuple[str, bytes]]:
        """(site, encoded statistic) of what sites told under ``name``, by site."""
        return self._db.execute("SELECT site, statistic FROM told WHERE name = ? ORDER BY site", (name,)).fetchall()

    def told_by(self) -> set[str]:
        """Sites that told anything about their data."""
        return {row[0] for row in self._db.execute("SELECT DISTINCT site FROM told")}

    def result(self, name: str) -> Any:
        """A committed result (None if there is none yet)."""
        row = self._db.execute("SELECT result FROM results WHERE name = ?", (name,)).fetchone()
        return json.loads(row[0]) if row else None

    def key(self, name: str) -> bytes | None:
        """A secret that was committed and not yet dropped."""
        row = self._db.execute("SELECT key FROM keys WHERE name = ?", (name,)).fetchone()
        return bytes(row[0]) if row else None

    def entries(self, kind: str) -> Iterator[ledger.Entry]:
        """The ledger's entries of one kind, in order."""
        for (line,) in self._db.execute("SELECT line FROM ledger ORDER BY sequence"):
            found = ledger.Entry(**json.loads(line))
            if found.kind == kind:
                yield found

    def head(self) -> str:
        """Digest of the ledger's last entry: whoever knows it can tell whether the ledger was rewritten."""
        row = self._db.execute("SELECT line FROM ledger ORDER BY sequence DESC LIMIT 1").fetchone()
        return str(json.loads(row[0])["digest"]) if row else ledger.START

    def commit(
        self,
        *,
        state: State | None = None,
        record: Mapping[str, Any] | None = None,
        told: Iterable[tuple[str, str, bytes]] = (),
        results: Mapping[str, Any] | None = None,
        entries: Iterable[tuple[str, Mapping[str, Any]]] = (),
        keys: Mapping[str, bytes | None] | None = None,
    ) -> None:
        """All of it, or none: state, a round's record, (site, name, statistic) told, results, ledger (kind, body).

        ``keys``: secrets by name; None drops one, and overwrites it.
        """
        with self._commit() as db:
            if state is not None:
                row = (state.round, encode(state.tensors), encode(state.memory))
                db.execute("INSERT OR REPLACE INTO state VALUES (0, ?, ?, ?)", row)
            if record is not None:
                db.execute("INSERT INTO rounds VALUES (?, ?)", (record["round"], json.dumps(record, allow_nan=False)))
            db.executemany("INSERT OR REPLACE INTO told VALUES (?, ?, ?)", list(told))
            for name, result in (results or {}).items():
                db.execute("INSERT OR REPLACE INTO results VALUES (?, ?)", (name, json.dumps(result, allow_nan=False)))
            for name, key in (keys or {}).items():
                db.execute("DELETE FROM keys WHERE name = ?", (name,))
                db.executemany("INSERT INTO keys VALUES (?, ?)", [] if key is None else [(name, key)])
            self._extend_ledger(db, entries)
        self._project()

    def _extend_ledger(self, db: sqlite3.Connection, entries: Iterable[tuple[str, Mapping[str, Any]]]) -> None:
        row = db.execute("SELECT line FROM ledger ORDER BY sequence DESC LIMIT 1").fetchone()
        last = ledger.Entry(**json.loads(row[0])) if row else None
        for kind, body in entries:
            last = ledger.entry(last, kind, body, self._clock())
            db.execute("INSERT INTO ledger VALUES (?, ?)", (last.sequence, last.line()))

    @contextmanager
    def _commit(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                yield self._db
        except sqlite3.DatabaseError as failure:
            raise RunError(
                f"the journal cannot be written: {failure}",
                where=str(self._folder),
                remedy="free some space and resume; what was committed before is intact",
            ) from failure

    def _project(self) -> None:
        """Brings ledger.jsonl and rounds.jsonl to what the journal says."""
        if self._folder is None:
            return
        _append_missing(self._folder / "ledger.jsonl", self._lines("SELECT line FROM ledger ORDER BY sequence"))
        _append_missing(self._folder / "rounds.jsonl", self._lines("SELECT record FROM rounds ORDER BY round"))

    def _lines(self, query: str) -> list[bytes]:
        return [f"{row[0]}\n".encode() for row in self._db.execute(query)]


def _connect(path: Path | None) -> sqlite3.Connection:
    connection = sqlite3.connect(path or ":memory:", isolation_level=None)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA secure_delete = ON")
    return connection


def _append_missing(path: Path, lines: list[bytes]) -> None:
    """Appends the lines that ``path`` lacks; rewrites it if what it holds is not a beginning of ``lines``."""
    wanted = b"".join(lines)
    with files.explained(path):
        present = path.read_bytes() if path.exists() else b""
        if present == wanted:
            return
        if not wanted.startswith(present) or not present:
            files.write(path, wanted)
            return
        with path.open("ab") as out:
            out.write(wanted[len(present) :])
            out.flush()
            os.fsync(out.fileno())
