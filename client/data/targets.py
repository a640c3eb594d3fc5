"""What a task is to learn from the rows of a manifest, as one array."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np

from polyclinic.client.data.boxed import Boxing, boxed
from polyclinic.client.data.manifest import Row
from polyclinic.client.data.masked import masks
from polyclinic.core.study import Data

if TYPE_CHECKING:
    from polyclinic.models.contracts import Masking, Task


Targets = tuple[np.ndarray, np.ndarray | None]
"""Of N images: [N, …] as the task has them; and mm between the pixels of masks, [N, 2 or 3], if it learns from any."""


def targets(rows: Sequence[Row], data: Data, task: Task) -> Targets:
    """What the rows' images are to be. May be of no rows.

    Raises:
        DataError: a mask cannot be read, or does not fit its image; boxes do not, or are too many.
    """
    read: Mapping[str, Callable[[Sequence[Row], Data, Task], Targets]]
    read = {"label": _labels, "mask": _masks, "boxes": _boxes}
    return read[task.needs](rows, data, task)


def _labels(rows: Sequence[Row], data: Data, task: Task) -> Targets:
    """int64 [N], or [N, classes] of 0 and 1."""
    found = np.array([row.target for row in rows], dtype=np.int64)
    return found if rows else found.reshape(0, *(() if task.exclusive else (len(task.classes),))), None


def _masks(rows: Sequence[Row], data: Data, task: Task) -> Targets:
    """uint8 [N, (D,) S, S]."""
    return masks(rows, data, cast("Masking", task))  # what needs masks reads them: that is the plugin's contract


def _boxes(rows: Sequence[Row], data: Data, task: Task) -> Targets:
    """float32 [N, most, 5]."""
    return boxed(rows, data, cast("Boxing", task)), None
