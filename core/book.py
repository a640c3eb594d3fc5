"""A book: a signed, hash-chained record that several processes add to, and that nobody can rewrite unseen.

SQLite holds the truth; ``ledger.jsonl`` beside it is the copy for people and auditors. Each of its lines is a ledger's
entry in canonical form (RFC 8785) with the owner's signature over the entry's digest.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import rfc8785

from polyclinic.core import files, ledger
from polyclinic.core.errors import RunError, TrustError
from polyclinic.core.ledger import Entry
from polyclinic.core.signing import SigningKey, check

CONTEXT = b"polyclinic/ledger\x00"
"""Stands before the digest in what is signed, so that no signature of a line can pass for one of anything else."""
Head = tuple[int, str]
"""(sequence, digest) of a ledger's last entry."""
EMPTY: Head = (-1, ledger.START)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS ledger (
    sequence INTEGER PRIMARY KEY, kind TEXT NOT NULL, line TEXT NOT NULL, ends INTEGER NOT NULL UNIQUE
)
"""
_PATIENCE = 30.0
"""Seconds for which another process that is writing is waited for."""


class Book:
    """The book in ``folder``, which is made if it is not there.

    Args:
        key: its owner's; a book of another owner is refused.
        clock: seconds since the epoch.

    Raises:
        RunError: the folder cannot be written.
        TrustError: the book there is signed with another key.
    """

    def __init__(self, folder: Path, key: SigningKey, clock: Callable[[], float] = time.time) -> None:
        self.folder, self._key, self._clock = folder, key, clock
        with files.explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self._db = _connected(folder / "book")
        try:
            with self._transaction() as db:
                db.execute(_SCHEMA)
            _read(self._db, self.head()[0] - 1, (), key.public)
            self._mirror()
        except BaseException:
            self._db.close()
            raise

    def append(self, kind: str, body: Mapping[str, Any]) -> Entry:
        """Adds an entry; it is on the disk when this returns.

        Raises:
            RunError: the disk is full; what was added before still stands.
        """
        with self._transaction() as db:
            last, begins = self._last()
            new = ledger.entry(last, kind, body, self._clock())
            line = _line(new, self._key.sign(CONTEXT + new.digest.encode()).hex())
            row = (new.sequence, kind, line, begins + len(line.encode()) + 1)
            db.execute("INSERT INTO ledger VALUES (?, ?, ?, ?)", row)
        self._mirror()
        return new

    def entries(self, after: int = -1, kinds: Iterable[str] = ()) -> list[Entry]:
        """Entries whose sequence is above ``after``, of the given kinds (none given: of all)."""
        return _read(self._db, after, kinds)

    def head(self) -> Head:
        """(sequence, digest) of the last entry; ``EMPTY`` before the first."""
        last, _ = self._last()
        return (last.sequence, last.digest) if last else EMPTY

    def close(self) -> None:
        """Lets go of the file."""
        self._db.close()

    def _last(self) -> tuple[Entry | None, int]:
        """(the last entry, bytes of all lines up to its end)."""
        row = self._db.execute("SELECT line, ends FROM ledger ORDER BY sequence DESC LIMIT 1").fetchone()
        return (_parsed(row[0])[0], row[1]) if row else (None, 0)

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with _explained(self.folder), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            yield self._db

    def _mirror(self) -> None:
        """Brings ledger.jsonl up to the book; reads and writes no more than what is new."""
        path, aside = self.folder / "ledger.jsonl", None
        with self._transaction() as db, files.explained(path):  # the transaction keeps other writers away
            new = not path.exists()
            if not new and not self._continues(path):
                aside = path.rename(path.with_name(f"ledger.aside-{self.head()[0] + 1}.jsonl"))
            _extend(db, path)
            if new or aside:
                path.chmod(0o640)
                files.sync_folder(self.folder)
        if aside is not None:
            why = "ledger.jsonl was not what the book says: it was altered, or torn by a power cut; it was written anew"
            self.append("mirror", {"why": why, "aside": aside.name})

    def _continues(self, path: Path) -> bool:
        """Whether ``path`` ends at a place in the book from which it can be gone on with; a torn line is one.

        Raises:
            RunError: it goes on where the book has ended, though every line stood in the book first.
        """
        size, query = path.stat().st_size, "SELECT line, ends FROM ledger WHERE ends"
        if size > self._last()[1]:
            remedy = f"restore {self.folder / 'book'}; if the file was only edited, move it away: it is written anew"
            raise RunError("knows more than the book: an older book was put here", where=str(path), remedy=remedy)
        before = self._db.execute(f"{query} <= ? ORDER BY ends DESC LIMIT 1", (size,)).fetchone()
        torn = self._db.execute(f"{query} > ? ORDER BY ends LIMIT 1", (size,)).fetchone()
        line, ends = before or ("", 0)
        whole = f"{line}\n".encode() if before else b""
        rest = f"{torn[0]}\n".encode()[: size - ends] if torn else b""
        with path.open("rb") as found:
            found.seek(ends - len(whole))
            return found.read() == whole + rest


def _extend(db: sqlite3.Connection, path: Path) -> None:
    with path.open("ab") as out:
        size = out.tell()
        for line, ends in db.execute("SELECT line, ends FROM ledger WHERE ends > ? ORDER BY ends", (size,)):
            missing = ends - out.tell()
            out.write(f"{line}\n".encode()[-missing:])
        out.flush()
        if out.tell() > size:
            os.fsync(out.fileno())


def read_entries(folder: Path, after: int = -1, kinds: Iterable[str] = (), public: str = "") -> list[Entry]:
    """As ``Book.entries``, for who may read the book but not sign; none if there is no book yet.

    Args:
        public: the owner's key; given, the signature of each is checked.

    Raises:
        RunError: there is something of that name that is no book.
        TrustError: an entry is not signed by the owner.
    """
    path = folder / "book"
    if not path.is_file():
        return []
    try:
        uri = f"{path.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, isolation_level=None, timeout=_PATIENCE)) as db:
            return _read(db, after, kinds, public)
    except sqlite3.Error as failure:
        raise RunError(f"cannot be read: {failure}", where=str(path)) from failure


def verify_book(folder: Path, public: str, head: Head | None = None) -> tuple[Entry, ...]:
    """The entries of a book's ledger.jsonl, each checked: its bytes, its place in the chain, its signature.

    Args:
        head: a head of this book that is known from elsewhere; without one, nobody can see that the last lines are
            missing.

    Raises:
        RunError: naming the first line that was altered, dropped, added, moved or not signed by ``public``.
    """
    path = folder / "ledger.jsonl"
    remedy = "it was altered or damaged: restore the folder from a copy"
    found: list[Entry] = []
    try:
        with path.open("rb") as lines:
            for line in lines:
                here = f"{path}: line {len(found) + 1}"
                entry, signature = _next(_whole(line, here), found[-1] if found else None, here)
                _demand_signed(entry, signature, public, here)
                found.append(entry)
    except OSError as failure:
        raise RunError(f"cannot be read: {failure.strerror or failure}", where=str(path)) from failure
    except RunError as failure:
        raise RunError(failure.problem, where=failure.where, remedy=remedy) from failure
    if head is not None and head != EMPTY:
        sequence, digest = head
        if len(found) <= sequence:
            problem = f"ends after {len(found)} lines, but {sequence + 1} are known to have been written"
            raise RunError(problem, where=f"{path}: line {len(found) + 1}", remedy=remedy)
        if found[sequence].digest != digest:
            problem = "is not the line that was known to stand here: the history was rewritten"
            raise RunError(problem, where=f"{path}: line {sequence + 1}", remedy=remedy)
    return tuple(found)


def follow(lines: Iterable[str], head: Head = EMPTY, public: str = "") -> Iterator[Entry]:
    """The entries of lines that go on after ``head``, each checked byte by byte; a book's lines are signed.

    Args:
        public: the owner's key; given, each line must be signed with it.

    Raises:
        RunError: naming the first that does not follow from the one before it, or is not signed by the owner.
    """
    previous = None if head == EMPTY else Entry(head[0], 0.0, "", {}, "", head[1])
    for line in lines:
        here = f"ledger line {previous.sequence + 2 if previous else 1}"
        previous, signature = _next(line, previous, here)
        if public:
            _demand_signed(previous, signature, public, here)
        yield previous


def _whole(line: bytes, here: str) -> str:
    if not line.endswith(b"\n"):
        raise RunError("is torn: it does not end", where=here)
    try:
        return line[:-1].decode("utf-8")
    except UnicodeDecodeError as failure:
        raise RunError("is no text", where=here) from failure


def _next(line: str, previous: Entry | None, here: str) -> tuple[Entry, str]:
    """(the entry after ``previous``, its signature), if ``line`` is exactly how it is written."""
    found, signature = _parsed(line, here)
    expected = ledger.entry(previous, found.kind, found.body, found.time)
    if line != (_line(expected, signature) if signature else expected.line()):
        raise RunError("does not follow from the line before it: the ledger was altered", where=here)
    return expected, signature


def _parsed(line: str, here: str = "book") -> tuple[Entry, str]:
    """(entry, signature in hex or ""), of which only the form is known."""
    try:
        fields = json.loads(line)
        rfc8785.dumps(fields)  # numbers that canonical JSON does not know would surface later, as something else
        signature = fields.pop("signature", "")
        found = Entry(**fields)
        if not (isinstance(found.kind, str) and isinstance(found.body, dict) and isinstance(signature, str)):
            raise TypeError
    except (ValueError, TypeError, AttributeError, RecursionError) as failure:
        raise RunError("is no ledger entry", where=here) from failure
    return found, signature


def _demand_signed(entry: Entry, signature: str, public: str, here: str) -> None:
    """Raises RunError."""
    try:
        raw = bytes.fromhex(signature)
        check(public, CONTEXT + entry.digest.encode(), raw if raw.hex() == signature else b"")  # no other spelling
    except (TrustError, ValueError) as failure:
        raise RunError("is not signed by the book's owner", where=here) from failure


def _entry(line: str, public: str, here: str) -> Entry:
    """The entry of a line of SQLite's, whose signature must be the owner's."""
    found, signature = _parsed(line, here)
    sound = found.digest == ledger.fingerprint([found.sequence, found.time, found.kind, found.body, found.previous])
    try:
        _demand_signed(found, signature if sound else "", public, here)
    except RunError as failure:
        remedy = "it belongs to another key, or was altered: restore it, or choose another folder"
        raise TrustError(f"line {found.sequence} {failure.problem}", where=here, remedy=remedy) from failure
    return found


def _line(entry: Entry, signature: str) -> str:
    return rfc8785.dumps({**vars(entry), "signature": signature}).decode()


def _read(db: sqlite3.Connection, after: int, kinds: Iterable[str], public: str = "") -> list[Entry]:
    wanted = tuple(kinds)
    some = f" AND kind IN ({', '.join('?' * len(wanted))})" if wanted else ""
    rows = db.execute(f"SELECT line FROM ledger WHERE sequence > ?{some} ORDER BY sequence", (after, *wanted))
    return [_entry(row[0], public, "book") if public else _parsed(row[0])[0] for row in rows]


def _connected(path: Path) -> sqlite3.Connection:
    """For its owner to write and its group to read."""
    with files.explained(path), _explained(path.parent):
        if not path.exists():
            path.touch(0o640)
            path.chmod(0o640)  # whatever this process's mask is
        connection = sqlite3.connect(path, isolation_level=None, timeout=_PATIENCE, check_same_thread=False)
        connection.execute("PRAGMA synchronous = FULL")
    return connection


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as failure:
        remedy = "free some space, or mend its permissions; what it holds is intact"
        raise RunError(f"the book cannot be written: {failure}", where=str(folder), remedy=remedy) from failure
