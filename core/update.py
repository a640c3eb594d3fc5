"""Named tensors that travel: their manifest, their digest, their safetensors form, and the update that wraps them."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as _load
from safetensors.numpy import save as _save

from polyclinic.core.errors import UpdateError

Tensors = Mapping[str, np.ndarray]
"""float32 arrays by parameter name."""

LARGEST = 2.0**20
"""Absolute value above which a number in an update is refused: far above any honest one, and the fold stays exact."""


@dataclass(frozen=True)
class Update:
    """What one site learned in one round: its tensors and the weight it claims (images or patients, at least 1)."""

    site: str
    weight: int
    tensors: Tensors


@dataclass(frozen=True)
class Manifest:
    """Name → shape of the float32 tensors that may travel; anything else is refused."""

    shapes: Mapping[str, tuple[int, ...]]

    @staticmethod
    def of(tensors: Tensors) -> Manifest:
        """The manifest that exactly these tensors fulfil."""
        return Manifest({name: tuple(tensors[name].shape) for name in sorted(tensors)})

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(4 * int(np.prod(shape, dtype=np.int64)) for shape in self.shapes.values())

    def check(self, tensors: Tensors) -> None:
        """Nothing, if names, shapes, dtype and values are as agreed.

        Raises:
            UpdateError: naming the first tensor that is absent, unexpected, misshapen, not float32, not finite or huge.
        """
        absent, unexpected = self.shapes.keys() - tensors.keys(), tensors.keys() - self.shapes.keys()
        if absent:
            raise UpdateError("tensor is missing", where=min(absent))
        if unexpected:
            raise UpdateError("tensor was not agreed on", where=_printable(min(unexpected)))
        for name in sorted(self.shapes):
            array = tensors[name]
            if array.dtype != np.float32:
                raise UpdateError(f"dtype is {array.dtype}, agreed was float32", where=name)
            if array.shape != self.shapes[name]:
                raise UpdateError(f"shape is {array.shape}, agreed was {self.shapes[name]}", where=name)
            if not np.isfinite(array).all():
                raise UpdateError("tensor holds NaN or infinity", where=name)
            if array.size and np.abs(array).max() > LARGEST:
                raise UpdateError(f"tensor holds a number above {LARGEST:g}", where=name)


def digest(tensors: Tensors) -> str:
    """SHA-256 over names, shapes, dtypes and bytes in the order of names, in hex."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        array = np.asarray(tensors[name], order="C")
        total.update(json.dumps([name, array.dtype.str, list(array.shape)]).encode())
        total.update(array.data)
    return total.hexdigest()


def encode(tensors: Tensors) -> bytes:
    """The tensors as safetensors bytes."""
    return _save({name: np.asarray(tensors[name], order="C") for name in sorted(tensors)})


def decode(body: bytes, limit: int | None = None) -> dict[str, np.ndarray]:
    """Tensors from safetensors bytes; nothing is allocated before the header was found sound.

    Raises:
        UpdateError: too large, malformed, a repeated name, metadata, or a dtype other than F32.
    """
    if limit is not None and len(body) > limit:
        raise UpdateError(f"{len(body)} bytes arrived, at most {limit} were agreed")
    _check_header(body)
    try:
        return dict(sorted(_load(body).items()))  # safetensors gives them in an order of its own
    except (SafetensorError, ValueError, TypeError, KeyError) as failure:
        raise UpdateError(f"not valid safetensors: {_printable(str(failure), 200)}") from failure


def _check_header(body: bytes) -> None:
    """safetensors itself accepts repeated names and free-text metadata: both are refused here."""
    if len(body) < 8 or (size := struct.unpack("<Q", body[:8])[0]) > len(body) - 8:
        raise UpdateError("not valid safetensors: the header is longer than the body")

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        names = [name for name, _ in pairs]
        if len(set(names)) < len(names):
            raise UpdateError("a name stands twice in the safetensors header")
        return dict(pairs)

    try:
        header = json.loads(body[8 : 8 + size].decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as failure:
        raise UpdateError("not valid safetensors: the header is no JSON") from failure
    if not isinstance(header, dict) or "__metadata__" in header:
        raise UpdateError("the safetensors header holds metadata")
    for name, entry in header.items():
        if not isinstance(entry, dict) or entry.get("dtype") != "F32":
            raise UpdateError("dtype is not F32", where=_printable(name))
        if entry.keys() != {"dtype", "shape", "data_offsets"}:
            raise UpdateError("holds more, or less, than dtype, shape and offsets", where=_printable(name))


def _printable(name: str, most: int = 80) -> str:
    """What a stranger wrote, made safe for logs."""
    return ascii(name)[1:-1][:most]
