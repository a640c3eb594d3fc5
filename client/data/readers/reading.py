"""Any file or folder → the one internal form; the format is told by what it holds."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from polyclinic.client.data.readers.sniff import head, sniff
from polyclinic.client.data.volume import Facts, Volume
from polyclinic.core.errors import DataError

if TYPE_CHECKING:
    from polyclinic.client.data.readers.masks import Mask

MOST = 1 << 30
"""Bytes that the values of one picture may take."""
_REASON = 160
T = TypeVar("T")


def read(path: Path, most: int = MOST) -> Volume:
    """The picture in a file, or the volume that a folder's DICOM slices make.

    A DICOM-SEG is read as the numbers of its classes. Meant for a process that may die of it: see ``decoder``.

    Raises:
        DataError: naming the path and the true reason.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is odd about a file is told in its facts
        return explained(lambda: _read(path, most), path)


def read_mask(path: Path, reference: Path | None = None, most: int = MOST) -> Volume:
    """A mask in whatever form: uint8 or whole numbers [1, D, H, W], the number of the class, 0 for none.

    Args:
        reference: the file or folder of the series on which an RTSTRUCT's contours lie.

    Raises:
        DataError: it cannot be read, or holds values that are no whole numbers.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return explained(lambda: _mask(path, reference, most), path)


def _read(path: Path, most: int) -> Volume:
    from polyclinic.client.data.readers import dicom, masks, nifti, picture, series

    if path.is_dir():
        return series.read_folder(path, most)
    start = head(path)
    format_ = sniff(start, str(path))
    if format_ in ("NIfTI", "Analyze", "MGH"):
        return nifti.read(path, format_, start, most)
    if format_ != "DICOM":
        return picture.read(path, most)
    dataset = dicom.opened(path)
    return _numbered(masks.read_seg(dataset, most)) if masks.is_seg(dataset) else dicom.from_dataset(dataset, most)


def _mask(path: Path, reference: Path | None, most: int) -> Volume:
    from polyclinic.client.data.readers import dicom, masks

    if path.is_file() and sniff(head(path), str(path)) == "DICOM":
        dataset = dicom.opened(path)
        if masks.is_rtstruct(dataset):
            if reference is None:
                raise DataError("holds contours, which need the series that they lie on", remedy="name the series")
            return _numbered(masks.read_rtstruct(dataset, _read(reference, most)))
    found = _read(path, most)
    if len(found.values) > 1 and (found.values == found.values[:1]).all():  # a mask saved as a picture in colour
        found = Volume(found.values[:1], found.facts, found.affine, found.spacing)
    whole = np.rint(found.values)
    if len(found.values) > 1 or not np.array_equal(whole, found.values) or whole.min() < 0:
        raise DataError("is no mask: its values are no whole numbers from 0", remedy="give each class its number")
    facts = Facts(found.facts.format, "mask", acquisition=found.facts.acquisition, remarks=found.facts.remarks)
    return Volume(whole.astype(np.int32), facts, found.affine, found.spacing)


def _numbered(mask: Mask) -> Volume:
    facts = mask.volume.facts
    held = Facts(facts.format, "mask", acquisition=facts.acquisition, remarks=facts.remarks)
    return Volume(mask.numbers[np.newaxis], held, mask.volume.affine, mask.volume.spacing)


def explained(reading: Callable[[], T], path: Path) -> T:
    """What ``reading`` gives; whatever a decoder raises becomes a DataError that names the path."""
    try:
        return reading()
    except DataError as failure:
        raise DataError(failure.problem, where=str(path), remedy=failure.remedy) from failure
    except ImportError:
        raise  # no fault of the file's
    except MemoryError as failure:
        remedy = "make it smaller, or split it"
        raise DataError("needs more memory than a picture may take", where=str(path), remedy=remedy) from failure
    except RecursionError as failure:
        remedy = "leave it out"
        raise DataError("is nested too deeply to be read", where=str(path), remedy=remedy) from failure
    except OSError as failure:
        what = f"cannot be read: {failure.strerror}" if failure.strerror else "is damaged or cut short"
        raise DataError(what, where=str(path), remedy="check its permissions, or copy it again") from failure
    except Exception as failure:  # decoders raise whatever they like on a damaged file
        remedy = "export it again, or leave it out"
        raise DataError(f"is damaged or cut short: {_reason(failure)}", where=str(path), remedy=remedy) from failure


def _reason(failure: Exception) -> str:
    """What a decoder said, without what it may quote of the file: values in quotes stay out."""
    said = re.sub(r"'[^']*'|\"[^\"]*\"|b'[^']*'", "…", " ".join(str(failure).split()))
    return said[:_REASON] or type(failure).__name__
