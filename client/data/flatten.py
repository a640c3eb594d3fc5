"""A volume as the picture that a two-dimensional model sees: one slice, upright, in 8 bits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image

from polyclinic.client.data.images import Pixels, fitted, percentiles, stretched
from polyclinic.client.data.volume import Array, Volume, directions
from polyclinic.core.errors import DataError
from polyclinic.core.study import Data, Range

_SEEN = {0: ((1, "P"), (2, "I")), 1: ((0, "L"), (2, "I")), 2: ((0, "L"), (1, "P"))}
"""Sliced along x, y or z of the patient: which axis runs along W and where it leads, and the same for H. As
radiologists look at it: head up, face to the left, the patient's left on the right."""
_THROUGH = "LPS"


def flattened(volume: Volume, data: Data) -> Pixels:
    """uint8 [C, S, S]; C is 3 for a picture in colour unless ``data.colour == "grey"``, else 1.

    A single DICOM picture stays as it is stored. Of several slices the middle one is taken, if the study says so, along
    the axis in which they were taken; it is turned as radiologists look at it, so that DICOM and NIfTI give the same.
    Of several times the middle one.

    Raises:
        DataError: it has several slices, frames or times, and the study says nothing of what to do with them.
    """
    refused = several(volume)
    if refused and data.volume == "refuse":
        remedy = 'data.volume = "middle" in the study takes the middle one; or save the one that is meant as a file'
        raise DataError(f"holds {refused}", remedy=remedy)
    upright = volume if volume.shape[0] == 1 and volume.facts.format == "DICOM" else radiological(volume)
    values = upright.values[:, upright.shape[0] // 2]
    if volume.facts.repeats == "colour":
        picture = Image.fromarray(np.ascontiguousarray(_eight_bits(values, volume, data).transpose(1, 2, 0)))
    else:
        picture = Image.fromarray(_eight_bits(values[len(values) // 2], volume, data))
    return fitted(picture, data)


def several(volume: Volume) -> str:
    """How many pictures a volume holds, in words; "" for one."""
    depth, times = volume.shape[0], 1 if volume.facts.repeats == "colour" else len(volume.values)
    words = [f"{depth} slices or frames" if depth > 1 else "", f"{times} times or directions" if times > 1 else ""]
    return " and ".join(word for word in words if word)


def radiological(volume: Volume) -> Volume:
    """The same slices in order along the patient's axis, each as radiologists look at it; no value is changed.

    A volume that does not know where it lies comes back as it is. The affine is dropped: the picture is to be seen.
    """
    if volume.affine is None:
        return volume
    across, down, through = directions(volume.affine)
    (wanted, right), (_, bottom) = _SEEN[through[0]]
    values = volume.values
    if across[0] != wanted:
        values, across, down = values.swapaxes(2, 3), down, across
    flips = [axis for axis, leads, aim in ((3, across[1], right), (2, down[1], bottom)) if leads != aim]
    if through[1] != _THROUGH[through[0]]:
        flips.append(1)
    spacing = None if values is not volume.values else volume.spacing
    return replace(volume, values=np.flip(values, tuple(flips)), affine=None, spacing=spacing)


def _eight_bits(values: Array, volume: Volume, data: Data) -> Pixels:
    facts = volume.facts
    if facts.format in ("PNG", "JPEG", "TIFF", "BMP") or facts.repeats == "colour":
        # as client.data.images has it: 8 bits as they are, deep greys by percentiles
        return values if values.dtype == np.uint8 else stretched(values, *percentiles(values))
    if isinstance(data.intensity, Range):
        return stretched(values, data.intensity.low, data.intensity.high)
    if data.intensity == "window" and facts.window is not None:
        return stretched(values, *facts.window)
    return stretched(values, *percentiles(values))
