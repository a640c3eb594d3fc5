"""Figures of an outcome: each with its 95 % interval, and how far binning may have moved it."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import NamedTuple

import numpy as np

from polyclinic.core.statistics import intervals
from polyclinic.core.statistics.intervals import Interval
from polyclinic.core.statistics.monoid import Floats
from polyclinic.core.statistics.outcome import NLL_CAP, UNIT, Outcome, equal_width_edges, fine_edges

NO_IMAGES = "no images"
ONE_CLASS = "only one class present"
GROUPS = 15
"""Groups of equal mass in the adaptive calibration error."""


@dataclass(frozen=True)
class Figure:
    """One figure.

    Attributes:
        value: None where it cannot be had, and then ``why`` says why not.
        low, high: 95 % confidence interval, low <= value <= high; None where none can be given.
        bound: the figure computed from all single predictions together lies within ``value`` ± ``bound``. It is 0
            where sums give that exactly (to 1e-7), and positive where bins had to stand for scores.
        noise: standard deviation that the noise of privacy alone gives to the figure; ``low`` and ``high`` contain it.
            Where there is noise no ``bound`` is told.
    """

    value: float | None
    low: float | None
    high: float | None
    bound: float = 0.0
    why: str | None = None
    noise: float = 0.0

    def __post_init__(self) -> None:
        assert (self.value is None) == (self.why is not None), "a figure has either a value or a reason"

    def json(self) -> dict[str, float | str | None]:
        """As an object: value, low, high, bound, and noise if there is any; or None three times and why."""
        limits: dict[str, float | str | None] = {"value": self.value, "low": self.low, "high": self.high}
        if self.why is not None:
            return {**limits, "why": self.why}
        return {**limits, "bound": self.bound} | ({"noise": self.noise} if self.noise else {})


class Bin(NamedTuple):
    """One bin of a reliability diagram: edges, how many, mean confidence, observed frequency (nan if empty)."""

    low: float
    high: float
    size: int
    confidence: float
    frequency: float


def figures(outcome: Outcome, rng: np.random.Generator | None) -> dict[str, Figure]:
    """All figures by name; ``rng`` draws the bootstrap of the calibration errors, which have no interval without it."""
    return {
        "auroc": auroc(outcome),
        "accuracy": accuracy(outcome),
        "balanced_accuracy": balanced_accuracy(outcome),
        "nll": nll(outcome),
        "brier": brier(outcome),
        "ece": ece(outcome, rng),
        "ece_adaptive": ece_adaptive(outcome, rng),
    }


def missing(why: str) -> Figure:
    """A figure that cannot be had."""
    return Figure(None, None, None, why=why)


def auroc(outcome: Outcome) -> Figure:
    """Area under the ROC curve; the mean over classes, each against the rest, of those where both sides are present.

    Scores in one bin count as ties. Each pair of a positive and a negative in one bin may in truth count 0 or 1
    instead of 1/2, hence the bound Σ_b pos_b neg_b / (2 P N). The interval is Newcombe's (see ``intervals.area``);
    of several classes the limits are averaged, which is conservative since their areas depend on each other.
    """
    if not outcome.images:
        return missing(NO_IMAGES)
    areas = [_area(histogram) for histogram in outcome.scores]
    present = [i for i, area in enumerate(areas) if area is not None]
    if not present:
        return missing(ONE_CLASS)
    found = [area for area in areas if area is not None]
    value, bound = np.mean(found, axis=0).tolist()
    pairs = [outcome.sides[i] for i in present]
    limits = [intervals.area(area, int(m), int(n)) for (area, _), (n, m) in zip(found, pairs, strict=True)]
    return within(value, intervals.average_dependent(limits), bound)


def _area(histogram: np.ndarray) -> tuple[float, float] | None:
    """(area by mid-ranks, its bound) of [2, S] counts of negatives and positives; None if either is absent."""
    negatives, positives = histogram.astype(np.float64)
    pairs = float(negatives.sum() * positives.sum())
    if pairs == 0:
        return None
    tied = float((negatives * positives).sum())
    below = float((positives * (np.cumsum(negatives) - negatives)).sum())
    return (below + tied / 2) / pairs, tied / 2 / pairs


def accuracy(outcome: Outcome) -> Figure:
    """Share of right answers (class 1 and labels above 1/2, else the likeliest class); multilabel: of all labels."""
    if not outcome.images:
        return missing(NO_IMAGES)
    right = int(np.trace(outcome.confusion, axis1=-2, axis2=-1).sum())
    value = right / int(outcome.confusion.sum())
    return within(value, intervals.wilson(value, outcome.patients))


def balanced_accuracy(outcome: Outcome) -> Figure:
    """Mean over the classes present of the share of each that was recognised; multilabel: the mean over labels.

    Interval: MOVER over Wilson intervals of each class's patients; over labels the limits are averaged.
    """
    if not outcome.images:
        return missing(NO_IMAGES)
    if outcome.kind == "multilabel":
        found = [_balanced(c, s) for c, s in zip(outcome.confusion, outcome.sides, strict=True)]
    elif outcome.kind == "binary":
        found = [_balanced(outcome.confusion, outcome.sides[0])]
    else:
        found = [_balanced(outcome.confusion, outcome.sides[:, 1])]
    present = [pair for pair in found if pair is not None]
    if not present:
        return missing(ONE_CLASS)
    value = float(np.mean([recall for recall, _ in present]))
    return within(value, intervals.average_dependent([limits for _, limits in present]))


def _balanced(confusion: np.ndarray, patients: np.ndarray) -> tuple[float, Interval] | None:
    totals = confusion.sum(axis=1)
    present = np.flatnonzero(totals)
    if len(present) < 2:
        return None
    recalls = [float(confusion[k, k] / totals[k]) for k in present]
    limits = [intervals.wilson(recall, int(patients[k])) for recall, k in zip(recalls, present, strict=True)]
    return sum(recalls) / len(recalls), intervals.average(recalls, limits)


def nll(outcome: Outcome) -> Figure:
    """Mean negative log-likelihood in nats, with Student's t interval over patients."""
    return _mean(outcome, outcome.nll, outcome.nll_squared, NLL_CAP)


