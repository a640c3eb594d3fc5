"""A volume as a model sees it: one slice or all of them, upright, in 8 bits; and its mask in the same place."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import Image

from polyclinic.client.data.images import Pixels, fitted, fitted_mask, nearest, percentiles, placed, stretched
from polyclinic.client.data.volume import Array, Volume, canonical, directions
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
    Of several times the middle one. If the study wants whole volumes, uint8 [C, D, S, S]: see ``deep``.

    Raises:
        DataError: it has several slices, frames or times, and the study says nothing of what to do with them; or it is
            one slice where the study wants volumes.
    """
    if data.volume == "whole":
        return deep(volume, data)
    upright = turned(volume, volume, data)
    middle = upright.shape[0] // 2
    return fitted(_picture(_shown(replace(upright, values=upright.values[:, middle : middle + 1]), data)[:, 0]), data)


def flattened_mask(mask: Volume, image: Volume, data: Data) -> Array:
    """int32 [S, S], or [D, S, S] of a whole volume: a mask's numbers as ``flattened`` takes its image; -1 outside.

    Args:
        mask: one that lies on ``image``: see ``readers.masks.matched``.

    Raises:
        DataError: as for ``flattened``.
    """
    held = replace(mask, affine=image.affine, spacing=image.spacing)
    upright = turned(held, image, data)
    numbers = upright.values[0].astype(np.int32)
    if data.volume == "whole":
        assert data.depth is not None
        return fitted_mask(numbers[nearest(len(numbers), data.depth)], data.image_size, data.fit)
    return fitted_mask(numbers[len(numbers) // 2], data.image_size, data.fit)


def turned(held: Volume, image: Volume, data: Data) -> Volume:
    """``held``, which lies on ``image``, turned as the study wants to see ``image``; errors as for ``flattened``."""
    if data.volume == "whole":
        if image.shape[0] == 1:
            remedy = 'data.volume = "middle" in the study is for flat pictures'
            raise DataError("is one slice, and the study wants volumes", remedy=remedy)
        return canonical(held)
    refused = several(image)
    if refused and data.volume == "refuse":
        remedy = 'data.volume = "middle" in the study takes the middle one; or save the one that is meant as a file'
        raise DataError(f"holds {refused}", remedy=remedy)
    return held if image.shape[0] == 1 and image.facts.format == "DICOM" else radiological(held)


def deep(volume: Volume, data: Data) -> Pixels:
    """uint8 [C, D, S, S] of a whole volume, D = ``data.depth``; of several times the middle one.

    W leads to the patient's left, H to the back, D to the head, whichever way it was taken; one that does not know
    where it lies stays as it is. Each slice is brought to its square as a picture is, then the slices to ``data.depth``
    in the same way (bilinear with antialiasing, over all of their extent).

    Raises:
        DataError: it is one slice.
    """
    assert data.depth is not None
    shown = _shown(turned(volume, volume, data), data)
    slices = np.stack([fitted(_picture(shown[:, z]), data) for z in range(shown.shape[1])], axis=1)
    if slices.shape[1] == data.depth:
        return slices
    size = (data.image_size**2, data.depth)
    sheets = [Image.fromarray(channel.reshape(len(channel), -1)) for channel in slices]
    resized = [np.asarray(sheet.resize(size, Image.Resampling.BILINEAR)) for sheet in sheets]
    return np.stack(resized).reshape(len(slices), data.depth, *slices.shape[2:])


def apart(mask: Volume, image: Volume, data: Data) -> tuple[float, ...]:
    """mm between neighbours in ``flattened_mask``'s square, along (D,) H, W; nan where neither file says it."""
    spacing = image.spacing or mask.spacing or (np.nan,) * 3
    upright = turned(replace(image, spacing=spacing, values=image.values[:1]), image, data)
    known = upright.spacing or (np.nan,) * 3
    at = placed((upright.shape[2], upright.shape[1]), data.image_size, data.fit)
    across, down = known[2] * at.taken[2] / at.inner[0], known[1] * at.taken[3] / at.inner[1]
    through = (known[0] * upright.shape[0] / data.depth,) if data.depth is not None else ()
    return (*map(float, through), float(down), float(across))


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
    values, spacing = volume.values, volume.spacing
    if across[0] != wanted:
        values, across, down = values.swapaxes(2, 3), down, across
        spacing = spacing and (spacing[0], spacing[2], spacing[1])
    flips = [axis for axis, leads, aim in ((3, across[1], right), (2, down[1], bottom)) if leads != aim]
    if through[1] != _THROUGH[through[0]]:
        flips.append(1)
    return replace(volume, values=np.flip(values, tuple(flips)), affine=None, spacing=spacing)


def _shown(volume: Volume, data: Data) -> Pixels:
    """uint8 [C, D, H, W], C = 3 for colour; what is black and what is white follows from all of it."""
    colour = volume.facts.repeats == "colour"
    return _eight_bits(volume.values if colour else volume.values[len(volume.values) // 2][np.newaxis], volume, data)


def _picture(slice_: Pixels) -> Image.Image:
    """[C, H, W] in mode L or RGB."""
    return Image.fromarray(np.ascontiguousarray(slice_.transpose(1, 2, 0) if len(slice_) > 1 else slice_[0]))


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
