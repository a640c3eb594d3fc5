"""A picture → what the preflight wants to know of it. Imports the decoders: for the worker process alone."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from polyclinic.client.data.examined import BINS, NUMBERS, THUMB, Examined
from polyclinic.client.data.flatten import flattened, several
from polyclinic.client.data.images import Pixels
from polyclinic.client.data.readers import dicom, masks
from polyclinic.client.data.readers.reading import read, read_mask
from polyclinic.client.data.readers.sniff import head, sniff
from polyclinic.client.data.volume import Volume
from polyclinic.core.errors import DataError
from polyclinic.core.study import Data


def examine(path: Path, data: Data, mask: Path | None, most: int) -> Examined:
    """Reads a picture, and its mask if it has one, and looks at both.

    Raises:
        DataError: the picture or its mask cannot be read.
    """
    volume = read(path, most)
    # squashed, so that no border hides an empty picture; the middle one, whatever the study wants
    seen = flattened(volume, data.model_copy(update={"fit": "squash", "volume": "middle"}))
    found = looked_at(volume, seen)
    wrong, numbers = ("", ()) if mask is None else _mask(mask, path, volume, most)
    return replace(found, mask=wrong, numbers=numbers, series=_series(path))


def looked_at(volume: Volume, seen: Pixels) -> Examined:
    """What there is to know of a volume and of the uint8 [C, S, S] that a model sees of it."""
    facts, values = volume.facts, volume.values
    low, high = values.min(), values.max()
    grey = seen.mean(axis=0)
    counts, _ = np.histogram(grey, BINS, (0.0, 256.0))
    spacing = volume.spacing or ()
    return Examined(
        format=facts.format,
        kind=facts.kind,
        shape=(len(values), *volume.shape),
        spacing=tuple(float(step) if np.isfinite(step) else None for step in spacing),
        axes=volume.axes,
        several=several(volume),
        acquisition=dict(facts.acquisition),
        laterality=facts.laterality,
        orientation=facts.orientation,
        view=facts.view,
        remarks=facts.remarks,
        low=float(low),
        high=float(high),
        top=float((values == high).mean()),
        bottom=float((values == low).mean()),
        flat=bool(np.array_equal(seen.min(axis=(1, 2)), seen.max(axis=(1, 2)))),
        dark=bool(seen.max() < 8),
        histogram=tuple(float(share) for share in counts / grey.size),
        fingerprint=fingerprint(grey),
        thumb=tuple(int(field) for field in _small(grey, THUMB, THUMB).ravel()),
        affine=() if volume.affine is None else tuple(float(x) for x in volume.affine.T.ravel()),
    )


def fingerprint(grey: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> int:
    """64 bits of [H, W]: of 8 rows of 9 fields each, whether a field is brighter than the one on its right (dHash)."""
    fields = _small(grey, 9, 8).astype(np.int16)
    return int.from_bytes(np.packbits(fields[:, :-1] > fields[:, 1:]).tobytes())


def _small(grey: np.ndarray[tuple[int, ...], np.dtype[np.float64]], width: int, height: int) -> Pixels:
    whole = Image.fromarray(np.rint(grey).astype(np.uint8))
    return np.asarray(whole.resize((width, height), Image.Resampling.BOX))


def _mask(mask: Path, path: Path, volume: Volume, most: int) -> tuple[str, tuple[int, ...]]:
    """Why a mask does not lie on its picture, in words, and the numbers that it holds."""
    try:
        found = read_mask(mask, path, most)
        return masks.matched(found, volume), tuple(np.unique(found.values)[:NUMBERS].tolist())
    except DataError as failure:
        return failure.problem, ()


def _series(path: Path) -> str:
    if path.is_dir() or sniff(head(path), "") != "DICOM":
        return ""
    uid = str(dicom.opened(path, header_only=True).get("SeriesInstanceUID") or "")
    return hashlib.sha256(uid.encode()).hexdigest()[:16] if uid else ""
