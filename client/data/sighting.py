"""Opens every image of a preflight once, in the process that may die of it, and keeps what there is to know of each."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from polyclinic.client.data.decoder import Decoder
from polyclinic.client.data.examined import Examined
from polyclinic.client.data.manifest import Row
from polyclinic.core.errors import DataError
from polyclinic.core.study import Data


@dataclass(frozen=True, slots=True)
class Sighting:
    """One image that was opened, or could not be.

    Attributes:
        found: what there is to know of it; None if it could not be read.
        problem, remedy: why it could not be read, and what to do.
        digest: SHA-256 of its bytes; empty for a folder, or if not even they could be read.
    """

    row: Row
    found: Examined | None
    problem: str = ""
    remedy: str = ""
    digest: bytes = b""


def sightings(rows: Iterable[Row], data: Data) -> Iterator[Sighting]:
    """Every image of ``rows``, in their order; never raises for what a file may hold."""
    with Decoder() as decoder:
        for row in rows:
            digest = b""
            try:
                digest = _digest(row.path)
                yield Sighting(row, decoder.examine(row.path, data, row.mask), digest=digest)
            except DataError as failure:
                yield Sighting(row, None, failure.problem, failure.remedy, digest)
            except OSError as failure:
                yield Sighting(row, None, f"cannot be read: {failure.strerror}", "check its permissions")


def files(folder: Path) -> tuple[Row, ...]:
    """Every file in and below a folder as a row of its own that belongs to nobody; hidden ones are passed over."""
    found = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    seen = [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    names = [path.relative_to(folder).as_posix() for path in seen]
    return tuple(Row(path, "", "", 0, "", name, 0, name) for path, name in zip(seen, names, strict=True))


def _digest(path: Path) -> bytes:
    if path.is_dir():
        return b""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").digest()
