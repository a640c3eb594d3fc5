"""A site's privacy ledger: what was spent, by whom it was paid, and what may still be spent.

Append-only and hash-chained (``core/ledger.py``), in SQLite, for several processes at once. Only reservations cost:
they are on the disk before the first gradient, and nothing gives them back. Why that never undercounts:

1. ``reserve`` commits before anything is worked out, within the transaction that looked at the limits.
2. A reservation has one key, and all randomness of its answer follows from it. An answer that is worked out again
   (a crash, a lost reply) is the same random variable: the same release, which was paid.
3. ``release`` commits the digest of what leaves before it leaves, and refuses a second, different one under the same
   reservation: sums that differ while the noise is the same would show their difference. The reservation is then
   void, and the next try is a new one, with a new key, and charged.
"""

from __future__ import annotations

import logging
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

from polyclinic.client.privacy.budget import Bound, demand_within
from polyclinic.client.privacy.people import SALT, Cohort, fingerprint
from polyclinic.client.privacy.record import Charge, Question, Record, Reservation, reserve_body
from polyclinic.core import files, ledger
from polyclinic.core.book import CONTEXT, EMPTY, Head, follow
from polyclinic.core.errors import PrivacyError, RunError, TrustError
from polyclinic.core.ledger import Entry
from polyclinic.core.privacy.events import Generator
from polyclinic.core.signing import SigningKey, write_secret

