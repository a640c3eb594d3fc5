"""The one form in which every picture is held, whatever file it came from: values, geometry, and what the file says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from polyclinic.core.errors import DataError

Array = NDArray[Any]
Geometry = NDArray[np.float64]

_LPS = (("R", "L"), ("A", "P"), ("I", "S"))
"""For each axis of the patient, in the order x, y, z: where it comes from, and where it leads."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a file says of its picture, as far as anybody needs it. No date, name, identifier or free text.

    Attributes:
        format: "DICOM", "NIfTI", "Analyze", "MGH", "DICOM-SEG", "RTSTRUCT", "PNG", "JPEG", "TIFF" or "BMP".
        kind: "mask" if values are numbers of classes, 0 for none.
        window: (lowest, highest) value that is to be seen, in the unit of the values; None if the file has none.
        repeats: what several channels mean: "colour", "time", "segment", or "" for one channel.
        acquisition: of ``readers.acquisition.FIELDS`` those that are known.
        laterality: "L", "R", "B" (both), "U" (unpaired), what else is written there, or "" if nothing is.
        orientation: DICOM's PatientOrientation, such as ("P", "F"); empty if nothing is written there.
        view: DICOM's ViewPosition, if it is a known one.
        remarks: what was odd about the file, though it could be read.
    """

    format: str
    kind: Literal["image", "mask"] = "image"
    window: tuple[float, float] | None = None
    repeats: Literal["", "colour", "time", "segment"] = ""
    acquisition: Mapping[str, str] = field(default_factory=dict)
    laterality: str = ""
    orientation: tuple[str, ...] = ()
    view: str = ""
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Volume:
    """A picture or a stack of them; a flat picture has a depth of 1.

    Attributes:
        values: [C, D, H, W], real numbers (8 to 32 bits), in the unit of the file's rescaling (CT: HU). The larger,
            the brighter; what pads the picture has the lowest value.
        facts: what the file says of it.
        affine: float64 [4, 4] from the index (w, h, d, 1) to mm in the patient, **LPS** as in DICOM: x grows to the
            left, y to the back, z to the head. None where the file says nothing of it.
        spacing: mm between centres along (D, H, W); nan where it is unknown; None where all of it is unknown.
    """

    values: Array
    facts: Facts
    affine: Geometry | None = None
    spacing: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        if self.values.ndim != 4 or 0 in self.values.shape:
            raise DataError(f"has the shape {self.values.shape}, which is no picture", remedy="leave it out")
        if self.affine is not None and (self.affine.shape != (4, 4) or not np.isfinite(self.affine).all()):
            raise DataError("says where it lies with numbers that are none", remedy="export it again")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(D, H, W)."""
        _, depth, height, width = self.values.shape
        return depth, height, width

    @property
    def axes(self) -> str:
        """Where D, H and W lead, as three letters of LRAPSI; "" where it is unknown. An axial slice: "SPL"."""
        return "" if self.affine is None else "".join(reversed([letter for _, letter in directions(self.affine)]))


def from_affine(values: Array, facts: Facts, affine: Geometry) -> Volume:
    """A volume whose spacing is that of its affine."""
    width, height, depth = np.linalg.norm(affine[:3, :3], axis=0)
    return Volume(values, facts, affine, (float(depth), float(height), float(width)))


def ras_to_lps(affine: Geometry) -> Geometry:
    """The affine of NIfTI and its kin (x grows to the right, y to the front) as ours, and the other way round."""
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def real(values: Array) -> tuple[Array, tuple[str, ...]]:
    """The values with at most 32 bits, what is no finite number replaced by the lowest, and a remark if any was.

    Raises:
        DataError: not one of them is a number.
    """
    if values.dtype.kind == "b":
        return values.astype(np.uint8), ()
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    if values.dtype.kind in "iu":
        small = values.dtype.itemsize < 4 or values.dtype == np.int32
        return (values if small else values.astype(np.float32)), ()
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    good = np.isfinite(narrow)
    if good.all():
        return narrow, ()
    if not good.any():
        raise DataError("holds no value that is a number", remedy="export it again")
    filled = np.where(good, narrow, narrow[good].min())
    return filled, (f"{1.0 - good.mean():.1%} of its values are no numbers: read as the lowest",)


def canonical(volume: Volume) -> Volume:
    """The same volume with its axes turned and swapped so that W leads to the left, H to the back, D to the head.

    No value is changed; what lies oblique stays so. A volume that does not know where it lies comes back as it is.
    """
    if volume.affine is None:
        return volume
    found = directions(volume.affine)
    order = [int(np.flatnonzero([axis == wanted for axis, _ in found])[0]) for wanted in range(3)]
    affine = volume.affine[:, [*order, 3]].copy()
    values = volume.values.transpose(0, *(3 - axis for axis in reversed(order)))
    for axis in range(3):
        if found[order[axis]][1] != _LPS[axis][1]:
            length = values.shape[3 - axis]
            values = np.flip(values, 3 - axis)
            affine[:, 3] += affine[:, axis] * (length - 1)
            affine[:, axis] *= -1.0
    turned = from_affine(np.ascontiguousarray(values), volume.facts, affine)
    if volume.spacing is None:
        return turned
    depth, height, width = (volume.spacing[2 - axis] for axis in reversed(order))
    return replace(turned, spacing=(depth, height, width))


def directions(affine: Geometry) -> list[tuple[int, str]]:
    """For W, H and D: the patient's axis that it follows most closely, and the letter of where it leads.

    Each of the patient's axes is given away once, the clearest first.
    """
    cosines = affine[:3, :3] / np.maximum(np.linalg.norm(affine[:3, :3], axis=0), 1e-12)
    left, found = np.abs(cosines), [(0, "")] * 3
    for _ in range(3):
        patient, index = np.unravel_index(np.argmax(left), (3, 3))
        found[index] = (int(patient), _LPS[patient][int(cosines[patient, index] >= 0)])
        left[patient, :] = left[:, index] = -1.0
    return found