def brier(outcome: Outcome) -> Figure:
    """Mean squared error of probabilities (multiclass: summed over classes, so at most 2), with a t interval."""
    return _mean(outcome, outcome.brier, outcome.brier_squared, 2.0 if outcome.kind == "multiclass" else 1.0)


def _mean(outcome: Outcome, total: int, squared: int, most: float) -> Figure:
    if not outcome.images:
        return missing(NO_IMAGES)
    one, two = total / 2**UNIT, squared / 2**UNIT
    return within(one / outcome.images, intervals.mean(one, two, outcome.images, outcome.patients, most))


def ece(outcome: Outcome, rng: np.random.Generator | None) -> Figure:
    """Expected calibration error over bins of equal width: torchmetrics' with norm "l1" (see ``tally``)."""
    if not outcome.images:
        return missing(NO_IMAGES)
    count, confidence, correct = real(outcome.reliability)
    value = float(np.abs(confidence - correct).sum() / count.sum())
    groups = (count, confidence, correct)
    return within(value, None if rng is None else intervals.calibration(*groups, outcome.patients, rng))


def ece_adaptive(outcome: Outcome, rng: np.random.Generator | None) -> Figure:
    """Expected calibration error over 15 groups of equal size, in the order of confidence.

    Of N confidences in order, group g holds those from ⌊gN/15⌋ to ⌊(g+1)N/15⌋. Where a group's edge cuts a fine bin,
    the bin is divided in proportion; the bound covers every way in which it may in truth be divided.
    """
    if not outcome.images:
        return missing(NO_IMAGES)
    count, confidence, correct = real(outcome.fine)
    total = count.sum()
    taken = _divided(count)
    share = np.divide(taken, count, out=np.zeros_like(taken), where=count > 0)
    groups = (taken.sum(axis=1), share @ confidence, share @ correct)
    gaps = np.abs(groups[1] - groups[2])
    least, most = _extremes(outcome, taken)
    furthest = np.maximum(np.abs(least), np.abs(most))
    nearest = np.where((least <= 0) & (most >= 0), 0.0, np.minimum(np.abs(least), np.abs(most)))
    bound = max((furthest - gaps).sum(), (gaps - nearest).sum()) / total
    interval = None if rng is None else intervals.calibration(*groups, outcome.patients, rng)
    return within(float(gaps.sum() / total), interval, float(bound))


