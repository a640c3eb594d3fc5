"""What a task is to learn from the rows of a manifest, as one array."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from polyclinic.client.data.boxed import boxed
from polyclinic.client.data.manifest import Row
from polyclinic.core.study import Data

if TYPE_CHECKING:
    from polyclinic.models.contracts import Task


def targets(rows: Sequence[Row], data: Data, task: Task) -> np.ndarray:
    """[N, …] of the rows, as the task has them. May be of no rows.

    Raises:
        DataError: a mask cannot be read, or does not fit its image; boxes do not, or are too many.
    """
    readers: dict[str, Callable[..., np.ndarray]] = {"label": _labels, "boxes": boxed}
    return readers[task.needs](rows, data, task)


def _labels(rows: Sequence[Row], data: Data, task: Task) -> np.ndarray:
    """int64 [N], or [N, classes] of 0 and 1."""
    found = np.array([row.target for row in rows], dtype=np.int64)
    return found if rows else found.reshape(0, *(() if task.exclusive else (len(task.classes),)))
