"""What the preflight knows of one picture: a few numbers, none of which says who it is of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

BINS = 32
THUMB = 16
NUMBERS = 300


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
        numbers: in its mask, each once, the lowest first and at most NUMBERS of them.
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
    numbers: tuple[int, ...] = ()
    series: str = ""
    affine: tuple[float, ...] = ()
