"""Two post boxes between a site's processes: agent and command line fill the outbox for the link, and the link fills
the inbox for them. Each is written from one side only: what faces the network can change nothing of what we say.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyclinic.core import files
from polyclinic.core.errors import RunError
from polyclinic.core.ledger import START
from polyclinic.core.signing import Signed

_PATIENCE = 30.0
"""Seconds for which another process that is writing is waited for."""
MOST_ALARMS = 1000
"""Alarms that are kept: who can cause them must not fill the disk."""
_OUT = """
CREATE TABLE IF NOT EXISTS letters (
    number INTEGER PRIMARY KEY AUTOINCREMENT, digest TEXT NOT NULL UNIQUE, document BLOB, signer TEXT, signature BLOB
);
CREATE TABLE IF NOT EXISTS marks (name TEXT PRIMARY KEY, value INTEGER NOT NULL);
"""
_IN = """
CREATE TABLE IF NOT EXISTS told (digest TEXT PRIMARY KEY);
CREATE TABLE IF NOT EXISTS receipts (
    run TEXT, round INTEGER, document BLOB NOT NULL, signer TEXT NOT NULL, signature BLOB NOT NULL,
    PRIMARY KEY (run, round)
);
CREATE TABLE IF NOT EXISTS lines (
    run TEXT, sequence INTEGER, digest TEXT NOT NULL, line TEXT NOT NULL, PRIMARY KEY (run, sequence)
);
CREATE TABLE IF NOT EXISTS heads (
    site TEXT, run TEXT, sequence INTEGER NOT NULL, since REAL NOT NULL, document BLOB NOT NULL,
    signer TEXT NOT NULL, signature BLOB NOT NULL, PRIMARY KEY (site, run)
);
CREATE TABLE IF NOT EXISTS signers (site TEXT PRIMARY KEY, key TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS alarms (what TEXT PRIMARY KEY, at REAL NOT NULL);
CREATE TABLE IF NOT EXISTS state (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""
_SIGNED = "document, signer, signature"


def letter_id(signed: Signed) -> str:
    """What tells one statement from another: SHA-256 of the document, in hex."""
    return hashlib.sha256(signed.document).hexdigest()


class _Box:
    """An SQLite file; each call opens it anew, so that it may be used from any thread and across forks."""

    def __init__(self, path: Path, schema: str) -> None:
        self._path, self._schema = path, schema

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        try:
            with files.explained(self._path):
                if not self._path.exists():
                    self._path.touch(0o640)
                    self._path.chmod(0o640)  # whatever this process's mask is: the other user reads it
            with closing(sqlite3.connect(self._path, isolation_level=None, timeout=_PATIENCE)) as db:
                db.execute("PRAGMA synchronous = FULL")
                with db:
                    db.execute("BEGIN IMMEDIATE")
                    for statement in self._schema.split(";\n"):
                        db.execute(statement)
                    yield db
        except sqlite3.Error as failure:
            remedy = "free some space, or mend its permissions"
            raise RunError(f"cannot be written: {failure}", where=str(self._path), remedy=remedy) from failure

    def _rows(self, query: str, *values: object) -> list[Any]:
        """Nothing, while nobody has written."""
        with files.explained(self._path):
            if not self._path.is_file() or self._path.stat().st_size == 0:
                return []
        try:
            uri = f"{self._path.absolute().as_uri()}?mode=ro"
            with closing(sqlite3.connect(uri, uri=True, isolation_level=None, timeout=_PATIENCE)) as db:
                db.execute("PRAGMA trusted_schema = OFF")
                return db.execute(query, values).fetchall()
        except sqlite3.Error as failure:
            raise RunError(f"cannot be read: {failure}", where=str(self._path)) from failure


class Outbox(_Box):
    """Statements that the coordinator is to be told, in order, each at least once."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, _OUT)

    def put(self, signed: Signed) -> None:
        """Adds a statement; the same one again changes nothing, even after it was told."""
        self.put_all([signed], {})

    def put_all(self, statements: Iterable[Signed], marks: Mapping[str, int]) -> None:
        """Adds statements and sets marks, all or nothing."""
        rows = [(letter_id(signed), signed.document, signed.signer, signed.signature) for signed in statements]
        with self._change() as db:
            query = f"INSERT OR IGNORE INTO letters (digest, {_SIGNED}) VALUES (?, ?, ?, ?)"
            db.executemany(query, rows)
            db.executemany("INSERT OR REPLACE INTO marks VALUES (?, ?)", list(marks.items()))

    def mark(self, name: str) -> int:
        """A number that was set with ``put_all``; -1 if none was."""
        found = self._rows("SELECT value FROM marks WHERE name = ?", name)
        return int(found[0][0]) if found else -1

    def waiting(self, after: int = 0, most: int = 100) -> list[tuple[int, Signed]]:
        """(number, statement) of those that are not known to have been told, with a number above ``after``."""
        query = (
            f"SELECT number, {_SIGNED} FROM letters WHERE document IS NOT NULL AND number > ? ORDER BY number LIMIT ?"
        )
        return [(row[0], Signed(*row[1:])) for row in self._rows(query, after, most)]

    def last(self) -> int:
        """Number of the last statement that was put; 0 if none was."""
        return int((self._rows("SELECT coalesce(max(number), 0) FROM letters") or [(0,)])[0][0])

    def count(self) -> int:
        """How many statements are waiting."""
        found = self._rows("SELECT count(*) FROM letters WHERE document IS NOT NULL")
        return int(found[0][0]) if found else 0

    def untold(self) -> set[str]:
        """Ids of all statements that are waiting."""
        return {row[0] for row in self._rows("SELECT digest FROM letters WHERE document IS NOT NULL")}

    def clear(self, told: Iterable[str]) -> None:
        """Drops statements that were told, by id; that they were put is remembered."""
        if rows := [(digest,) for digest in told]:
            with self._change() as db:
                query = "UPDATE letters SET document = NULL, signer = NULL, signature = NULL WHERE digest = ?"
                db.executemany(query, rows)


@dataclass(frozen=True)
class Alarm:
    """Something that must not be: a history rewritten, a key changed. ``at``: seconds since the epoch."""

    what: str
    at: float


class Inbox(_Box):
    """What the link brought. Who reads it checks it: see ``polyclinic.client.witness``."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, _IN)

    def told(self) -> set[str]:
        """Ids of statements that the coordinator has taken."""
        return {row[0] for row in self._rows("SELECT digest FROM told")}

    def note_told(self, digest: str) -> None:
        """Notes that the statement ``digest`` was taken."""
        with self._change() as db:
            db.execute("INSERT OR IGNORE INTO told VALUES (?)", (digest,))

    def forget_told(self, still_waiting: set[str]) -> None:
        """Forgets statements that are no longer in the outbox."""
        if gone := self.told() - still_waiting:
            with self._change() as db:
                db.executemany("DELETE FROM told WHERE digest = ?", [(digest,) for digest in gone])

    def add_receipts(self, run: str, receipts: Mapping[int, Signed]) -> None:
        """Adds receipts by round; the first of a round stays."""
        rows = [(run, number, s.document, s.signer, s.signature) for number, s in receipts.items()]
        with self._change() as db:
            db.executemany("INSERT OR IGNORE INTO receipts VALUES (?, ?, ?, ?, ?)", rows)

    def receipts(self, run: str, after: int = 0) -> dict[int, Signed]:
        """Round → receipt, of rounds later than ``after``."""
        query = f"SELECT round, {_SIGNED} FROM receipts WHERE run = ? AND round > ? ORDER BY round"
        return {row[0]: Signed(*row[1:]) for row in self._rows(query, run, after)}

    def add_lines(self, run: str, lines: Iterable[tuple[int, str, str]]) -> None:
        """Adds (sequence, digest, line) of the coordinator's ledger of ``run`` ("": its book)."""
        with self._change() as db:
            db.executemany("INSERT OR IGNORE INTO lines VALUES (?, ?, ?, ?)", [(run, *line) for line in lines])

    def lines(self, run: str, after: int = -1, most: int = 10_000) -> list[str]:
        """Lines of the coordinator's ledger of ``run`` after the sequence ``after``."""
        query = "SELECT line FROM lines WHERE run = ? AND sequence > ? ORDER BY sequence LIMIT ?"
        return [row[0] for row in self._rows(query, run, after, most)]

    def head(self, run: str) -> tuple[int, str]:
        """(sequence, digest) of the last line of ``run`` that is here; as ``core.book.EMPTY`` if there is none."""
        found = self._rows("SELECT sequence, digest FROM lines WHERE run = ? ORDER BY sequence DESC LIMIT 1", run)
        return (int(found[0][0]), str(found[0][1])) if found else (-1, START)

    def digest(self, run: str, sequence: int) -> str | None:
        """Digest of one line of ``run``; None if it is not here."""
        found = self._rows("SELECT digest FROM lines WHERE run = ? AND sequence = ?", run, sequence)
        return str(found[0][0]) if found else None

    def runs(self) -> list[str]:
        """Runs of which there are lines; "" is the coordinator's book."""
        return [row[0] for row in self._rows("SELECT DISTINCT run FROM lines ORDER BY run")]

    def set_head(self, site: str, run: str, sequence: int, signed: Signed, now: float) -> None:
        """The latest that another site says of the coordinator's ledger of ``run``; older statements are dropped."""
        with self._change() as db:
            query = "SELECT sequence, since FROM heads WHERE site = ? AND run = ?"
            before, since = db.execute(query, (site, run)).fetchone() or (-1, now)
            if sequence < before:
                return
            line = "SELECT 1 FROM lines WHERE run = ? AND sequence = ?"
            if db.execute(line, (run, before)).fetchone():  # else the line before is still waited for, since then
                since = now
            row = (site, run, sequence, since, signed.document, signed.signer, signed.signature)
            db.execute("INSERT OR REPLACE INTO heads VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    def heads(self) -> list[tuple[str, str, float, Signed]]:
        """(site, run, since when it is here, statement)."""
        rows = self._rows(f"SELECT site, run, since, {_SIGNED} FROM heads ORDER BY site, run")
        return [(row[0], row[1], row[2], Signed(*row[3:])) for row in rows]

    def trust(self, site: str, key: str) -> str:
        """Takes ``key`` for that of ``site`` if none is known yet; the key that is known now."""
        with self._change() as db:
            db.execute("INSERT OR IGNORE INTO signers VALUES (?, ?)", (site, key))
            return str(db.execute("SELECT key FROM signers WHERE site = ?", (site,)).fetchone()[0])

    def retrust(self, site: str, key: str) -> None:
        """Takes another key for that of ``site``, because somebody has asked there whether it is."""
        with self._change() as db:
            db.execute("INSERT OR REPLACE INTO signers VALUES (?, ?)", (site, key))

    def signers(self) -> dict[str, str]:
        """Site → its signing key, as first seen."""
        return dict(self._rows("SELECT site, key FROM signers"))

    def alarm(self, what: str, now: float) -> bool:
        """Adds an alarm; whether it is new."""
        with self._change() as db:
            if db.execute("SELECT count(*) FROM alarms").fetchone()[0] >= MOST_ALARMS:
                return False
            return db.execute("INSERT OR IGNORE INTO alarms VALUES (?, ?)", (what, now)).rowcount == 1

    def alarms(self) -> list[Alarm]:
        """All alarms, in order of time."""
        return [Alarm(*row) for row in self._rows("SELECT what, at FROM alarms ORDER BY at, what")]

    def set_state(self, name: str, value: Any) -> None:
        """Keeps a piece of JSON data, such as what the coordinator said last."""
        with self._change() as db:
            db.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (name, json.dumps(value)))

    def state(self, name: str) -> Any:
        """What was kept under ``name``; None if nothing was."""
        found = self._rows("SELECT value FROM state WHERE name = ?", name)
        return json.loads(found[0][0]) if found else None
