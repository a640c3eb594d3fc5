"""The values of a DICOM picture: decompressed, rescaled, bright where high, what pads them at the bottom."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels import apply_color_lut, apply_modality_lut

from polyclinic.client.data.readers.packed import count, unpacked
from polyclinic.client.data.volume import Array, real
from polyclinic.core.errors import DataError

_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT", "YBR_PARTIAL_420", "YBR_PARTIAL_422")
_GREYS = ("MONOCHROME1", "MONOCHROME2")


def decoded(dataset: Dataset, most: int) -> tuple[Array, tuple[float, float] | None, tuple[str, ...]]:
    """([N, C, H, W], the window or None, remarks) of a data set with N frames.

    Colour is RGB, 8 bits; grey is what modality rescaling makes of it, MONOCHROME1 mirrored so that high is bright.

    Raises:
        DataError: there are no pixels, too many, or they cannot be decoded.
    """
    photometric, remarks = _promised(dataset, most)
    frames = unpacked(dataset)
    if photometric == "PALETTE COLOR":
        return _eight_bits(_channelled(apply_color_lut(frames, dataset), 3)), None, remarks
    if photometric in _COLOURS:
        return _eight_bits(_channelled(frames, 3)), None, remarks
    stored = _channelled(frames, 1)
    if stored.dtype.kind == "f":
        stored, more = real(stored)
        remarks = (*remarks, *more)
    padding = _padding(dataset, stored)
    values = _rescaled(dataset, stored)
    window = _window(dataset) or _whole_range(dataset, values)
    if photometric == "MONOCHROME1":
        low, high = values.min(), values.max()
        values = low + high - values
        window = window and (float(low + high - window[1]), float(low + high - window[0]))
    if padding is not None and padding.any() and not padding.all():
        values = np.where(padding, values[~padding].min(), values)
    return np.ascontiguousarray(_narrowed(values)), window, remarks


def _promised(dataset: Dataset, most: int) -> tuple[str, tuple[str, ...]]:
    """The photometric interpretation, and remarks, once the header holds what pixels need."""
    if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
        raise DataError("is DICOM without a picture", remedy="leave it out")
    sizes = {}
    for name, words in (("Rows", "rows"), ("Columns", "columns")):
        sizes[name] = dataset.get(name)
        if not isinstance(sizes[name], int) or sizes[name] <= 0:
            raise DataError(f"does not say how many {words} it has", remedy="export it again")
    frames = count(dataset.get("NumberOfFrames"), "frames")
    samples = count(dataset.get("SamplesPerPixel"), "channels")
    bits = count(dataset.get("BitsAllocated") or 16, "bits")
    size = sizes["Rows"] * sizes["Columns"] * frames * samples * max(4, bits // 8)
    if size > most:
        what = f"{sizes['Rows']} x {sizes['Columns']} pixels, {frames} frames"
        raise DataError(f"is too large: {what}", remedy=f"at most {most // 2**20:,} MiB are decoded")
    written = str(dataset.get("PhotometricInterpretation") or "").strip().upper()
    if written in (*_COLOURS, *_GREYS, "PALETTE COLOR"):
        if samples != (3 if written in _COLOURS else 1):
            what = f"has {samples} channels, where its colour space ({written}) has another number"
            raise DataError(what, remedy="export it again")
        return written, ()
    if written:
        raise DataError("is in a colour space that is not read", remedy="export it in grey or RGB")
    guessed = "RGB" if samples == 3 else "MONOCHROME2"
    dataset.PhotometricInterpretation = guessed
    return guessed, (f"does not say what its values mean: read as {guessed}",)


def _channelled(frames: Array, channels: int) -> Array:
    """[N, C, H, W] of what pydicom gives."""
    if channels == 1:
        if frames.ndim == 4 or (frames.ndim == 3 and frames.shape[-1] in (3, 4) and frames.shape[0] > 4):
            raise DataError("says that it is grey, but has several channels", remedy="export it again")
        return frames.reshape(-1, 1, *frames.shape[-2:])
    if frames.ndim < 3 or frames.shape[-1] < channels:
        raise DataError("says that it is in colour, but has one channel", remedy="export it again")
    whole = frames.reshape(-1, *frames.shape[-3:])[..., :channels]
    return np.ascontiguousarray(whole.transpose(0, 3, 1, 2))


def _eight_bits(colours: Array) -> Array:
    if colours.dtype == np.uint8:
        return colours
    # 16 bits: the depth that the picture uses, so that 12 bits stored in 16 do not come out dark
    depth = max(8, int(colours.max()).bit_length())
    return (colours >> (16 if depth > 12 else depth) - 8).clip(0, 255).astype(np.uint8)


def _rescaled(dataset: Dataset, stored: Array) -> Array:
    """What the modality's table or slope and intercept make of the stored values; integers as long as they are."""
    if dataset.get("ModalityLUTSequence"):
        return _whole(np.asarray(apply_modality_lut(stored, dataset)))
    fields = _transformation(dataset)
    try:
        slope, intercept = (
            float(fallback if fields.get(name) in (None, "") else fields[name].value)
            for name, fallback in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0))
        )
    except (TypeError, ValueError) as failure:
        raise DataError("has a rescale slope or intercept that is no number", remedy="export it again") from failure
    if not (math.isfinite(slope) and math.isfinite(intercept)) or slope == 0.0:
        raise DataError("has a rescale slope or intercept that cannot be", remedy="export it again")
    return _whole(stored * slope + intercept if (slope, intercept) != (1.0, 0.0) else stored)