def _divided(count: Floats) -> Floats:
    """[15, S] how many of each fine bin each group takes."""
    edges = np.floor(np.arange(GROUPS + 1) * count.sum() / GROUPS)
    ends = np.cumsum(count)
    low, high = np.maximum(edges[:-1, None], ends - count), np.minimum(edges[1:, None], ends)
    return np.asarray(np.maximum(0.0, high - low))


def _extremes(outcome: Outcome, taken: Floats) -> tuple[Floats, Floats]:
    """[15] least and [15] most that Σ confidence - Σ correct of each group can be."""
    count, confidence, correct = real(outcome.fine)
    edges = fine_edges(len(count))
    left = count - taken
    # of a bin's sum, a part is at least what its own edges allow and what the rest of the bin leaves over
    low = np.maximum(taken * edges[:-1], confidence - left * edges[1:])
    high = np.minimum(taken * edges[1:], confidence - left * edges[:-1])
    fewest, most = np.maximum(0.0, correct - left), np.minimum(taken, correct)
    used = taken > 0
    return np.where(used, low - most, 0.0).sum(axis=1), np.where(used, high - fewest, 0.0).sum(axis=1)


def reliability(outcome: Outcome) -> tuple[Bin, ...]:
    """The reliability diagram's bins of equal width; the last, [1, 1], holds confidences of exactly 1."""
    return diagram(outcome.reliability)


def diagram(bins: np.ndarray, unit: int = UNIT) -> tuple[Bin, ...]:
    """Bins of [3, B + 1] count, Σ confidence (2^-``unit``) and Σ correct: see ``reliability``."""
    edges = equal_width_edges(bins.shape[1] - 1)
    with np.errstate(invalid="ignore"):
        count, confidence, correct = real(bins, unit)
        columns = (edges[:-1], edges[1:], count.astype(np.int64), confidence / count, correct / count)
    return tuple(Bin(*row) for row in zip(*(column.tolist() for column in columns), strict=True))


def difference(a: Figure, b: Figure) -> Figure:
    """``a`` - ``b``, its interval by MOVER as for independent figures: conservative where they rise and fall together.

    Zou & Donner 2008 (Stat Med 27:1693-1702), equation 3 with its sign for differences.
    """
    if a.value is None or b.value is None:
        return missing(a.why or b.why or "")
    value, bound = a.value - b.value, a.bound + b.bound
    if a.low is None or a.high is None or b.low is None or b.high is None:
        return Figure(value, None, None, bound)
    low = value - sqrt((a.value - a.low) ** 2 + (b.high - b.value) ** 2)
    high = value + sqrt((a.high - a.value) ** 2 + (b.value - b.low) ** 2)
    return Figure(value, low, high, bound)


def real(bins: np.ndarray, unit: int = UNIT) -> tuple[Floats, Floats, Floats]:
    """Count, Σ confidence and Σ correct of [3, B] bins as floats in natural units."""
    count, confidence, correct = bins.astype(np.float64)
    return count, confidence / 2**unit, correct


def within(value: float, interval: Interval | None, bound: float = 0.0, noise: float = 0.0) -> Figure:
    """With limits that rounding has not pushed past the value."""
    if interval is None:
        return Figure(value, None, None, bound, noise=noise)
    return Figure(value, min(value, interval[0]), max(value, interval[1]), bound, noise=noise)
