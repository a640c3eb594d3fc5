"""DICOM pictures: one frame or many, compressed or not, in grey or in colour."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from polyclinic.client.data.readers import acquisition, pixels
from polyclinic.client.data.readers.geometry import Place, flat, place, stacked
from polyclinic.client.data.volume import Facts, Volume
from polyclinic.core.errors import DataError

_NO_PICTURE = {
    "1.2.840.10008.1.3.10": "a DICOMDIR, a list of other files",
    "1.2.840.10008.5.1.4.1.1.481.3": "an RTSTRUCT, contours on a series",
    "1.2.840.10008.5.1.4.1.1.481.5": "a radiotherapy plan",
    "1.2.840.10008.5.1.4.1.1.104.1": "a PDF document in DICOM",
}
_REPORTS = "1.2.840.10008.5.1.4.1.1.88."
_WAVES = "1.2.840.10008.5.1.4.1.1.9."


def opened(path: Path, header_only: bool = False) -> Dataset:
    """The data set of a DICOM file, with or without preamble and meta header.

    Raises:
        DataError: it holds no DICOM that could be read.
    """
    try:
        dataset = pydicom.dcmread(path, force=True, stop_before_pixels=header_only)
    except (InvalidDicomError, EOFError) as failure:
        raise DataError("ends within its header, or holds no DICOM", remedy="copy it again") from failure
    if not len(dataset):
        raise DataError("is DICOM without any content", remedy="copy it again")
    return dataset


def kind(dataset: Dataset) -> str:
    """What the data set is if it is no picture, in words; else ""."""
    meta = getattr(dataset, "file_meta", Dataset())
    uid = str(dataset.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID") or "")
    if uid.startswith(_REPORTS):
        return "a report (SR)"
    return "a curve (ECG or the like)" if uid.startswith(_WAVES) else _NO_PICTURE.get(uid, "")


def read(path: Path, most: int) -> Volume:
    """The picture or the frames of one DICOM file.

    Args:
        most: bytes that its values may take.

    Raises:
        DataError: it holds no picture, or one that cannot be read, with the true reason.
    """
    return from_dataset(opened(path), most)


def from_dataset(dataset: Dataset, most: int) -> Volume:
    """The picture or the frames of one data set; errors as for ``read``."""
    other = kind(dataset)
    if other:
        raise DataError(f"holds {other}, no picture", remedy="leave it out")
    frames, window, remarks = pixels.decoded(dataset, most)
    facts = described(dataset, window, len(frames), frames.shape[1], remarks)
    places = _places(dataset, len(frames))
    if len(frames) == 1:
        return flat(frames[0], facts, places[0], thickness(dataset)) if places else _unplaced(dataset, frames, facts)
    if places:
        try:
            return stacked(list(frames), places, facts)
        except DataError as failure:
            facts = described(dataset, window, len(frames), frames.shape[1], (*remarks, failure.problem))
    return _unplaced(dataset, frames, facts)


def described(
    dataset: Dataset, window: tuple[float, float] | None, frames: int, channels: int, remarks: Sequence[str]
) -> Facts:
    """What a data set says of its picture, as far as anybody needs it."""
    taken = acquisition.acquisition(dataset)
    spacing = _spacing(dataset)
    if spacing:
        taken["pixel spacing"] = f"{spacing[0]:.2f} mm"
    said = [str(dataset.get(name) or "").strip().upper() for name in ("ImageLaterality", "Laterality")]
    if "MOSAIC" in [str(part).upper() for part in dataset.get("ImageType") or []]:
        remarks = (*remarks, "is a mosaic: many slices side by side in one picture")
    laterality, *others = dict.fromkeys(side for side in said if side) or [""]
    if others:
        remarks = (*remarks, "its two entries for the side (laterality) contradict each other")
    return Facts(
        format="DICOM",
        window=window,
        repeats="colour" if channels > 1 else "",
        acquisition=taken,
        laterality=laterality if laterality in ("", "L", "R", "B", "U") else "other",
        orientation=_orientation(dataset),
        view=acquisition.member(dataset.get("ViewPosition"), acquisition.VIEWS),
        remarks=tuple(remarks),
    )


def _orientation(dataset: Dataset) -> tuple[str, ...]:
    written = dataset.get("PatientOrientation") or []
    parts = [str(part).strip().upper() for part in ([written] if isinstance(written, str) else written)]
    known = len(parts) == 2 and all(part and set(part) <= set("LRAPHF") for part in parts)
    return tuple(parts) if known else ("other",) if any(parts) else ()


def _places(dataset: Dataset, frames: int) -> list[Place]:
    """Where each frame lies; empty if the file does not say it of all of them."""
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    own = dataset.get("PerFrameFunctionalGroupsSequence") or []
    if own:
        found = [frame_place(dataset, shared, group) for group in own[:frames]]
        return [at for at in found if at] if len(found) == frames and all(found) else []
    first = frame_place(dataset, shared, Dataset())
    offsets = dataset.get("GridFrameOffsetVector") or [0.0]
    if first is None or len(offsets) != frames:
        return []
    return [
        Place(first.corner + first.normal * (float(offset) - float(offsets[0])), first.rows, first.columns,
              first.spacing) for offset in offsets
    ]  # fmt: skip


def frame_place(dataset: Dataset, shared: Dataset, own: Dataset) -> Place | None:
    """Where one frame lies, or None if that is not said in full; ``shared`` and ``own`` are its functional groups."""
    return _place(_grouped(dataset, shared, own))


def _grouped(dataset: Dataset, shared: Dataset, own: Dataset) -> Dataset:
    """The three fields that say where a frame lies, wherever they stand."""
    found = Dataset()
    for field, group in (
        ("ImagePositionPatient", "PlanePositionSequence"),
        ("ImageOrientationPatient", "PlaneOrientationSequence"),
        ("PixelSpacing", "PixelMeasuresSequence"),
    ):
        for holder in (own, shared):
            inner = (holder.get(group) or [Dataset()])[0]
            if field in inner and field not in found:
                found[field] = inner[field]
        if field not in found and field in dataset:
            found[field] = dataset[field]
    return found


def _place(fields: Dataset) -> Place | None:
    """A place, or None if the file does not say it in full."""
    position, cosines = fields.get("ImagePositionPatient"), fields.get("ImageOrientationPatient")
    spacing = fields.get("PixelSpacing")
    if position is None or cosines is None or spacing is None:
        return None
    if not (_all_numbers(position, 3) and _all_numbers(cosines, 6) and _all_numbers(spacing, 2)):
        return None
    return place([float(x) for x in position], [float(x) for x in cosines], [float(x) for x in spacing])


def _all_numbers(values: Any, count: int) -> bool:
    try:
        return len([float(value) for value in values]) == count
    except (TypeError, ValueError):
        return False


def _spacing(dataset: Dataset) -> tuple[float, float] | None:
    """mm between pixels along (H, W): at the patient, else at the detector."""
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    written = _grouped(dataset, shared, Dataset()).get("PixelSpacing") or dataset.get("ImagerPixelSpacing")
    if written is None or not _all_numbers(written, 2) or min(float(value) for value in written) <= 0:
        return None
    return float(written[0]), float(written[1])


def thickness(dataset: Dataset) -> float:
    """mm from one slice to the next, as far as one file says it; else nan."""
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    measures = (shared.get("PixelMeasuresSequence") or [Dataset()])[0]
    for field in ("SpacingBetweenSlices", "SliceThickness"):
        written = measures.get(field, dataset.get(field))
        if written is not None and _all_numbers([written], 1) and float(written) > 0:
            return float(written)
    return float("nan")


def _unplaced(dataset: Dataset, frames: np.ndarray[Any, Any], facts: Facts) -> Volume:
    spacing = _spacing(dataset)
    values = np.ascontiguousarray(frames.transpose(1, 0, 2, 3))
    return Volume(values, facts, None, (float("nan"), *spacing) if spacing else None)
