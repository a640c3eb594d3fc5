"""Folders and DICOMDIRs: which files are slices of one series, and the volume that they make."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset

from polyclinic.client.data.readers import dicom
from polyclinic.client.data.readers.geometry import Place, stacked
from polyclinic.client.data.readers.sniff import head, sniff
from polyclinic.client.data.volume import Volume
from polyclinic.core.errors import DataError

MOST_FILES = 20_000
"""Files of a folder that are looked at."""


def read_folder(folder: Path, most: int) -> Volume:
    """The volume that the DICOM slices in a folder make; what else lies there is passed over.

    Raises:
        DataError: there are no slices, several series, or slices that make no volume.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    if len(files) > MOST_FILES:
        raise DataError(f"holds {len(files):,} files", remedy=f"at most {MOST_FILES:,} are one series")
    slices = [path for path in files if _is_dicom(path)]
    listing = [path for path in slices if dicom.kind(dicom.opened(path, header_only=True)).startswith("a DICOMDIR")]
    slices = [path for path in slices if path not in listing]
    if not slices and listing:
        slices = listed(listing[0])
    if not slices:
        raise DataError("is a folder without DICOM slices", remedy="name a folder that holds one series")
    return read_series(slices, most)


def read_series(files: Sequence[Path], most: int) -> Volume:
    """The volume that DICOM slices make, in whatever order they come.

    Raises:
        DataError: a file cannot be read, or they are no one volume; the reason names the file where one is to blame.
    """
    volumes, series, left = [], set(), most
    for path in files:
        try:
            dataset = dicom.opened(path)
            volume = dicom.from_dataset(dataset, left)
        except DataError as failure:
            raise DataError(f"{path.name} {failure.problem}", remedy=failure.remedy) from failure
        series.add(str(dataset.get("SeriesInstanceUID") or ""))
        left -= volume.values.nbytes
        volumes.append(volume)
    if len(series) > 1:
        raise DataError(f"holds {len(series)} series", remedy="keep one series a folder")
    if len(volumes) == 1:
        return volumes[0]
    return _joined(volumes)


def _joined(volumes: Sequence[Volume]) -> Volume:
    """Slices of depth 1 as one volume."""
    if any(volume.values.shape[1] > 1 for volume in volumes):
        raise DataError("holds several files of several frames each", remedy="name one of the files")
    places = []
    for volume in volumes:
        if volume.affine is None or volume.spacing is None:
            raise DataError("has slices that do not say where they lie", remedy="export it with its geometry")
        axes = volume.affine[:3, :2] / np.linalg.norm(volume.affine[:3, :2], axis=0)
        places.append(Place(volume.affine[:3, 3], axes[:, 0], axes[:, 1], volume.spacing[1:]))
    return stacked([volume.values[:, 0] for volume in volumes], places, volumes[0].facts)


def listed(dicomdir: Path) -> list[Path]:
    """The picture files that a DICOMDIR names, as far as they lie beside or below it.

    Raises:
        DataError: it names files outside its folder, or none that is there.
    """
    dataset, home = dicom.opened(dicomdir), dicomdir.parent.resolve()
    found = []
    for record in dataset.get("DirectoryRecordSequence") or []:
        path = _referenced(record, home)
        if path is not None and path.is_file():
            found.append(path)
    if not found:
        raise DataError("is a DICOMDIR none of whose files is there", remedy="copy the whole medium")
    return found


def _referenced(record: Dataset, home: Path) -> Path | None:
    written = record.get("ReferencedFileID")
    if not written or str(record.get("DirectoryRecordType") or "") != "IMAGE":
        return None
    parts = [written] if isinstance(written, str) else [str(part) for part in written]
    path = Path(os.path.normpath(home.joinpath(*parts)))
    if not path.resolve().is_relative_to(home):
        raise DataError("is a DICOMDIR that names files outside its folder", remedy="do not use this medium")
    return path


def _is_dicom(path: Path) -> bool:
    try:
        return sniff(head(path), "") == "DICOM"
    except DataError:
        return False
