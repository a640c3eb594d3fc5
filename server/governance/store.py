"""The registry's database: transactions that several processes share, and notes for the book that none loses."""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from polyclinic.core.errors import EngineError, TrustError
from polyclinic.core.signing import Signed

Note = Callable[[str, Mapping[str, Any]], object]
"""Appends an entry (kind, body) to the coordinator's book."""

WAIT = 20.0
"""Seconds that a process waits for another one's transaction."""
HOURLY = 500
"""How many entries in the book one site may cause in an hour."""
EVENTS, TEXT = 10_000, 500
"""How many events are kept, and how many characters of each."""
_log = logging.getLogger(__name__)
_SCHEMA = """
CREATE TABLE IF NOT EXISTS notes (id INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, body TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS quota (site TEXT PRIMARY KEY, hour INTEGER NOT NULL, count INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS invitations (
    digest TEXT PRIMARY KEY, site TEXT NOT NULL, created REAL NOT NULL, expires REAL NOT NULL, used REAL,
    again INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS sites (
    name TEXT PRIMARY KEY, signing_key TEXT NOT NULL UNIQUE, node_key BLOB NOT NULL, node_digest TEXT NOT NULL UNIQUE,
    certificate TEXT NOT NULL, not_after REAL NOT NULL, pem BLOB NOT NULL,
    next_certificate TEXT, next_not_after REAL, enrolled REAL NOT NULL, revoked REAL
);
CREATE TABLE IF NOT EXISTS offers (
    study TEXT PRIMARY KEY, document BLOB NOT NULL, signer TEXT NOT NULL, signature BLOB NOT NULL,
    published REAL NOT NULL, retired REAL
);
CREATE TABLE IF NOT EXISTS decisions (
    study TEXT, site TEXT, sequence INTEGER NOT NULL, document BLOB NOT NULL, signer TEXT NOT NULL,
    signature BLOB NOT NULL, received REAL NOT NULL, PRIMARY KEY (study, site)
);
CREATE TABLE IF NOT EXISTS statuses (site TEXT PRIMARY KEY, status TEXT NOT NULL, received REAL NOT NULL);
CREATE TABLE IF NOT EXISTS refusals (
    id INTEGER PRIMARY KEY AUTOINCREMENT, site TEXT NOT NULL, run TEXT NOT NULL, round INTEGER NOT NULL,
    document BLOB NOT NULL, signer TEXT NOT NULL, signature BLOB NOT NULL, received REAL NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS refusals_once ON refusals (site, document);
CREATE TABLE IF NOT EXISTS receipts (
    run TEXT, round INTEGER, document BLOB NOT NULL, signer TEXT NOT NULL, signature BLOB NOT NULL,
    PRIMARY KEY (run, round)
);
CREATE TABLE IF NOT EXISTS heads (
    site TEXT, kind TEXT, run TEXT, sequence INTEGER NOT NULL, digest TEXT NOT NULL, document BLOB NOT NULL,
    signer TEXT NOT NULL, signature BLOB NOT NULL, received REAL NOT NULL, PRIMARY KEY (site, kind, run)
);
CREATE TABLE IF NOT EXISTS runs (
    name TEXT PRIMARY KEY, study TEXT NOT NULL, folder TEXT NOT NULL, state TEXT NOT NULL, why TEXT NOT NULL,
    created REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS events (
    sequence INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, run TEXT NOT NULL, kind TEXT NOT NULL,
    text TEXT NOT NULL
);
"""


class Store:
    """One connection to the registry's file; threads of one process share it, processes open one each.

    What is to stand in the book is written down with the change itself, and handed to ``note`` once that is committed:
    by this process, or, if it dies in between, by the next one that has a book.

    Raises:
        EngineError: the file cannot be read or written; nothing was changed.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.time, note: Note | None = None) -> None:
        self.path, self.clock, self._note = path, clock, note
        self._lock = threading.RLock()
        with self._explained():
            if not path.exists():  # closing a handle of it would drop the locks of all of this process's connections
                os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._db = sqlite3.connect(path, timeout=WAIT, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            with self._transaction() as db:
                for statement in _SCHEMA.split(";\n"):
                    db.execute(statement)
        self._hand_over()

    def close(self) -> None:
        """Lets go of the file."""
        with self._lock:
            self._db.close()

    def backup(self, to: Path) -> None:
        """A copy of everything, whole, while others go on writing; ``to`` must not exist yet."""
        with self._lock, self._explained():
            self._db.execute("VACUUM INTO ?", (str(to),))

    @contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """A transaction; whatever is raised within undoes it. Afterwards the notes go to the book."""
        with self._lock, self._explained():
            with self._transaction() as db:
                yield db
                noted = db.execute("SELECT EXISTS (SELECT 1 FROM notes)").fetchone()[0]
            if noted:
                self._hand_over()

    def rows(self, query: str, *values: object) -> list[Any]:
        """What a query finds."""
        with self._lock, self._explained():
            return self._db.execute(query, values).fetchall()

    def note(self, db: sqlite3.Connection, kind: str, body: Mapping[str, Any], by: str = "") -> None:
        """Has an entry appended to the book once the transaction is committed; ``by``: the site that caused it."""
        if by:
            hour = int(self.clock() // 3600)
            db.execute("DELETE FROM quota WHERE hour != ?", (hour,))
            db.execute(
                "INSERT INTO quota VALUES (?, ?, 1) ON CONFLICT (site) DO UPDATE SET count = count + 1", (by, hour)
            )
        db.execute("INSERT INTO notes (kind, body) VALUES (?, ?)", (kind, json.dumps(body, allow_nan=False)))

    def demand_quota(self, site: str) -> None:
        """Raises TrustError if ``site`` has caused too many entries in the book within this hour."""
        hour = int(self.clock() // 3600)
        if self.rows("SELECT 1 FROM quota WHERE site = ? AND hour = ? AND count >= ?", site, hour, HOURLY):
            raise TrustError(f"this site has caused {HOURLY} entries in the book within an hour", where=site)

    def tell(self, db: sqlite3.Connection, run: str, kind: str, text: str) -> None:
        """Adds an event, which every site may see; the latest 10,000 are kept."""
        values = (self.clock(), run, kind, text[:TEXT])
        last = db.execute("INSERT INTO events (at, run, kind, text) VALUES (?, ?, ?, ?)", values).lastrowid
        db.execute("DELETE FROM events WHERE sequence <= ?", ((last or 0) - EVENTS,))

    def _hand_over(self) -> None:
        """Hands all notes to the book, each once, in their order; whichever process holds the lock does it for all."""
        if self._note is None:
            return
        with self._lock, self._explained(), self._transaction() as db:
            for number, kind, body in db.execute("SELECT id, kind, body FROM notes ORDER BY id").fetchall():
                self._note(kind, json.loads(body))
                db.execute("DELETE FROM notes WHERE id = ?", (number,))

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield self._db
            self._db.execute("COMMIT")
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as failure:
            _log.exception("the registry failed")
            raise EngineError(
                f"the registry cannot be used: {failure}", where=str(self.path), remedy="see that its disk has space"
            ) from failure


def statement(signed: Signed) -> dict[str, str]:
    """A signed statement as it stands in the book, where anybody can check it again."""
    return {"document": signed.document.decode(), "signer": signed.signer, "signature": signed.signature.hex()}
