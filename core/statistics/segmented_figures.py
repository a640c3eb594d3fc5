"""Figures of a segmentation's outcome: means over cases and then over classes, each with its 95 % interval.

A mean over classes leaves out those that no case has in truth. Its limits are averaged, as if classes were fully
correlated: conservative, since the classes of one picture depend on each other.
"""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import Any

import numpy as np

from polyclinic.core.statistics import intervals
from polyclinic.core.statistics.figures import NO_IMAGES, Bin, Figure, missing
from polyclinic.core.statistics.monoid import Floats
from polyclinic.core.statistics.outcome import NLL_CAP, UNIT, equal_width_edges
from polyclinic.core.statistics.segmented import REACH, Segmented

NO_CLASS = "no class present"
FEW = "fewer than two patients"
Limits = tuple[float, float] | None


def figures(outcome: Segmented, rng: np.random.Generator | None) -> dict[str, Figure]:
    """All figures by name; ``rng`` draws the bootstrap of the calibration error, which has no interval without it."""
    return {
        "dice": over_cases(outcome, "dice", 1.0),
        "dice_pooled": _over_classes(outcome, lambda i: (_pooled(outcome, i), None)),
        "surface_dice": over_cases(outcome, "surface", 1.0),
        "hd95": over_cases(outcome, "hd95", REACH),
        "nll": nll(outcome),
        "ece": ece(outcome, rng),
        **agreement(outcome),
    }


def over_cases(outcome: Segmented, field: str, most: float) -> Figure:
    """Mean over the cases that have a class, then over classes; Student's t interval over patients."""

    def one(i: int) -> tuple[float, Limits]:
        total, squared = (getattr(outcome, name)[i] / 2**UNIT for name in (field, f"{field}_squared"))
        cases, patients = int(outcome.cases[i]), int(outcome.class_patients[i])
        return total / cases, intervals.mean(total, squared, cases, patients, most)

    return _over_classes(outcome, one)


def nll(outcome: Segmented) -> Figure:
    """Mean over cases of the mean negative log-likelihood of a pixel, in nats; t interval over patients."""
    if not outcome.images:
        return missing(NO_IMAGES)
    one, two = outcome.nll / 2**UNIT, outcome.nll_squared / 2**UNIT
    limits = intervals.mean(one, two, outcome.images, outcome.patients, NLL_CAP)
    return _figure(one / outcome.images, limits)


def ece(outcome: Segmented, rng: np.random.Generator | None) -> Figure:
    """Expected calibration error of the probability of any class over all pixels: torchmetrics' with norm "l1".

    The interval takes a patient for a single pixel, as if all of a patient's pixels erred alike: conservative.
    """
    count, confidence, correct = _bins(outcome)
    if not count.sum():
        return missing(NO_IMAGES)
    value = float(np.abs(confidence - correct).sum() / count.sum())
    drawn = None if rng is None else intervals.calibration(count, confidence, correct, outcome.patients, rng)
    return _figure(value, drawn)


def agreement(outcome: Segmented) -> dict[str, Figure]:
    """Found against true volume, as shares of a class's mean true volume: bias and 95 % limits of agreement.

    Bland and Altman 1986 (Lancet 327:307-310), over all cases: bias d̄ with its t interval, limits d̄ ± 1.96 s, each
    with the interval of Bland and Altman 1999 (Stat Methods Med Res 8:135-160): s √(1/n + 1.96²/(2(n - 1))) times
    Student's quantile, n counting patients. 0.1 means a tenth too much.
    """

    def part(side: float) -> Callable[[int], tuple[float, Limits]]:
        def one(i: int) -> tuple[float, Limits]:
            n, patients, mean = outcome.images, outcome.patients, outcome.volume[i] / 2**UNIT / outcome.images
            bias = outcome.excess[i] / 2**UNIT / n / mean
            squared = outcome.excess_squared[i] / 2**UNIT / n / mean**2
            spread = sqrt(max(0.0, squared - bias**2) * n / max(1, n - 1))
            value = bias + side * intervals.Z * spread
            if patients < 2:
                return value, None
            from scipy.special import stdtrit

            error = spread * sqrt(1 / patients + (side * intervals.Z) ** 2 / (2 * (patients - 1)))
            half = float(stdtrit(patients - 1, 0.975)) * error
            return value, (value - half, value + half)

        return one

    names = {"volume_bias": 0.0, "volume_low": -1.0, "volume_high": 1.0}
    found = {name: _over_classes(outcome, part(side)) for name, side in names.items()}
    if outcome.patients == 1:
        alone = missing(FEW)
        return {name: alone if names[name] and figure.why is None else figure for name, figure in found.items()}
    return found


def reliability(outcome: Segmented) -> tuple[Bin, ...]:
    """Bins of the probability of any class, over pixels; the last, [1, 1], holds probabilities of exactly 1."""
    edges = equal_width_edges(outcome.reliability.shape[1] - 1)
    count, confidence, correct = _bins(outcome)
    with np.errstate(invalid="ignore"):
        columns: Any = (edges[:-1], edges[1:], count.astype(np.int64), confidence / count, correct / count)
    return tuple(Bin(*row) for row in zip(*(column.tolist() for column in columns), strict=True))


def by_class(outcome: Segmented) -> tuple[float | None, ...]:
    """Mean Dice over the cases of each class; None for a class that no case has."""
    return tuple(
        None if not cases else total / 2**UNIT / cases
        for total, cases in zip(outcome.dice.tolist(), outcome.cases.tolist(), strict=True)
    )


def _pooled(outcome: Segmented, i: int) -> float:
    hit, extra, missed = outcome.pixels[i].tolist()
    return float(2 * hit / (2 * hit + extra + missed))


def _over_classes(outcome: Segmented, one: Callable[[int], tuple[float, Limits]]) -> Figure:
    """Mean over the classes that any case has of ``one``'s value, and of its limits if all have them."""
    if not outcome.images:
        return missing(NO_IMAGES)
    found = [one(i) for i in np.flatnonzero(outcome.cases).tolist()]
    if not found:
        return missing(NO_CLASS)
    limits = [pair for _, pair in found if pair is not None]
    value = sum(value for value, _ in found) / len(found)
    return _figure(value, intervals.average_dependent(limits) if len(limits) == len(found) else None)


def _bins(outcome: Segmented) -> tuple[Floats, Floats, Floats]:
    count, confidence, correct = outcome.reliability.astype(np.float64)
    return count, confidence / 2**UNIT, correct


def _figure(value: float, limits: Limits) -> Figure:
    """With limits that rounding has not pushed past the value."""
    return Figure(value, None, None) if limits is None else Figure(value, min(value, limits[0]), max(value, limits[1]))
