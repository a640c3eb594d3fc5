"""The boxes of pictures in the study's square, as a detection task's targets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np

from polyclinic.client.data.boxes import Box
from polyclinic.client.data.decoder import Decoder
from polyclinic.client.data.examined import Examined
from polyclinic.client.data.framing import framing
from polyclinic.client.data.images import stored
from polyclinic.client.data.manifest import Row
from polyclinic.client.data.pictures import plain
from polyclinic.client.data.problem import Problem
from polyclinic.core.errors import DataError
from polyclinic.core.statistics.monoid import Floats
from polyclinic.core.study import Data

LEAST_LEFT = 0.1
"""Share of a box's area that must be in the square, where ``data.fit`` crops; what is left of a smaller rest shows
nothing."""
STORED = "boxes count pixels of the picture as it is stored"
TURNS: Mapping[int, Callable[[Floats, Floats, int, int], tuple[Floats, Floats]]] = {
    1: lambda x, y, w, h: (x, y),
    2: lambda x, y, w, h: (w - x, y),
    3: lambda x, y, w, h: (w - x, h - y),
    4: lambda x, y, w, h: (x, h - y),
    5: lambda x, y, w, h: (y, x),
    6: lambda x, y, w, h: (h - y, x),
    7: lambda x, y, w, h: (h - y, w - x),
    8: lambda x, y, w, h: (y, w - x),
}
"""EXIF's orientations: where a place (x, y) of the stored picture of width w and height h lies when it is upright."""


class Boxing(Protocol):
    """The part of a detection task that its targets need."""

    @property
    def most(self) -> int:
        """Boxes that one image may have."""


def boxed(rows: Sequence[Row], data: Data, task: Boxing) -> np.ndarray:
    """float32 [N, most, 5] of the rows: class (-1: no box), left, top, right, bottom in shares of the study's square.

    Raises:
        DataError: a picture cannot be read or has several slices, a box lies outside of its picture, or there are more
            than ``task.most``.
    """
    found = np.zeros((len(rows), task.most, 5), dtype=np.float32)
    found[..., 0] = -1.0
    with Decoder() as decoder:
        for i, row in enumerate(rows):
            if not row.boxes:
                continue
            if len(row.boxes) > task.most:
                remedy = f"set task.most to {len(row.boxes)} or more"
                raise DataError(f"has {len(row.boxes)} boxes, task.most is {task.most}", where=row.name, remedy=remedy)
            inside = squared(row.boxes, *frame(row, decoder), data)
            found[i, : len(inside)] = inside
    return found


def frame(row: Row, decoder: Decoder) -> tuple[int, int, int]:
    """Width and height of a row's picture as it is stored, and its EXIF orientation; all its boxes lie within.

    Raises:
        DataError: the picture cannot be read, has several slices, or a box lies outside.
    """
    if plain(row.path):
        width, height, orientation = stored(row.path)
    else:
        volume = decoder.volume(row.path)
        if volume.facts.format != "DICOM" or volume.shape[0] != 1 or row.path.is_dir():
            remedy = "save the one that is meant as a picture of its own"
            raise DataError("boxes are for single pictures, of PNG and its kin or DICOM", where=row.name, remedy=remedy)
        (_, height, width), orientation = volume.shape, 1
    for problem in outside(row.boxes, width, height):
        raise DataError(problem, where=row.name, remedy=STORED)
    return width, height, orientation


def outside(boxes: Sequence[Box], width: int, height: int) -> list[str]:
    """What is wrong with boxes that lie outside of a picture, in words."""
    return [
        f"a box reaches to ({right:g}, {bottom:g}) in a picture of {width} x {height} pixels"
        for _, _, _, right, bottom in boxes
        if right > width or bottom > height
    ]


def beyond(row: Row, found: Examined) -> Iterator[Problem]:
    """The preflight's word on boxes that lie outside of their picture."""
    if row.boxes:
        width, height = stored(row.path)[:2] if plain(row.path) else (found.shape[3], found.shape[2])
        for what in outside(row.boxes, width, height):
            yield Problem(row.line or None, row.name, what, STORED)


def squared(boxes: Sequence[Box], width: int, height: int, orientation: int, data: Data) -> np.ndarray:
    """[n, 5] boxes of a stored picture, in shares of the study's square; those that are cropped away are left out."""
    rows = np.array(boxes, dtype=np.float64)
    one, other = (np.stack(TURNS[orientation](rows[:, i], rows[:, i + 1], width, height)) for i in (1, 3))
    upright = (height, width) if orientation >= 5 else (width, height)
    place = framing(*upright, data.image_size, data.fit)
    scale, offset = np.array(place.scale)[:, None], np.array(place.offset)[:, None]
    low, high = ((ends * scale + offset) / data.image_size for ends in (np.minimum(one, other), np.maximum(one, other)))
    shown_low, shown_high = low.clip(0.0, 1.0), high.clip(0.0, 1.0)
    left = (shown_high - shown_low).prod(axis=0) >= LEAST_LEFT * (high - low).prod(axis=0)
    inside = np.concatenate([rows[:, :1], shown_low.T, shown_high.T], axis=1)[left]
    return np.asarray(inside, dtype=np.float32)