def _whole(values: Array) -> Array:
    """int32 if no value has a fraction or is beyond 31 bits, else float32."""
    if values.dtype.kind in "iu" and values.dtype.itemsize <= 2:
        return values.astype(np.int32)
    if np.abs(values).max() < 2**24 and (values.dtype.kind in "iu" or np.array_equal(values, np.rint(values))):
        return values.astype(np.int32)
    return values.astype(np.float32)


def _narrowed(values: Array) -> Array:
    """int16 where whole numbers fit into it: a CT of 500 slices is large enough as it is."""
    if values.dtype.kind == "f" or values.min() < -(2**15) or values.max() >= 2**15:
        return values
    return values.astype(np.int16)


def _transformation(dataset: Dataset) -> Dataset:
    """Where slope and intercept stand: in the first frame's groups, the shared ones, or the data set itself."""
    return _group(dataset, "PixelValueTransformationSequence")


def _group(dataset: Dataset, name: str) -> Dataset:
    for holder in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        groups = dataset.get(holder) or [Dataset()]
        inner = groups[0].get(name) or []
        if len(inner):
            found: Dataset = inner[0]
            return found
    return dataset


def _padding(dataset: Dataset, stored: Array) -> np.ndarray[Any, np.dtype[np.bool_]] | None:
    """Which stored values only fill the picture up."""
    value, limit = dataset.get("PixelPaddingValue"), dataset.get("PixelPaddingRangeLimit")
    if not isinstance(value, int) or "SegmentSequence" in dataset:  # a map of labels pads with its background
        return None
    if dataset.get("PixelRepresentation") == 1 and value >= 2 ** (int(dataset.BitsAllocated) - 1):
        value -= 2 ** int(dataset.BitsAllocated)  # written without its sign
    low, high = sorted((value, limit if isinstance(limit, int) else value))
    found: np.ndarray[Any, np.dtype[np.bool_]] = (stored >= low) & (stored <= high)
    return found


def _window(dataset: Dataset) -> tuple[float, float] | None:
    """(lowest, highest) value that the file's first window shows, by the standard's formulas; None if it has none."""
    fields = _group(dataset, "FrameVOILUTSequence")
    centre, width = _first(fields.get("WindowCenter")), _first(fields.get("WindowWidth"))
    if centre is None or width is None or width < 1.0:
        return None
    if str(fields.get("VOILUTFunction") or "LINEAR") == "LINEAR":
        return (centre - 0.5 - (width - 1.0) / 2.0, centre - 0.5 + (width - 1.0) / 2.0) if width > 1.0 else None
    return centre - width / 2.0, centre + width / 2.0


def _whole_range(dataset: Dataset, values: Array) -> tuple[float, float] | None:
    """0 to 255 for a picture that was stored in 8 bits and not rescaled: it is as it is to be seen."""
    eight = dataset.get("BitsStored") == 8 and dataset.get("PixelRepresentation") == 0
    return (0.0, 255.0) if eight and values.min() >= 0 and values.max() <= 255 else None


def _first(written: Any) -> float | None:
    values: Sequence[Any] = [written] if isinstance(written, str | int | float) else list(written or [])
    try:
        number = float(values[0])
    except (IndexError, TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
