"""NIfTI, Analyze and MGH pictures, through nibabel."""

from __future__ import annotations

import gzip
import logging
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.filebasedimages import FileBasedImage, ImageFileError
from nibabel.fileholders import FileHolder
from nibabel.freesurfer import MGHImage
from nibabel.nifti1 import Nifti1Image, Nifti1Pair
from nibabel.nifti2 import Nifti2Image, Nifti2Pair
from nibabel.spatialimages import HeaderDataError, SpatialImage
from nibabel.spm2analyze import Spm2AnalyzeImage
from nibabel.wrapstruct import WrapStructError

from polyclinic.client.data.volume import Array, Facts, Volume, from_affine, ras_to_lps, real
from polyclinic.core.errors import DataError


def read(path: Path, format_: str, start: bytes, most: int) -> Volume:
    """The volume of one file: [X, Y, Z] becomes [1, D, H, W] = [1, Z, Y, X]; times or directions become channels.

    Where qform and sform both say where a NIfTI lies, sform counts, as everywhere; where neither does, it has spacing
    and no affine. Analyze has no trustworthy orientation.

    Args:
        format_: what the file is: "NIfTI", "Analyze" or "MGH".
        start: its first bytes, unpacked.
        most: bytes that its values may take.

    Raises:
        DataError: it cannot be read, with the true reason.
    """
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # what it mends of a header is told in remarks
    with ExitStack() as streams:
        try:
            image = _image(path, format_, start, streams)
            _within(image, most)
        except (ImageFileError, HeaderDataError, WrapStructError, ValueError, EOFError, OverflowError) as failure:
            raise DataError("has a damaged header", remedy="copy it again") from failure
        except FileNotFoundError as failure:
            raise _alone() from failure
        try:
            raw = _values(image.dataobj)
        except FileNotFoundError as failure:
            raise _alone() from failure
        except (EOFError, OSError, ValueError, ImageFileError, zlib.error) as failure:
            raise DataError("is cut short or damaged within its values", remedy="copy it again") from failure
    return _volume(image, format_, raw)


def _values(stored: Any) -> Array:
    """The values as scaled; whole numbers that are not scaled stay what they are, which halves a CT."""
    scaled = getattr(stored, "slope", 1.0) != 1.0 or getattr(stored, "inter", 0.0) != 0.0
    return np.asarray(stored, dtype=np.float32) if scaled else np.asanyarray(stored)


def _alone() -> DataError:
    remedy = "put the .img beside it, under the same name"
    return DataError("is a header without its image file (.img)", remedy=remedy)


def _image(path: Path, format_: str, start: bytes, streams: ExitStack) -> SpatialImage:
    with path.open("rb") as beginning:
        packed = beginning.read(2) == b"\x1f\x8b"
    pair = start[344:348] == b"ni1\0" or start[4:8] == b"ni2\0"
    two = start[4:7] in (b"n+2", b"ni2")
    kinds: dict[str, Any] = {"MGH": MGHImage, "Analyze": Spm2AnalyzeImage}
    kind = kinds.get(format_) or (
        (Nifti2Pair if two else Nifti1Pair) if pair else (Nifti2Image if two else Nifti1Image)
    )
    if pair or format_ == "Analyze":
        found: SpatialImage = kind.from_filename(path)
        return found
    # nibabel looks at names; this opens a file by what it holds
    stream: Any = streams.enter_context(gzip.GzipFile(path) if packed else path.open("rb"))
    holder = FileHolder(fileobj=stream)
    image: SpatialImage = kind.from_file_map({"image": holder, "header": holder})
    return image


def _within(image: FileBasedImage, most: int) -> None:
    shape = tuple(int(length) for length in image.shape)
    if not shape or min(shape) < 1 or len(shape) > 7:
        raise DataError(f"has a damaged header: the shape {shape}", remedy="copy it again")
    proxy: Any = image.dataobj
    bytes_each = 2 if proxy.dtype.itemsize <= 2 and (proxy.slope, proxy.inter) == (1.0, 0.0) else 4
    if float(np.prod([float(length) for length in shape])) * bytes_each > most:
        size = " x ".join(map(str, shape))
        raise DataError(f"is too large: {size} voxels", remedy=f"at most {most // 2**20:,} MiB are decoded")


def _volume(image: SpatialImage, format_: str, raw: Array) -> Volume:
    colour = bool(raw.dtype.names)
    if colour:  # records of three bytes, or four
        raw = np.stack([raw[name] for name in ("R", "G", "B")], axis=-1)
    if raw.dtype.kind not in "iufb":
        raise DataError("holds values that are no real numbers", remedy="export it with real numbers")
    values = np.asarray(raw)
    while values.ndim < 3:
        values = values[..., np.newaxis]
    extra = int(np.prod(values.shape[3:])) if values.ndim > 3 else 1
    values = values.reshape(*values.shape[:3], extra).transpose(3, 2, 1, 0)
    values, remarks = real(values)
    facts = Facts(format_, repeats="colour" if colour else "time" if extra > 1 else "", remarks=remarks)
    values = np.ascontiguousarray(values)
    zooms = [abs(float(zoom)) for zoom in image.header.get_zooms()[:3]]
    zooms += [float("nan")] * (3 - len(zooms))
    spacing = (zooms[2], zooms[1], zooms[0])
    if not any(np.isfinite(zooms)) or max(zooms) == 0.0:
        return Volume(values, facts)
    affine = np.asarray(image.affine, dtype=np.float64) if _placed(image) else None
    if affine is None:
        return Volume(values, facts, None, spacing)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        remarks = (*facts.remarks, "says where it lies with numbers that cannot be")
        return Volume(values, Facts(format_, repeats=facts.repeats, remarks=remarks), None, spacing)
    return from_affine(values, facts, ras_to_lps(affine))


def _placed(image: SpatialImage) -> bool:
    header: Any = image.header
    if isinstance(image, Nifti1Pair | Nifti2Pair):
        return bool(int(header["qform_code"]) > 0 or int(header["sform_code"]) > 0)
    return isinstance(image, MGHImage)
