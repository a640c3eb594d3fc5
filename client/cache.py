"""What a site remembers of its own pictures, on its own disk: features that a frozen part of the backbone gives.

They tell of a picture nearly what the picture tells, and so lie where only the site reads, and never leave it.
"""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save

from polyclinic.client.policy import CACHE_MB
from polyclinic.core import files
from polyclinic.core.errors import RunError
from polyclinic.models.backbones.encoder import Parts

_DIGEST = 32
_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Cache:
    """Features by key in a folder; of what is too much, that which was not asked for longest goes.

    Nothing depends on it: what is missing, damaged or cannot be written is worked out again, to the same bits. Several
    processes may share a folder; each counts what the others wrote whenever it makes room.

    Attributes:
        folder: made when something is first kept.
        limit: bytes.
    """

    folder: Path
    limit: int = CACHE_MB * 2**20
    _size: int = field(default=-1, init=False, repr=False)

    def get(self, key: str) -> Parts | None:
        """What was put there; None if nothing was, or it is no longer whole."""
        path = self._path(key)
        try:
            body = memoryview(path.read_bytes())
        except OSError:
            return None
        if hashlib.sha256(body[_DIGEST:]).digest() != body[:_DIGEST]:
            path.unlink(missing_ok=True)
            return None
        try:
            path.touch()  # so that it is among the last to go
            found = load(bytes(body[_DIGEST:]))
        except (OSError, SafetensorError, ValueError):
            return None
        return tuple(found[str(i)] for i in range(len(found)))

    def put(self, key: str, parts: Parts) -> None:
        """Keeps it if it fits at all; makes room by what was not asked for longest."""
        body = save({str(i): part.contiguous() for i, part in enumerate(parts)})
        size = len(body) + _DIGEST
        if size > self.limit:
            return
        path = self._path(key)
        try:
            if self._size < 0:
                with files.explained(path):
                    self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._make_room(0)
            if self._size + size > self.limit:
                self._make_room(size)
            with files.explained(path):
                path.parent.mkdir(mode=0o700, exist_ok=True)
            files.write(path, hashlib.sha256(body).digest() + body, durable=False)
            self._size += size
        except RunError as failure:
            _log.warning("features are not remembered: %s", failure)
            self.limit = 0

    def _make_room(self, size: int) -> None:
        """Counts anew, and lets go of the oldest until a tenth more than ``size`` is free."""
        known = []
        for path in self.folder.glob("??/*"):
            try:
                told = path.stat()
            except FileNotFoundError:  # another process was quicker
                continue
            known.append((told.st_mtime_ns, path, told.st_size))
        total = sum(bytes_ for _, _, bytes_ in known)
        goal = self.limit - size - (self.limit // 10 if size else 0)
        for _, path, bytes_ in sorted(known):
            if total <= max(goal, 0):
                break
            path.unlink(missing_ok=True)
            total -= bytes_
        self._size = total

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / key[2:]
