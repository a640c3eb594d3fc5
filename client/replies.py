"""Replies that were sent and may be asked for again: the same bytes, without training twice."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import struct
from dataclasses import dataclass
from pathlib import Path

from polyclinic.core import files
from polyclinic.core.errors import RunError

ROUNDS = 2
"""Rounds of a run that are kept."""
MOST_FILES, MOST_BYTES = 8, 2**30
"""How many replies are kept, and how much they may take; the oldest go first."""
_MAGIC = b"PLR1"
_CHECK = 32
_FILE = re.compile(r"([0-9a-f]{16})-(\d{10})-([0-9a-f]{64})\.reply")


@dataclass(frozen=True)
class Question:
    """What tells one reply from another: who asks the same question gets the same answer."""

    run: str
    round: int
    nonce: str
    base: str


class Replies:
    """The replies in ``folder``. Nothing here ever fails an answer: what cannot be kept or read is worked out again.

    Layout of a file: magic, SHA-256 of all that follows, length of the question (uint32, little-endian), the question
    (JSON), the sealed reply. Its name is made of hashes and a number, so that nothing from outside becomes a path.
    """

    def __init__(self, folder: Path, most_files: int = MOST_FILES, most_bytes: int = MOST_BYTES) -> None:
        self._folder, self._most_files, self._most_bytes = folder, most_files, most_bytes
        self._log = logging.getLogger(__name__)

    def get(self, question: Question) -> bytes | None:
        """The sealed reply to ``question``; None if there is none, or it was damaged."""
        path = self._folder / _name(question)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        told = _told(question)
        start = len(_MAGIC) + _CHECK
        body = memoryview(content)[start:]
        sound = content[: len(_MAGIC)] == _MAGIC and hashlib.sha256(body).digest() == content[len(_MAGIC) : start]
        if not sound or bytes(body[: len(told)]) != told:
            self._log.warning("a kept reply was damaged; it is worked out again")
            return None
        return bytes(body[len(told) :])

    def put(self, question: Question, message: bytes) -> bool:
        """Keeps the sealed reply to ``question``, and drops what is too old or too much; whether it was kept."""
        self.forget(question.run, question.round - ROUNDS + 1)
        if len(message) > self._most_bytes:
            self._log.warning("a reply of %d bytes is too large to be kept", len(message))
            return False
        told = _told(question)
        check = hashlib.sha256(told)
        check.update(message)
        try:
            self._shrink(self._most_files - 1, self._most_bytes - len(message))
            files.write(self._folder / _name(question), b"".join((_MAGIC, check.digest(), told, message)))
        except RunError as failure:
            self._log.warning("a reply could not be kept, and goes out all the same: %s", failure)
            return False
        return True

    def forget(self, run: str, before_round: int) -> None:
        """Drops the replies of ``run`` to rounds before ``before_round``, and what a crash left half-written."""
        for path in self._listed():
            found = _FILE.fullmatch(path.name)
            if found is None or (found[1] == _short(run) and int(found[2]) < before_round):
                self._drop(path)

    def _shrink(self, most_files: int, most_bytes: int) -> None:
        kept = sorted(((_age(path), path) for path in self._listed()), reverse=True)
        for number, ((_, size), path) in enumerate(kept):
            most_bytes -= size
            if number >= most_files or most_bytes < 0:
                self._drop(path)

    def _listed(self) -> list[Path]:
        try:
            return list(self._folder.iterdir())
        except OSError:
            return []

    def _drop(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as failure:
            self._log.warning("an old reply could not be dropped: %s", failure.strerror)


def _name(question: Question) -> str:
    asked = hashlib.sha256(_told(question)).hexdigest()
    return f"{_short(question.run)}-{max(0, question.round) % 10**10:010d}-{asked}.reply"


def _short(run: str) -> str:
    return hashlib.sha256(run.encode()).hexdigest()[:16]


def _told(question: Question) -> bytes:
    text = json.dumps([question.run, question.round, question.nonce, question.base]).encode()
    return struct.pack("<I", len(text)) + text


def _age(path: Path) -> tuple[int, int]:
    """(when it was written in ns, bytes); what is gone meanwhile is the oldest."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size
