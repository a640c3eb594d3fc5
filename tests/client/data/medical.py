"""Medical files with known content, written by pydicom and nibabel."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

CANARY = "CANARY"
"""Begins whatever no output may hold."""


def dataset(values: np.ndarray, **fields: Any) -> Dataset:
    """A CT slice of ``values`` ([H, W], [H, W, 3] or [N, H, W]); ``fields`` replace or (None) remove what it has."""
    made = FileDataset("", {}, file_meta=FileMetaDataset(), preamble=b"\0" * 128)
    made.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    made.file_meta.MediaStorageSOPClassUID = made.SOPClassUID = CTImageStorage
    made.file_meta.MediaStorageSOPInstanceUID = made.SOPInstanceUID = generate_uid()
    made.SeriesInstanceUID = "1.2.3"
    made.Modality = "CT"
    made.Manufacturer, made.ManufacturerModelName = "SIEMENS", "Skyra"
    made.PatientName, made.PatientID, made.StudyDate = f"{CANARY}^NAME", f"{CANARY}-ID", "19700101"
    colour = values.ndim == 3 and values.shape[-1] == 3
    frames = values.ndim == 3 and not colour
    made.Rows, made.Columns = values.shape[1:] if frames else values.shape[:2]
    if frames:
        made.NumberOfFrames = len(values)
    made.SamplesPerPixel = 3 if colour else 1
    made.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
    if colour:
        made.PlanarConfiguration = 0
    made.BitsAllocated = made.BitsStored = values.dtype.itemsize * 8
    made.HighBit = made.BitsStored - 1
    made.PixelRepresentation = int(values.dtype.kind == "i")
    body = values.tobytes()
    made.PixelData = body + b"\0" * (len(body) % 2)
    made["PixelData"].VR = "OB" if values.dtype.itemsize == 1 else "OW"
    made.ImagePositionPatient, made.ImageOrientationPatient = [-10.0, -20.0, 30.0], [1, 0, 0, 0, 1, 0]
    made.PixelSpacing, made.SliceThickness = [0.5, 0.25], 2.0
    return changed(made, **fields)


def changed(made: Dataset, **fields: Any) -> Dataset:
    """The data set with fields replaced or, where None, removed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what pydicom thinks of our bad values
        for name, value in fields.items():
            if value is None:
                delattr(made, name)
            else:
                setattr(made, name, value)
    return made


def saved(made: Dataset, path: Path) -> Path:
    """Writes it, whatever is wrong with it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made.save_as(path, enforce_file_format=True)
    return path


def ramp(*shape: int, dtype: type = np.int16) -> np.ndarray:
    """0, 1, 2, … in this shape."""
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)
