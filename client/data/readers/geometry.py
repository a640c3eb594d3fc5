"""Slices into a volume: where each lies in the patient decides, not its number and not its name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from polyclinic.client.data.volume import Array, Facts, Geometry, Volume, from_affine
from polyclinic.core.errors import DataError

_EVEN = 0.05
"""Share of the step between slices by which one may lie off: what machines round, and no missing slice."""


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """Where one slice lies in the patient (mm, LPS).

    Attributes:
        corner: float64 [3], the centre of the first pixel.
        rows: float64 [3], the unit vector along a row (W); ``columns`` the one down a column (H).
        spacing: mm between pixels along (H, W).
    """

    corner: Geometry
    rows: Geometry
    columns: Geometry
    spacing: tuple[float, float]

    @property
    def normal(self) -> Geometry:
        """float64 [3], a unit vector."""
        found: Geometry = np.cross(self.rows, self.columns)
        return found / np.linalg.norm(found)


def place(corner: Sequence[float], cosines: Sequence[float], spacing: Sequence[float]) -> Place:
    """A place from ImagePositionPatient, ImageOrientationPatient and PixelSpacing.

    Raises:
        DataError: they are not numbers, or not the directions of a picture.
    """
    numbers = np.array([*corner, *cosines, *spacing], dtype=np.float64)
    if len(numbers) != 11 or not np.isfinite(numbers).all() or min(spacing) <= 0:
        raise DataError("says where it lies with numbers that cannot be", remedy="export it again")
    rows, columns = numbers[3:6], numbers[6:9]
    lengths = np.linalg.norm(rows), np.linalg.norm(columns)
    if max(abs(length - 1.0) for length in lengths) > 0.01 or abs(rows @ columns) > 0.01:
        raise DataError("names directions that are not at right angles", remedy="export it again")
    return Place(numbers[:3], rows / lengths[0], columns / lengths[1], (float(spacing[0]), float(spacing[1])))


def flat(values: Array, facts: Facts, where: Place, thickness: float) -> Volume:
    """One slice [C, H, W] as a volume of depth 1; ``thickness`` in mm, nan if it is unknown."""
    step = where.normal * (thickness if np.isfinite(thickness) and thickness > 0 else 1.0)
    found = from_affine(values[:, np.newaxis], facts, _affine(where, step))
    return Volume(found.values, facts, found.affine, (thickness, *where.spacing))


def stacked(slices: Sequence[Array], places: Sequence[Place], facts: Facts) -> Volume:
    """Slices [C, H, W], in any order, as a volume sorted along the normal: D leads where the normal points.

    Raises:
        DataError: the slices differ in size, lie in different directions, are missing, or are there twice.
    """
    order, step = arranged(places, [values.shape for values in slices])
    values = np.stack([slices[i] for i in order], axis=1)
    return from_affine(values, facts, _affine(places[order[0]], step))


def arranged(places: Sequence[Place], shapes: Sequence[tuple[int, ...]]) -> tuple[list[int], Geometry]:
    """The order of two or more slices along their normal, and the step (float64 [3], mm) from one to the next.

    The step need not be along the normal: a tilted gantry shears the volume, and its affine says so.
    """
    first = places[0]
    if len(set(shapes)) > 1:
        raise DataError(f"has slices of {len(set(shapes))} sizes", remedy="keep one series a folder")
    for other in places[1:]:
        turned = max(np.abs(other.rows - first.rows).max(), np.abs(other.columns - first.columns).max())
        if turned > 1e-3 or not np.allclose(other.spacing, first.spacing, rtol=1e-3):
            remedy = "keep one series a folder; a scout or localiser is none"
            raise DataError("has slices that lie in different directions, or differ in spacing", remedy=remedy)
    heights = np.array([at.corner @ first.normal for at in places])
    order = [int(i) for i in np.argsort(heights, kind="stable")]
    steps = np.diff(heights[order])
    usual = float(np.median(steps))
    twice = int((steps < max(_EVEN * usual, 1e-4)).sum())
    if twice:
        remedy = "keep one picture of each position: a folder of several times or contrasts is several volumes"
        raise DataError(f"has {twice} slice{'s' * (twice > 1)} at the place of another", remedy=remedy)
    uneven = np.flatnonzero(np.abs(steps - usual) > _EVEN * usual)
    if uneven.size:
        missing = int(sum(max(0, round(steps[i] / usual) - 1) for i in uneven))
        what = f"{missing} slice{'s' * (missing > 1)} missing" if missing else "slices at uneven distances"
        raise DataError(
            f"has {what}: steps of {steps.min():.3g} to {steps.max():.3g} mm", remedy="copy it again, whole"
        )
    step: Geometry = (places[order[-1]].corner - places[order[0]].corner) / (len(places) - 1)
    return order, step


def _affine(first: Place, step: Geometry) -> Geometry:
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = first.rows * first.spacing[1], first.columns * first.spacing[0]
    affine[:3, 2], affine[:3, 3] = step, first.corner
    return affine
