"""Pictures as the model sees them: PNG, JPEG, TIFF or BMP into a square of 8-bit pixels, through Pillow."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from polyclinic.core.errors import DataError
from polyclinic.core.study import Data

FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
LARGEST = 80_000_000
"""Pixels of the largest picture that is decoded: below the count at which Pillow suspects a decompression bomb."""

Pixels = NDArray[np.uint8]


def read_image(path: Path, data: Data, channels: int | None = 3) -> Pixels:
    """One picture as uint8 [channels, S, S] with S = ``data.image_size``; see ``decode`` for how it is read.

    Args:
        channels: 3, grey repeated; 1, colour turned into luma (ITU-R 601); None, 1 for a grey picture and 3 for one in
            colour. With ``data.colour == "grey"`` it is luma in any case.

    Raises:
        DataError: the file is missing, damaged, cut short, too large, or holds no picture or several.
    """
    read_as = data.model_copy(update={"colour": "grey"}) if channels == 1 else data
    try:
        with path.open("rb") as stream:
            pixels = decode(stream, read_as, str(path))
    except OSError as failure:
        raise DataError(f"cannot be read: {failure.strerror}", where=str(path), remedy="check the path") from failure
    return pixels if channels in (None, len(pixels)) else np.repeat(pixels, 3, axis=0)


def decode(stream: BinaryIO, data: Data, where: str) -> Pixels:
    """The picture in ``stream`` as uint8 [C, S, S]: C is 1 for a grey one or ``data.colour == "grey"``, else 3.

    - The orientation of its EXIF tag is applied; what is transparent becomes black.
    - Greys deeper than 8 bits, integer or float, are mapped linearly, their 0.5th percentile to 0 and their 99.5th to
      255 (their range, if these two are equal): the depth that a file claims says nothing of the range it uses.
      Colours deeper than 8 bits lose their low bits.
    - ``data.fit``: "pad" keeps all of it on black, centred; "crop" keeps the largest square in its middle; "squash"
      keeps all but the proportions. Bilinear with antialiasing; what has the right size already stays as it is.

    Raises:
        DataError: naming ``where`` and the true reason.
    """
    return fitted(_held(stream, where, _eight_bits), data)


def fitted(picture: Image.Image, data: Data) -> Pixels:
    """A picture in mode L or RGB as uint8 [C, S, S]; see ``decode``."""
    if data.colour == "grey":
        picture = picture.convert("L")
    pixels = np.array(_square(picture, data.image_size, data.fit))
    return pixels[np.newaxis] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def upright(stream: BinaryIO, where: str) -> tuple[Image.Image, str]:
    """The picture in ``stream``, upright, and its format; deep greys keep their depth, the rest is in mode L or RGB.

    Raises:
        DataError: naming ``where`` and the true reason.
    """
    formats: list[str] = []

    def seen(image: Image.Image) -> Image.Image:
        deep = image.mode[0] in "IF"
        image.load()
        return _whitened(image) if deep else _eight_bits(image)

    with_format = _held(stream, where, seen, formats.append)
    return with_format, {"MPO": "JPEG"}.get(formats[0], formats[0])


def _held(
    stream: BinaryIO,
    where: str,
    made: Callable[[Image.Image], Image.Image],
    tell: Callable[[str], None] = lambda _: None,
) -> Image.Image:
    """What ``made`` makes of the picture; whatever Pillow raises becomes a DataError."""
    # a damaged EXIF block or TIFF tag is no reason to warn: what matters of it, the pixels, is read or refused
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return made(_opened(stream, where, tell))
        except DataError:
            raise
        except UnidentifiedImageError as failure:
            raise _unidentified(stream, where) from failure
        except Exception as failure:  # decoders raise whatever they like on a damaged file
            remedy = "export it again, or leave it out"
            raise DataError(f"is damaged or cut short: {failure}", where=where, remedy=remedy) from failure


def _opened(stream: BinaryIO, where: str, tell: Callable[[str], None]) -> Image.Image:
    """The picture, decoded and upright."""
    try:
        image = Image.open(stream, formats=FORMATS)
    except Image.DecompressionBombError as failure:
        raise _too_large(str(failure), where) from failure
    width, height = image.size
    if width * height > LARGEST:
        raise _too_large(f"{width} x {height} pixels", where)
    # the further pictures of a phone's JPEG (MPO) are previews and depth maps: its first is the photograph
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames > 1:
        remedy = "save the one that is meant as a file of its own"
        raise DataError(f"holds {frames} pictures", where=where, remedy=remedy)
    tell(image.format or "")
    ImageOps.exif_transpose(image, in_place=True)
    return image


def _eight_bits(image: Image.Image) -> Image.Image:
    """The picture in mode L or RGB."""
    if image.mode in ("L", "RGB") and "transparency" not in image.info:
        return image
    if image.mode[0] in "IF":
        return _windowed(image)
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, seen).convert("L" if image.mode[0] in "1L" else "RGB")
    return image.convert("L" if image.mode == "1" else "RGB")


def _windowed(image: Image.Image) -> Image.Image:
    values = np.asarray(image, dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("some of its values are no numbers")
    if _white_is_zero(image):
        values = -values
    return Image.fromarray(stretched(values, *percentiles(values)))


def _whitened(image: Image.Image) -> Image.Image:
    """A deep grey whose high values are bright."""
    values = np.asarray(image, dtype=np.float32)
    return Image.fromarray(-values if _white_is_zero(image) else values)


def _white_is_zero(image: Image.Image) -> bool:
    return bool(getattr(image, "tag_v2", {}).get(262) == 0)  # TIFF; Pillow mends this for 8 bits only


def percentiles(values: NDArray[Any]) -> tuple[float, float]:
    """The 0.5th and 99.5th percentile; lowest and highest value, if these two are equal."""
    low, high = np.percentile(values, (0.5, 99.5))
    return (float(low), float(high)) if low != high else (float(values.min()), float(values.max()))


def stretched(values: NDArray[Any], low: float, high: float) -> Pixels:
    """Values mapped linearly, ``low`` and less to 0 and ``high`` and more to 255; all 0 if these two are equal."""
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values, dtype=np.float64)
    return np.rint(np.clip(scaled, 0.0, 1.0) * 255.0).astype(np.uint8)


def _square(image: Image.Image, side: int, fit: str) -> Image.Image:
    if image.size == (side, side):
        return image
    at = placed(image.size, side, fit)
    left, top, width, height = at.taken
    if (width, height) != image.size:
        image = image.crop((left, top, left + width, top + height))
    inner = image.resize(at.inner, Image.Resampling.BILINEAR)
    if at.inner == (side, side):
        return inner
    canvas = Image.new(image.mode, (side, side))
    canvas.paste(inner, at.corner)
    return canvas


@dataclass(frozen=True, slots=True)
class Placed:
    """How a picture becomes a square: which part of it is taken, what that is resized to, and where it then lies.

    Attributes:
        taken: left, top, width and height, in pixels of the picture.
        inner: width and height in the square.
        corner: left and top in the square.
    """

    taken: tuple[int, int, int, int]
    inner: tuple[int, int]
    corner: tuple[int, int]


def placed(size: tuple[int, int], side: int, fit: str) -> Placed:
    """What ``data.fit`` makes of a picture of ``size`` (width, height); see ``decode``."""
    width, height = size
    if fit == "crop":
        edge = min(size)
        return Placed(((width - edge) // 2, (height - edge) // 2, edge, edge), (side, side), (0, 0))
    if fit == "squash":
        return Placed((0, 0, width, height), (side, side), (0, 0))
    across, down = (max(1, round(length * side / max(size))) for length in size)
    return Placed((0, 0, width, height), (across, down), ((side - across) // 2, (side - down) // 2))


def fitted_mask(mask: NDArray[Any], side: int, fit: str) -> NDArray[Any]:
    """A mask [..., H, W] as [..., side, side] placed as ``fitted`` places its picture: nearest pixels, around it -1."""
    at = placed((mask.shape[-1], mask.shape[-2]), side, fit)
    left, top, width, height = at.taken
    columns, rows = nearest(width, at.inner[0]) + left, nearest(height, at.inner[1]) + top
    square = np.full((*mask.shape[:-2], side, side), -1, dtype=mask.dtype)
    x, y = at.corner
    square[..., y : y + at.inner[1], x : x + at.inner[0]] = mask[..., rows[:, None], columns]
    return square


def nearest(length: int, size: int) -> NDArray[np.int64]:
    """[size] which of ``length`` pixels lies nearest to each of as many evenly spread over the same extent."""
    return ((np.arange(size) + 0.5) * length / size).astype(np.int64)


def _too_large(size: str, where: str) -> DataError:
    remedy = f"make it smaller: at most {LARGEST:,} pixels are decoded"
    return DataError(f"is too large: {size}", where=where, remedy=remedy)


def _unidentified(stream: BinaryIO, where: str) -> DataError:
    stream.seek(0)
    if not stream.read(1):
        return DataError("is empty (0 bytes)", where=where, remedy="copy it again")
    remedy = "export it as PNG; a file with the right name may hold another format, or be damaged at its start"
    return DataError(f"is no {', '.join(FORMATS[:-1])} or {FORMATS[-1]} picture", where=where, remedy=remedy)