FILE, SALT_FILE = "privacy.db", "salt"
PATIENCE = 300.0
"""Seconds for which another process that reserves is waited for; it may have much to reckon."""
_log = logging.getLogger(__name__)
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS entries (sequence INTEGER PRIMARY KEY, line TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS cohorts (digest TEXT PRIMARY KEY, members BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS keys (reservation INTEGER PRIMARY KEY, run TEXT NOT NULL, round INTEGER NOT NULL,"
    " key BLOB NOT NULL)",
)


class Ledger:
    """The ledger in ``folder``, which is made if it is not there: privacy.db, and the salt beside it.

    Args:
        key: the site's; each entry is signed with it. A ledger that was begun with a key is only gone on with by it.
        clock: seconds since the epoch.

    Raises:
        PrivacyError: the ledger is damaged, was altered, or lacks its salt; what is the first bad entry.
        RunError: the folder cannot be written.
    """

    def __init__(self, folder: Path, key: SigningKey | None = None, clock: Callable[[], float] = time.time) -> None:
        self.folder, self._key, self._clock = folder, key, clock
        self._lock, self._record = threading.RLock(), Record()
        with files.explained(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = folder / FILE
            if not path.exists():
                os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        with self._explained():
            self._db = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
        try:
            with self._explained():
                self._db.execute("PRAGMA synchronous = EXTRA")  # FULL, and the folder, too
                self._db.execute("PRAGMA secure_delete = ON")
            with self._transaction():
                for statement in _SCHEMA:
                    self._db.execute(statement)
            with self._transaction() as record:
                if record.last is None:
                    self._begin()
            self._salt = self._found_salt()
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        """Lets go of the file."""
        with self._lock:
            self._db.close()

    def cohort(self, identities: Mapping[str, int]) -> str:
        """The digest of the cohort of those named, whom the ledger knows from then on.

        Args:
            identities: who → how many images of theirs are in it: see ``people.identities``. All of them, also those
                of whose images fewer are looked at.
        """
        found = Cohort.of(identities, self._salt)
        with self._transaction() as record:
            if found.digest not in record.cohorts:
                self._db.execute("INSERT INTO cohorts VALUES (?, ?)", (found.digest, found.packed))
                body = {"cohort": found.digest, "patients": len(found.members), "images": found.images}
                self._append("cohort", body, found)
        return found.digest

    def reserve(
        self,
        question: Question,
        charges: Sequence[Charge],
        ahead: Sequence[Charge] = (),
        bounds: Sequence[Bound] = (),
        key: bytes | None = None,
    ) -> Reservation:
        """Sets aside what an answer costs; it is on the disk when this returns.

        The same question, with the same charges, gets the same reservation as long as its key is held: until a later
        round of the run is reserved. Whatever is worked out anew without it is charged anew.

        Args:
            ahead: what the rest of the run will cost; nothing is begun that cannot end within the bounds.
            key: for simulated noise, that it follows from; None: noise is secure.

        Raises:
            PolicyError: a bound would be passed; with the arithmetic.
            PrivacyError: the ledger is damaged, or epsilon cannot be reckoned.
        """
        generator: Generator = "system" if key is None else "simulated"
        told = tuple(charges)
        with self._transaction() as record:
            before = record.answering(question)
            if before is not None and (before.charges, before.generator) == (told, generator):
                held = self._held(before.number)
                if held is not None and key in (None, held):
                    return _with(before, held, repeated=True)
            demand_within(record, question.study, told, tuple(ahead), bounds)
            given = secrets.token_bytes(SALT) if key is None else key
            new = self._append("reserve", reserve_body(question, told, generator))
            self._db.execute("DELETE FROM keys WHERE run = ? AND round < ?", (question.run, question.round))
            self._db.execute(
                "INSERT INTO keys VALUES (?, ?, ?, ?)", (new.sequence, question.run, question.round, given)
            )
            return _with(record.reserved[new.sequence], given, repeated=False)

    def release(self, reservation: Reservation, output: str) -> None:
        """Notes what is about to leave; it may leave when this has returned.

        Args:
            output: digest of everything in the answer that depends on patients.

        Raises:
            PrivacyError: something else was released under this reservation; then this must not leave, and whoever
                asks again is charged again.
        """
        number = reservation.number
        with self._transaction() as record:
            if number not in record.reserved or number in record.void:
                raise PrivacyError("nothing is reserved under this number", where=f"reservation {number}")
            before = record.released.get(number)
            if before is None:
                self._append("release", {"reservation": number, "output": output})
            elif before != output:
                self._append("void", {"reservation": number, "output": output})
                self._db.execute("DELETE FROM keys WHERE reservation = ?", (number,))
        if before not in (None, output):
            problem = "the same round came out differently the second time: with the same noise, this must not leave"
            raise PrivacyError(problem, where=f"reservation {number}", remedy="asked again, it is charged again")

    def record(self) -> Record:
        """Everything that the ledger says, up to date; to be looked at only."""
        with self._transaction() as record:
            return record

    def head(self) -> Head:
        """(sequence, digest) of the last entry."""
        last = self.record().last
        return (last.sequence, last.digest) if last else EMPTY

    def lines(self) -> list[str]:
        """Every entry as it stands in the ledger, one line of JSON each; no patient's hash is in them."""
        with self._explained():
            return [row[0] for row in self._db.execute("SELECT line FROM entries ORDER BY sequence")]

    def verify(self, known: Sequence[Head] = ()) -> int:
        """Checks everything again, signatures included; how many entries there are.

        Args:
            known: heads that stood in receipts: the ledger must still hold them.

        Raises:
            PrivacyError: naming the first bad entry.
        """
        with self._lock, self._explained():
            (sound,) = self._db.execute("PRAGMA integrity_check(1)").fetchone()
            if sound != "ok":
                raise PrivacyError(f"the file is damaged: {sound}", where=str(self.folder / FILE))
        with self._transaction() as record:
            signer = record.signer
            self._record = Record()
            self._catch_up(signer)
            digests = {sequence: ledger_digest for sequence, ledger_digest in self._digests()}
        for sequence, digest in known:
            if digests.get(sequence, "") != digest and (sequence, digest) != EMPTY:
                problem = "an entry that was known to stand here is gone: an older ledger was put here"
                raise PrivacyError(problem, where=f"privacy ledger, entry {sequence + 1}")
        self._found_salt()
        return len(digests)

    def _digests(self) -> Iterator[tuple[int, str]]:
        import json

        for sequence, line in self._db.execute("SELECT sequence, line FROM entries"):
            yield sequence, json.loads(line)["digest"]

    def _begin(self) -> None:
        """The first entry; the salt gets its name once the entry that knows it is on the disk."""
        if (self.folder / SALT_FILE).exists():
            remedy = "restore privacy.db; to begin anew is to forget what was spent"
            raise PrivacyError("the ledger is gone: its salt is there alone", where=str(self.folder), remedy=remedy)
        salt = secrets.token_bytes(SALT)
        write_secret(self.folder / f"{SALT_FILE}.new", salt)
        self._append("begin", {"salt": fingerprint(salt), "signer": self._key.public if self._key else ""})

    def _found_salt(self) -> bytes:
        path, new = self.folder / SALT_FILE, self.folder / f"{SALT_FILE}.new"
        remedy = "restore the file: without it patients are not recognised, and their past is forgotten"
        with files.explained(path):
            if new.exists() and not path.exists():
                new.replace(path)
                files.sync_folder(self.folder)
        try:
            salt = path.read_bytes()
        except OSError as failure:
            raise PrivacyError("the salt cannot be read", where=str(path), remedy=remedy) from failure
        if fingerprint(salt) != self._record.salt:
            raise PrivacyError("is another salt than this ledger's", where=str(path), remedy=remedy)
        return salt

    def _held(self, number: int) -> bytes | None:
        row = self._db.execute("SELECT key FROM keys WHERE reservation = ?", (number,)).fetchone()
        return row[0] if row else None

    def _append(self, kind: str, body: Mapping[str, Any], cohort: Cohort | None = None) -> Entry:
        """Within a transaction."""
        signer = self._key.public if self._key else ""
        if self._record.last is not None and signer != self._record.signer:
            raise TrustError("this ledger is signed with another key", where=str(self.folder))
        new = ledger.entry(self._record.last, kind, body, self._clock())
        told: dict[str, Any] = {**vars(new)}
        if self._key:
            told["signature"] = self._key.sign(CONTEXT + new.digest.encode()).hex()
        self._db.execute("INSERT INTO entries VALUES (?, ?)", (new.sequence, rfc8785.dumps(told).decode()))
        self._record.add(new, cohort)
        return new

    @contextmanager
    def _transaction(self) -> Iterator[Record]:
        """The record, brought up to date, while no other process writes; whatever is raised within undoes it."""
        with self._lock, self._explained():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                if self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'entries'").fetchone():
                    self._catch_up()
                yield self._record
                self._db.execute("COMMIT")
            except BaseException:
                self._record = Record()  # it may hold what is being undone
                raise
            finally:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")

    def _catch_up(self, public: str = "") -> None:
        """Reads what other processes have added; all of it is checked."""
        last = self._record.last
        after = last.sequence if last else -1
        rows = self._db.execute("SELECT sequence, line FROM entries WHERE sequence >= ? ORDER BY sequence", (after,))
        lines = [row[1] for row in rows]
        if last is not None:
            if not lines or f'"digest":"{last.digest}"' not in lines[0]:
                problem = "what stood here has gone: an older ledger was put in its place"
                raise PrivacyError(problem, where=f"privacy ledger, entry {after + 1}")
            lines = lines[1:]
        head: Head = (last.sequence, last.digest) if last else EMPTY
        try:
            for entry in follow(lines, head, public):
                self._record.add(entry, self._cohort_of(entry))
        except PrivacyError:
            raise
        except RunError as failure:
            where = failure.where.replace("ledger line", "privacy ledger, entry")
            raise PrivacyError(failure.problem, where=where, remedy="restore the ledger from a copy") from failure

    def _cohort_of(self, entry: Entry) -> Cohort | None:
        if entry.kind != "cohort":
            return None
        digest = str(entry.body.get("cohort"))
        row = self._db.execute("SELECT members FROM cohorts WHERE digest = ?", (digest,)).fetchone()
        return Cohort.read(row[0] if row else b"", digest)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as failure:
            full = isinstance(failure, sqlite3.OperationalError)
            remedy = "free some space, or wait for the other process" if full else "restore the ledger from a copy"
            problem = f"the privacy ledger cannot be {'written' if full else 'read'}: {failure}"
            raise PrivacyError(problem, where=str(self.folder / FILE), remedy=remedy) from failure


def _with(found: Reservation, key: bytes, *, repeated: bool) -> Reservation:
    return Reservation(
        found.number, found.head, found.question, found.charges, found.generator, key=key, repeated=repeated
    )
