"""The file behind a privacy ledger: hash-chained entries in SQLite, for several processes, and the salt beside it."""

from __future__ import annotations

import json
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import rfc8785

from polyclinic.client.privacy.people import SALT, Cohort, fingerprint
from polyclinic.client.privacy.record import Record
from polyclinic.core import files, ledger
from polyclinic.core.book import CONTEXT, EMPTY, Head, follow
from polyclinic.core.errors import PrivacyError, RunError, TrustError
from polyclinic.core.ledger import Entry
from polyclinic.core.signing import SigningKey, write_secret

FILE, SALT_FILE = "privacy.db", "salt"
PATIENCE = 300.0
"""Seconds for which another process that reserves is waited for; it may have much to reckon."""
_RESTORE = "restore the ledger from a copy: without it nobody knows what was spent"
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS entries (sequence INTEGER PRIMARY KEY, line TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS cohorts (digest TEXT PRIMARY KEY, members BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS keys (reservation INTEGER PRIMARY KEY, run TEXT NOT NULL, round INTEGER NOT NULL,"
    " key BLOB NOT NULL)",
)


class Chain:
    """See ``polyclinic.client.privacy.ledger.Ledger``, which is built on it."""

    def __init__(self, folder: Path, key: SigningKey | None, clock: Callable[[], float] = time.time) -> None:
        self.folder, self._key, self._clock = folder, key, clock
        self._lock, self._record = threading.RLock(), Record()
        path = folder / FILE
        with files.explained(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not path.exists():  # closing a handle of it would drop the locks of all of this process's connections
                os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        with self._explained():
            self.db = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
        try:
            with self._explained():
                self.db.execute("PRAGMA synchronous = EXTRA")  # FULL, and the folder, too
                self.db.execute("PRAGMA secure_delete = ON")
            with self.transaction() as record:
                if record.last is None:
                    self._begin()
            self.salt = self._found_salt()
        except BaseException:
            self.db.close()
            raise

    def close(self) -> None:
        """Lets go of the file."""
        with self._lock:
            self.db.close()

    @contextmanager
    def transaction(self) -> Iterator[Record]:
        """The record, brought up to date, while no other process writes; whatever is raised within undoes it."""
        with self._lock, self._explained():
            self.db.execute("BEGIN IMMEDIATE")
            known: Entry | None = None
            try:
                for statement in _SCHEMA:
                    self.db.execute(statement)
                known = self._catch_up()
                yield self._record
                self.db.execute("COMMIT")
                known = self._record.last
            finally:
                if self.db.in_transaction:
                    self.db.execute("ROLLBACK")
                if self._record.last is not known:  # it holds what was undone
                    self._record = Record()

    def append(self, kind: str, body: Mapping[str, Any], cohort: Cohort | None = None) -> Entry:
        """Adds an entry, within a transaction.

        Raises:
            TrustError: the ledger is signed with another key, or this one is not.
        """
        if self._record.last is not None and self._record.signer != (self._key.public if self._key else ""):
            remedy = "open it with the key with which it was begun"
            raise TrustError("this ledger is signed with another key", where=str(self.folder), remedy=remedy)
        new = ledger.entry(self._record.last, kind, body, self._clock())
        told: dict[str, Any] = {**vars(new)}
        if self._key:
            told["signature"] = self._key.sign(CONTEXT + new.digest.encode()).hex()
        self.db.execute("INSERT INTO entries VALUES (?, ?)", (new.sequence, rfc8785.dumps(told).decode()))
        self._record.add(new, cohort)
        return new

    def lines(self) -> list[str]:
        """Every entry as it stands in the ledger, one line of JSON each; no patient's hash is in them."""
        with self._lock, self._explained():
            return [row[0] for row in self.db.execute("SELECT line FROM entries ORDER BY sequence")]

    def verify(self, known: Sequence[Head | str]) -> int:
        """See ``Ledger.verify``."""
        with self._lock, self._explained():
            (sound,) = self.db.execute("PRAGMA integrity_check(1)").fetchone()
            if sound != "ok":
                raise PrivacyError(f"the file is damaged: {sound}", where=str(self.folder / FILE), remedy=_RESTORE)
        with self.transaction() as record:
            if self._key and self._key.public != record.signer:
                raise PrivacyError("is not signed by this site", where=_place(0), remedy=_RESTORE)
            signer, self._record = record.signer, Record()
            self._catch_up(signer)
        digests = {sequence: json.loads(line)["digest"] for sequence, line in enumerate(self.lines())}
        gone = "an entry that was known to stand here is gone: an older ledger was put in its place"
        for head in known:
            if isinstance(head, str):
                if head not in digests.values():
                    raise PrivacyError(gone, where=f"privacy ledger, {head[:12]}", remedy=_RESTORE)
            elif head != EMPTY and digests.get(head[0]) != head[1]:
                raise PrivacyError(gone, where=_place(head[0]), remedy=_RESTORE)
        self._found_salt()
        return len(digests)

    def _catch_up(self, public: str = "") -> Entry | None:
        """Reads what other processes have added; all of it is checked. The last entry."""
        last = self._record.last
        rows = self.db.execute(
            "SELECT line FROM entries WHERE sequence >= ? ORDER BY sequence", (last.sequence if last else -1,)
        )
        lines, head = [row[0] for row in rows], EMPTY
        if last is not None:
            head = last.sequence, last.digest
            if not lines or f'"digest":"{last.digest}"' not in lines[0]:
                problem = "what stood here is gone: an older ledger was put in its place"
                raise PrivacyError(problem, where=_place(last.sequence), remedy=_RESTORE)
            lines = lines[1:]
        try:
            for entry in follow(lines, head, public):
                self._record.add(entry, self._cohort_of(entry))
        except PrivacyError:
            raise
        except RunError as failure:
            where = failure.where.replace("ledger line", "privacy ledger, entry")
            raise PrivacyError(failure.problem, where=where, remedy=_RESTORE) from failure
        return self._record.last

    def _cohort_of(self, entry: Entry) -> Cohort | None:
        if entry.kind != "cohort":
            return None
        digest = str(entry.body.get("cohort"))
        row = self.db.execute("SELECT members FROM cohorts WHERE digest = ?", (digest,)).fetchone()
        if row is None or not isinstance(row[0], bytes):
            raise PrivacyError("the patients of this cohort are gone", where=_place(entry.sequence), remedy=_RESTORE)
        return Cohort.read(row[0], digest, _place(entry.sequence))

    def _begin(self) -> None:
        """The first entry; the salt gets its name once the entry that knows it is on the disk."""
        if (self.folder / SALT_FILE).exists():
            raise PrivacyError("the ledger is gone: its salt is there alone", where=str(self.folder), remedy=_RESTORE)
        salt = secrets.token_bytes(SALT)
        write_secret(self.folder / f"{SALT_FILE}.new", salt)
        self.append("begin", {"salt": fingerprint(salt), "signer": self._key.public if self._key else ""})

    def _found_salt(self) -> bytes:
        path, new = self.folder / SALT_FILE, self.folder / f"{SALT_FILE}.new"
        remedy = "restore the file: without it patients are not recognised, and what they spent is forgotten"
        try:
            if not path.exists():
                new.replace(path)
                files.sync_folder(self.folder)
        except FileNotFoundError:
            pass  # another process has just done it, or there is none
        except OSError as failure:
            raise PrivacyError(f"cannot be named: {failure.strerror}", where=str(new), remedy=remedy) from failure
        try:
            salt = path.read_bytes()
        except OSError as failure:
            raise PrivacyError("the salt cannot be read", where=str(path), remedy=remedy) from failure
        if fingerprint(salt) != self._record.salt:
            raise PrivacyError("is another salt than this ledger's", where=str(path), remedy=remedy)
        return salt

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as failure:
            passing = isinstance(failure, sqlite3.OperationalError)
            remedy = "free some space, or wait for the other process" if passing else _RESTORE
            problem = f"the privacy ledger cannot be used: {failure}"
            raise PrivacyError(problem, where=str(self.folder / FILE), remedy=remedy) from failure


def _place(sequence: int) -> str:
    return f"privacy ledger, entry {sequence + 1}"
