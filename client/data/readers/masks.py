"""DICOM-SEG and RTSTRUCT as masks: numbers of classes on a grid that lies in the patient."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydicom.dataset import Dataset

from polyclinic.client.data.readers import dicom, pixels
from polyclinic.client.data.readers.geometry import Place, flat, stacked
from polyclinic.client.data.volume import Array, Facts, Volume
from polyclinic.core.errors import DataError

SEG = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
RTSTRUCT = "1.2.840.10008.5.1.4.1.1.481.3"


@dataclass(frozen=True, eq=False)
class Mask:
    """Regions of one or several classes.

    Attributes:
        volume: uint8 [classes, D, H, W], 0 or 1: regions may overlap.
        names: what each is called in the file. May be free text: it never leaves the site.
    """

    volume: Volume
    names: tuple[str, ...]

    @property
    def numbers(self) -> Array:
        """uint8 [D, H, W]: the number of the class, from 1; 0 where there is none; the later where they overlap."""
        found = np.zeros(self.volume.shape, dtype=np.uint8)
        for i, region in enumerate(self.volume.values):
            found[region > 0] = i + 1
        return found


def is_seg(dataset: Dataset) -> bool:
    """Whether it is a DICOM-SEG."""
    return str(dataset.get("SOPClassUID") or "") in SEG


def is_rtstruct(dataset: Dataset) -> bool:
    """Whether it is an RTSTRUCT."""
    return str(dataset.get("SOPClassUID") or "") == RTSTRUCT or "ROIContourSequence" in dataset


def read_seg(dataset: Dataset, most: int) -> Mask:
    """The segments of a DICOM-SEG: binary, fractional (half and more counts as in) or a map of labels.

    Its frames name their segment and their place; planes between the lowest and the highest that have no frame are
    empty.

    Raises:
        DataError: it is no segmentation, or its frames make no volume.
    """
    if not is_seg(dataset):
        raise DataError("is no DICOM-SEG", remedy="name a segmentation")
    # a map of labels may name its background, too, as number 0
    segments = [segment for segment in dataset.get("SegmentSequence") or [] if segment.get("SegmentNumber") != 0]
    if not segments:
        raise DataError("names no segments", remedy="export it again")
    frames, _, remarks = pixels.decoded(dataset, most)
    groups, shared = dataset.get("PerFrameFunctionalGroupsSequence") or [], _shared(dataset)
    if len(groups) != len(frames):
        raise DataError(
            f"holds the pixels of {len(frames)} of the {len(groups)} frames that it describes", remedy="export it again"
        )
    numbers = [int(segment.get("SegmentNumber") or 0) for segment in segments]
    places = [dicom.frame_place(dataset, shared, group) for group in groups]
    if not all(places):
        raise DataError("has frames that do not say where they lie", remedy="export it again")
    kind = str(dataset.get("SegmentationType") or "BINARY")
    planes = _planes([at for at in places if at], dataset)
    values = np.zeros((len(numbers), len(planes.places), *frames.shape[2:]), dtype=np.uint8)
    if values.nbytes > most:
        raise DataError(f"is too large: {len(numbers)} segments", remedy=f"at most {most // 2**20:,} MiB are decoded")
    for i, group in enumerate(groups):
        _write(values, planes.of_frame[i], frames[i, 0], kind, numbers, group, dataset)
    facts = Facts("DICOM-SEG", "mask", repeats="segment", acquisition={"modality": "SEG"}, remarks=remarks)
    names = tuple(str(segment.get("SegmentLabel") or number) for segment, number in zip(segments, numbers, strict=True))
    return Mask(_volume(values, planes.places, facts, dataset), names)


def read_rtstruct(dataset: Dataset, reference: Volume) -> Mask:
    """The closed contours of an RTSTRUCT, drawn on the grid of the series that they were drawn on.

    A pixel is in if its centre is in an odd number of contours of its slice, so that a hole is a hole.

    Args:
        reference: that series, as a volume.

    Raises:
        DataError: it is no RTSTRUCT, has no contours, or they do not lie in the slices of ``reference``.
    """
    if not is_rtstruct(dataset):
        raise DataError("is no RTSTRUCT", remedy="name a structure set")
    if reference.affine is None:
        raise DataError("lies on a series that does not say where it lies", remedy="export it with its geometry")
    regions = _contours(dataset)
    names = {int(roi.ROINumber): str(roi.get("ROIName") or roi.ROINumber)
             for roi in dataset.get("StructureSetROISequence") or [] if "ROINumber" in roi}  # fmt: skip
    values = np.stack([_drawn(lines, reference) for lines in regions.values()])
    facts = Facts("RTSTRUCT", "mask", repeats="segment", acquisition={"modality": "RTSTRUCT"})
    volume = Volume(values, facts, reference.affine, reference.spacing)
    return Mask(volume, tuple(names.get(number, str(number)) for number in regions))


def matched(mask: Volume, image: Volume) -> str:
    """Why a mask does not lie on its image, in words; "" if it does: the same grid, to a tenth of a pixel."""
    if mask.shape != image.shape:
        sizes = [" x ".join(map(str, volume.shape)) for volume in (mask, image)]
        return f"has {sizes[0]} pixels where its image has {sizes[1]}"
    if mask.affine is not None and image.affine is not None:
        apart = np.abs(mask.affine - image.affine).max() / np.linalg.norm(image.affine[:3, :3], axis=0).min()
        if apart > 0.1:
            return "lies elsewhere in the patient than its image"
    return ""


@dataclass(frozen=True, eq=False)
class _Planes:
    """The planes of a segmentation from the lowest up, and on which of them each frame lies."""

    places: list[Place]
    of_frame: list[int]


def _planes(places: Sequence[Place], dataset: Dataset) -> _Planes:
    normal = places[0].normal
    heights = np.array([float(at.corner @ normal) for at in places])
    levels = np.unique(np.round(heights, 3))
    step = float(np.diff(levels).min()) if len(levels) > 1 else 1.0
    index = np.rint((heights - levels[0]) / step).astype(int)
    if np.abs(heights - levels[0] - index * step).max() > 0.1 * step or index.max() > 100_000:
        raise DataError("has frames at uneven distances", remedy="export it again")
    base = places[int(np.argmin(heights))]
    every = [Place(base.corner + normal * step * i, base.rows, base.columns, base.spacing)
             for i in range(index.max() + 1)]  # fmt: skip
    return _Planes(every, [int(i) for i in index])


def _write(
    values: Array, plane: int, frame: Array, kind: str, numbers: Sequence[int], group: Dataset, dataset: Dataset
) -> None:
    """Adds one frame to ``values``."""
    if kind == "LABELMAP":
        for i, number in enumerate(numbers):
            values[i, plane] |= (frame == number).astype(np.uint8)
        return
    inner = group.get("SegmentIdentificationSequence") or _shared(dataset).get("SegmentIdentificationSequence")
    number = int((inner or [Dataset()])[0].get("ReferencedSegmentNumber") or 0)
    if number not in numbers:
        raise DataError(f"has a frame of segment {number}, which it does not name", remedy="export it again")
    most = float(dataset.get("MaximumFractionalValue") or 1) if kind == "FRACTIONAL" else 1.0
    values[numbers.index(number), plane] |= (frame >= 0.5 * most).astype(np.uint8)


def _volume(values: Array, places: list[Place], facts: Facts, dataset: Dataset) -> Volume:
    if len(places) > 1:
        return stacked([values[:, i] for i in range(len(places))], places, facts)
    return flat(values[:, 0], facts, places[0], dicom.thickness(dataset))


def _shared(dataset: Dataset) -> Dataset:
    found: Dataset = (dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    return found


def _contours(dataset: Dataset) -> dict[int, list[np.ndarray[Any, Any]]]:
    """For each region float64 [points, 3] (mm, LPS) of every closed contour."""
    found: dict[int, list[np.ndarray[Any, Any]]] = defaultdict(list)
    for region in dataset.get("ROIContourSequence") or []:
        for contour in region.get("ContourSequence") or []:
            if str(contour.get("ContourGeometricType") or "") != "CLOSED_PLANAR":
                continue
            points = np.array([float(value) for value in contour.get("ContourData") or []])
            if points.size < 9 or points.size % 3 or not np.isfinite(points).all():
                raise DataError("has a contour that is none", remedy="export it again")
            found[int(region.get("ReferencedROINumber") or 0)].append(points.reshape(-1, 3))
    if not found:
        raise DataError("holds no closed contours", remedy="leave it out")
    return dict(found)


def _drawn(lines: Sequence[np.ndarray[Any, Any]], reference: Volume) -> Array:
    """uint8 [D, H, W] of one region."""
    depth, height, width = reference.shape
    values = np.zeros((depth, height, width), dtype=np.uint8)
    inverse = np.linalg.inv(reference.affine)  # type: ignore[arg-type]  # looked at by the caller
    for points in lines:
        index = (inverse @ np.concatenate([points, np.ones((len(points), 1))], axis=1).T).T
        level = float(np.median(index[:, 2]))
        plane = round(level)
        if np.abs(index[:, 2] - level).max() > 0.5 or not 0 <= plane < depth:
            raise DataError("has contours outside the slices of its series", remedy="name the series it was drawn on")
        values[plane] ^= _inside(index[:, :2], height, width)
    return values


def _inside(points: np.ndarray[Any, Any], height: int, width: int) -> Array:
    """uint8 [H, W]: 1 where a pixel's centre lies in the polygon (even-odd)."""
    found = np.zeros((height, width), dtype=np.uint8)
    following = np.roll(points, -1, axis=0)
    for row in range(max(0, int(np.ceil(points[:, 1].min()))), min(height - 1, int(points[:, 1].max())) + 1):
        crosses = (points[:, 1] <= row) != (following[:, 1] <= row)
        (x0, y0), (x1, y1) = points[crosses].T, following[crosses].T
        at = np.sort(x0 + (row - y0) * (x1 - x0) / (y1 - y0))
        found[row] = np.searchsorted(at, np.arange(width), side="right") % 2
    return found
