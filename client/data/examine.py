"""What the preflight wants to know of one picture: a few numbers, none of which says who it is of."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from polyclinic.client.data.flatten import flattened, several
from polyclinic.client.data.images import Pixels
from polyclinic.client.data.readers import dicom, masks
from polyclinic.client.data.readers.reading import read, read_mask
from polyclinic.client.data.readers.sniff import head, sniff
from polyclinic.client.data.volume import Volume
from polyclinic.core.errors import DataError
from polyclinic.core.study import Data

BINS = 32
THUMB = 16


@dataclass(frozen=True, slots=True)
class Examined:
    """One picture, as far as the preflight looks at it. Plain values only: it crosses a pipe as JSON.

    Attributes:
        format, kind, laterality, orientation, view, remarks, acquisition: see ``volume.Facts``.
        shape: (C, D, H, W) of the file.
        spacing: mm along (D, H, W), None where unknown.
        axes: where D, H and W lead, as ``Volume.axes``.
        several: how many pictures the file holds, in words; "" for one.
        low, high: the lowest and the highest value, in the file's unit.
        top, bottom: shares of the pixels that have the highest and the lowest value.
        flat, dark: as the model sees it, it is of one colour; or its brightest pixel is nearly black.
        histogram: shares of the pixels in BINS bins of brightness, as the model sees it.
        fingerprint: 64 bits that stay nearly the same when a picture is scaled, recompressed or brightened (dHash).
        thumb: brightness (0 to 255) of THUMB x THUMB fields, row by row.
        mask: why its mask does not lie on it, in words; "" if it does, or if there is none.
        series: a digest by which slices of one series are told to belong together; never shown.
        affine: the four columns of ``Volume.affine`` one after the other; empty where unknown.
    """

    format: str
    kind: str
    shape: tuple[int, int, int, int]
    spacing: tuple[float | None, ...]
    axes: str
    several: str
    acquisition: Mapping[str, str]
    laterality: str
    orientation: tuple[str, ...]
    view: str
    remarks: tuple[str, ...]
    low: float
    high: float
    top: float
    bottom: float
    flat: bool
    dark: bool
    histogram: tuple[float, ...]
    fingerprint: int
    thumb: tuple[int, ...]
    mask: str = ""
    series: str = ""
    affine: tuple[float, ...] = ()


def examine(path: Path, data: Data, mask: Path | None, most: int) -> Examined:
    """Reads a picture, and its mask if it has one, and looks at both.

    Raises:
        DataError: the picture or its mask cannot be read.
    """
    volume = read(path, most)
    # squashed, so that no border hides an empty picture; the middle one, whatever the study wants
    seen = flattened(volume, data.model_copy(update={"fit": "squash", "volume": "middle"}))
    found = looked_at(volume, seen)
    wrong = "" if mask is None else _mask(mask, path, volume, most)
    return replace(found, mask=wrong, series=_series(path))


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


def _mask(mask: Path, path: Path, volume: Volume, most: int) -> str:
    try:
        return masks.matched(read_mask(mask, path, most), volume)
    except DataError as failure:
        return failure.problem


def _series(path: Path) -> str:
    if path.is_dir() or sniff(head(path), "") != "DICOM":
        return ""
    uid = str(dicom.opened(path, header_only=True).get("SeriesInstanceUID") or "")
    return hashlib.sha256(uid.encode()).hexdigest()[:16] if uid else ""
