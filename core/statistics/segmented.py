"""How good a segmentation was, as integers that add over sites: overlap, distances, volumes, calibration of pixels.

The per-case figures are worked out where the masks are (``models/tasks/segmentation.py``); here they are summed.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from polyclinic.core.errors import DataError
from polyclinic.core.statistics.monoid import LIMIT, Floats, Ints, Longs, Sums, demand, demand_moments
from polyclinic.core.statistics.outcome import NLL_CAP, UNIT, equal_width_edges

Unit = Literal["pixel", "mm"]
REACH = 4096.0
"""Pixels or mm at which a case's Hausdorff distance is cut off: more than any picture's diagonal."""
MOST = 2**33
"""Pixels of one picture, and mm² or mm³ of one region, at most."""
ROWS = ("true", "found", "pixels", "size", "dice", "surface", "hd95", "nll", "count", "confidence", "correct")
"""What ``tally`` needs, a row a case."""


@dataclass(frozen=True, eq=False)
class Segmented(Sums):
    """The outcome of a segmentation with K foreground classes on some cases (pictures or volumes); see ``tally``.

    A class that is absent in truth has no Dice, surface Dice or Hausdorff distance in that case; what is found of it
    there counts in ``presence`` and ``pixels``. All sums of real numbers are in units of 2^-28.

    Attributes:
        classes: K.
        unit: of distances and volumes: "pixel", or "mm" (mm, and mm² or mm³).
        tolerance: of the surface Dice, in units of 2^-28.
        images: cases.
        class_patients: [K] patients with the class in truth.
        presence: [K, 2, 2] cases by (in truth, found).
        dice, dice_squared, surface, surface_squared, hd95, hd95_squared: [K] over cases with the class in truth.
        pixels: [K, 3] true positive, false positive, false negative, of all cases together.
        volume: [K] Σ true volume.
        excess, excess_squared: [K] Σ (found - true volume), and of its square.
        nll, nll_squared: over cases, of the mean over a case's pixels.
        reliability: [3, B + 1] pixels, Σ probability of any class, Σ pixels of any class, in B bins of equal width of
            that probability; the last is exactly 1.
    """

    name: ClassVar[str] = "segmented"
    settings: ClassVar[tuple[str, ...]] = ("classes", "unit", "tolerance")

    classes: int
    unit: str
    tolerance: int
    images: int
    class_patients: Ints
    presence: Ints
    dice: Longs
    dice_squared: Longs
    surface: Longs
    surface_squared: Longs
    hd95: Longs
    hd95_squared: Longs
    pixels: Longs
    volume: Longs
    excess: Longs
    excess_squared: Longs
    nll: int
    nll_squared: int
    reliability: Longs

    @property
    def cases(self) -> Ints:
        """[K] with the class in truth."""
        return np.asarray(self.presence[:, 1].sum(axis=1))

    def check(self) -> None:
        """Raises UpdateError naming the field that cannot be."""
        super().check()
        demand(1 <= self.classes < 255, "classes", "is no possible number")
        demand(self.unit in ("pixel", "mm"), "unit", "is unknown")
        demand(0 <= self.tolerance <= int(REACH) << UNIT, "tolerance", "is no possible distance")
        demand(0 <= self.images <= LIMIT, "images", "is no possible count")
        demand(self.patients <= self.images, "patients", "are more than images")
        demand((self.patients == 0) == (self.images == 0), "patients", "are none while there are images")
        k = (self.classes,)
        shapes = {"class_patients": k, "presence": (*k, 2, 2), "pixels": (*k, 3), "volume": k, "excess": k}
        shapes |= {f"{field}{squared}": k for field in ("dice", "surface", "hd95") for squared in ("", "_squared")}
        for field, shape in (shapes | {"excess_squared": k}).items():
            demand(getattr(self, field).shape == shape, field, "has another shape")
        self._check_presence()
        for i, (cases, both) in enumerate(zip(self.cases.tolist(), self.presence[:, 1, 1].tolist(), strict=True)):
            # a class that was missed adds nothing to Dice and surface Dice
            for field, count, cap in (("dice", both, 1), ("surface", both, 1), ("hd95", cases, int(REACH))):
                total, squared = getattr(self, field)[i], getattr(self, f"{field}_squared")[i]
                demand_moments(total, squared, count, cap, UNIT, field)
            self._check_volume(i)
        demand_moments(self.nll, self.nll_squared, self.images, int(NLL_CAP), UNIT, "nll")
        self._check_bins()

    def _check_presence(self) -> None:
        demand(bool((self.presence >= 0).all()), "presence", "has negative counts")
        demand(bool((self.presence <= self.images).all()), "presence", "does not add up to the images")
        sums = self.presence.sum(axis=(1, 2))
        demand(bool((sums == self.images).all()), "presence", "does not add up to the images")
        most = np.minimum(self.cases, self.patients)
        fits = (self.class_patients <= most) & ((self.class_patients > 0) == (self.cases > 0))
        demand(bool(fits.all()), "class_patients", "do not fit the cases of each class")
        demand(all(0 <= n <= self.images * MOST for n in self.pixels.ravel()), "pixels", "are no possible counts")
        for (hit, extra, missed), of_class in zip(self.pixels.tolist(), self.presence.tolist(), strict=True):
            true, found = sum(of_class[1]), of_class[0][1] + of_class[1][1]
            demand((hit + missed > 0) == (true > 0), "pixels", "contradict the presence")
            demand((hit + extra > 0) == (found > 0), "pixels", "contradict the presence")

    def _check_volume(self, i: int) -> None:
        volume, excess, squared = self.volume[i], self.excess[i], self.excess_squared[i]
        hit, extra, missed = self.pixels[i].tolist()
        slack = self.images + 1
        demand(-slack <= volume <= (self.images * MOST << UNIT) + slack, "volume", "is no possible sum")
        demand(-slack <= volume + excess <= (self.images * MOST << UNIT) + slack, "excess", "does not fit volume")
        if self.unit == "pixel":
            demand(volume == (hit + missed) << UNIT, "volume", "contradicts the pixels")
            demand(excess == (extra - missed) << UNIT, "excess", "contradicts the pixels")
        # no case differs by more than what is true and what is found of it
        both = 2 * volume + excess + 2 * slack
        low, high = excess**2 - 2 * slack * abs(excess), (both**2 >> UNIT) + slack
        possible = 0 <= squared <= high and low <= (squared + slack) * max(self.images, 1) << UNIT
        demand(possible, "excess_squared", "does not fit excess")

    def _check_bins(self) -> None:
        edges = equal_width_edges(self.reliability.shape[-1] - 1)
        demand(self.reliability.shape == (3, len(edges) - 1), "reliability", "has another shape")
        count, confidence, correct = self.reliability.tolist()
        demand(min(*count, *correct) >= 0, "reliability", "has negative counts")
        demand(sum(count) <= self.images * MOST, "reliability", "has more pixels than there can be")
        right = sum(hit + missed for hit, _, missed in self.pixels.tolist())
        demand(sum(correct) == right, "reliability", "contradicts the pixels")
        for low, high, n, total, hits in zip(edges[:-1], edges[1:], count, confidence, correct, strict=True):
            demand(hits <= n, "reliability", "has more of a class than there are")
            # 2^-20 of slack for each: rounding, and bins chosen in float32
            least, most = (
                int(np.floor((edge + step) * 2**UNIT)) * n for edge, step in ((low, -(2**-20)), (high, 2**-20))
            )
            demand(least <= total <= most, "reliability", "has probabilities outside their bin")


def tally(
    rows: Mapping[str, np.ndarray],
    patients: Sequence[Hashable],
    *,
    classes: int,
    unit: Unit = "pixel",
    tolerance: float = 1.0,
) -> Segmented:
    """Counts an outcome of N cases.

    Args:
        rows: by the names in ``ROWS``:
            true, found: bool [N, K], whether the class is in truth, and in what was predicted.
            pixels: int64 [N, K, 3] true positive, false positive, false negative.
            size: float64 [N], area or volume of one pixel in ``unit``, 1 for pixels.
            dice, surface, hd95: float64 [N, K]; not looked at where the class is not in truth.
            nll: float64 [N], mean over the pixels of a case, in nats.
            count, confidence, correct: int64 [N, B + 1] of ``Segmented.reliability``; confidence in units of 2^-28.
        patients: [N] whose case each is.
        classes, unit, tolerance: of ``Segmented``, the tolerance in ``unit``.

    Raises:
        DataError: rows that are not of one length, or numbers that are no such figures.
    """
    _demand_sound(rows, len(patients), classes)
    true, found, pixels = rows["true"].astype(bool), rows["found"].astype(bool), rows["pixels"]
    size = rows["size"][:, None]
    hit, extra, missed = (pixels[:, :, i].astype(np.float64) for i in range(3))
    volume, excess = (hit + missed) * size, (extra - missed) * size
    index: dict[Hashable, int] = {}
    codes = np.array([index.setdefault(patient, len(index)) for patient in patients], dtype=np.int64)
    moments: dict[str, Longs] = {}
    for name, cap in (("dice", 1.0), ("surface", 1.0), ("hd95", REACH)):
        values = np.where(true, np.minimum(np.where(true, rows[name], 0.0), cap), 0.0)
        moments |= {name: _sums(values), f"{name}_squared": _sums(values**2)}
    loss = np.minimum(rows["nll"], NLL_CAP)[:, None]
    sides = [[(true == a) & (found == b) for b in (False, True)] for a in (False, True)]
    binned = [rows[name].astype(np.object_).sum(axis=0) for name in ("count", "confidence", "correct")]
    return Segmented(
        patients=len(index),
        classes=classes,
        unit=unit,
        tolerance=round(tolerance * 2**UNIT),
        images=len(patients),
        class_patients=np.array([len(np.unique(codes[column])) for column in true.T], dtype=np.int64),
        presence=np.array([[side.sum(axis=0) for side in row] for row in sides], dtype=np.int64).transpose(2, 0, 1),
        **moments,
        pixels=_longs(pixels.astype(np.object_).sum(axis=0), (classes, 3)),
        volume=_sums(volume),
        excess=_sums(excess),
        excess_squared=_sums(excess**2),
        nll=_sums(loss)[0],
        nll_squared=_sums(loss**2)[0],
        reliability=_longs(binned, (3, rows["count"].shape[1])),
    )


def _demand_sound(rows: Mapping[str, np.ndarray], cases: int, classes: int) -> None:
    if any(len(rows[name]) != cases for name in ROWS):
        raise DataError("rows and patients are not of one length", where="segmented")
    if any(rows[name].shape[1:2] != (classes,) for name in ("true", "found", "pixels", "dice", "surface", "hd95")):
        raise DataError(f"rows are not of {classes} classes", where="segmented")
    there = rows["true"].astype(bool)
    numbers = [rows[name][there] for name in ("dice", "surface", "hd95")]
    if not all((found >= 0.0).all() for found in (*numbers, rows["nll"])) or not np.isfinite(rows["size"]).all():
        remedy = "the model may have diverged: train more gently"
        raise DataError("figures of cases are no numbers", where="segmented", remedy=remedy)


def _sums(values: Floats) -> Longs:
    """[K] sums of [N, K] in units of 2^-28, each number rounded once."""
    return _longs(np.rint(values * 2.0**UNIT).astype(np.object_).sum(axis=0), (values.shape[1],))


def _longs(values: object, shape: tuple[int, ...]) -> Longs:
    """As Python integers; sums over no cases are 0."""
    flat = [int(value) for value in np.broadcast_to(np.array(values, dtype=np.object_), shape).ravel()]
    made = np.empty(len(flat), dtype=np.object_)
    made[:] = flat
    return made.reshape(shape)
