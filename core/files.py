"""Files are written whole or not at all, and are on the disk before anybody is told so."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from polyclinic.core.errors import RunError


def write(path: Path, content: bytes | str, *, durable: bool = True) -> None:
    """Replaces ``path`` by ``content`` atomically: written beside it, synchronised, renamed, folder synchronised.

    Not ``durable``: whole or not at all to every reader, but a power cut may bring back what stood there before.

    Raises:
        RunError: the disk is full, or the place cannot be written; what stood there before still stands.
    """
    body = content.encode() if isinstance(content, str) else content
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    with explained(path):
        try:
            with beside.open("wb") as out:
                out.write(body)
                out.flush()
                if durable:
                    os.fsync(out.fileno())
            beside.replace(path)
            if durable:
                sync_folder(path.parent)
        finally:
            beside.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Makes a rename or a new file in ``folder`` survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Holds the folder against a second process that would write to the same run; the system lets go at death.

    Raises:
        RunError: another process holds it.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as failure:
        raise RunError("another process is at work on this run", where=str(folder), remedy="wait for it") from failure
    finally:
        os.close(handle)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turns an operating system's refusal into a RunError that names ``path``."""
    try:
        yield
    except OSError as failure:
        raise RunError(
            f"cannot be written: {failure.strerror or failure}",
            where=str(path),
            remedy="free some space or choose another folder; what was committed before is intact",
        ) from failure
