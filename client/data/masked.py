"""Masks: brought to the square in which the model sees their pictures, pixel on pixel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from polyclinic.client.data.decoder import Decoder
from polyclinic.client.data.manifest import Row
from polyclinic.client.data.volume import Array
from polyclinic.core.errors import DataError
from polyclinic.core.study import Data

if TYPE_CHECKING:
    from polyclinic.models.contracts import Masking


def masks(rows: Sequence[Row], data: Data, task: Masking) -> tuple[np.ndarray, np.ndarray]:
    """(uint8 [N, (D,) S, S] as the task reads masks, mm between neighbours [N, 2 or 3], nan where unknown).

    Raises:
        DataError: a mask cannot be read, does not lie on its picture, or holds a number that stands for nothing.
    """
    size = (*([] if data.depth is None else [data.depth]), data.image_size, data.image_size)
    found = np.empty((len(rows), *size), dtype=np.uint8)
    spacing = np.full((len(rows), len(size)), np.nan)
    with Decoder() as decoder:
        for i, row in enumerate(rows):
            if row.mask is None:
                raise DataError("has no mask, from which the task learns", where=row.name, remedy="name its file")
            numbers, spacing[i] = decoder.laid(row.path, row.mask, data)
            try:
                found[i] = task.indexed(numbers)
            except ValueError as failure:
                remedy = "mend the mask, or say in task.values and task.unlabelled what its numbers mean"
                raise DataError(str(failure), where=str(row.mask), remedy=remedy) from failure
            if task.unit == "mm" and not (spacing[i] > 0.0).all():
                problem = "neither it nor its picture says how large its pixels are"
                raise DataError(problem, where=str(row.mask), remedy='write unit = "pixel" in the study\'s task')
    return found, spacing


def laid(path: Path, mask: Path, data: Data, most: int) -> tuple[Array, tuple[float, ...]]:
    """(int32 [(D,) S, S], mm between neighbours along (D,) H, W): see ``flatten``. For the worker process alone.

    Raises:
        DataError: the picture or its mask cannot be read, or they are not of one size and place.
    """
    from polyclinic.client.data.flatten import apart, flattened_mask
    from polyclinic.client.data.readers import reading
    from polyclinic.client.data.readers.masks import matched

    image, held = reading.read(path, most), reading.read_mask(mask, path, most)
    if wrong := matched(held, image):
        raise DataError(
            f"is a mask that {wrong} ({path.name})", where=str(mask), remedy="name the mask of this picture"
        )
    numbers = reading.explained(lambda: flattened_mask(held, image, data), path)
    return numbers, apart(held, image, data)
