"""How good a classifier was, told under privacy: one histogram with noise, and the figures that can be had from it.

An image is one vector of length at most 1: where its score lies and what is true of it. Between two knots a score is
divided so that their mean is the score itself: sums of confidences come out exactly, and bins have no edges at which
calibration would jump. All figures follow from that one sum, which is cheaper than a sum for each of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import sqrt
from typing import ClassVar, Self

import numpy as np

from polyclinic.core.statistics import intervals
from polyclinic.core.statistics.figures import NO_IMAGES, Bin, Figure, missing, within
from polyclinic.core.statistics.intervals import Interval, Z
from polyclinic.core.statistics.monoid import Floats, Ints, demand
from polyclinic.core.statistics.noised import UNIT, Noised, both_parts, nearest
from polyclinic.core.statistics.outcome import Kind

SIDE = 6
"""Knots on each side of 1/2: 0, 0.1, …, 0.5 and 0.5, 0.6, …, 1, so that no score is moved across 1/2."""
KNOTS = np.concatenate([np.linspace(0.0, 0.5, SIDE), np.linspace(0.5, 1.0, SIDE)])
ABOVE = np.repeat([0.0, 1.0], SIDE)
RIGHT, RIGHT_OF_SEVERAL = np.stack([1.0 - ABOVE, ABOVE]), np.stack([0.0 * ABOVE, 0.0 * ABOVE + 1.0])
"""[2, 12] whether an image is right: no below 1/2 and yes above it; of several classes the second row."""
DRAWS = 400
"""How often noise is drawn to see what it does."""
CLEAR = 3.0
"""Standard deviations of noise that a class must stand out by."""
KEYS = ("auroc", "accuracy", "balanced_accuracy", "nll", "brier", "ece", "ece_adaptive")
Sampling = Callable[[float, Floats, Floats, int], Interval]
"""(value, shares of images [2, 12], weights [2, 12], patients) → interval of sampling alone."""
NOT_TOLD = "not told under privacy"
DROWNED = "too few of one class to be told from noise"


@dataclass(frozen=True, eq=False)
class NoisedOutcome(Noised):
    """A classifier's outcome with noise; see ``rows``. ``cells`` is [Q, 2, 12].

    Attributes:
        kind: "binary" (Q = 1: answers no and yes, by the probability of yes), "multilabel" (Q = K labels, likewise,
            each divided by √K) or "multiclass" (Q = K true classes: wrong and right, by confidence).
    """

    name: ClassVar[str] = "noised_outcome"
    settings: ClassVar[tuple[str, ...]] = ("kind",)

    kind: str

    def check(self) -> None:
        """Raises UpdateError naming the field that cannot be."""
        super().check()
        demand(self.kind in ("binary", "multiclass", "multilabel"), "kind", "is unknown")
        demand(self.cells.ndim == 3 and self.cells.shape[1:] == (2, len(KNOTS)), "cells", "have another shape")
        demand(self.kind != "binary" or len(self.cells) == 1, "cells", "have another shape")

    @classmethod
    def blank(cls, kind: Kind, classes: int) -> Self:
        """That of nobody."""
        return cls(0, 0, 0, np.zeros((1 if kind == "binary" else classes, 2, len(KNOTS)), np.int64), kind)

    @property
    def scale(self) -> float:
        """What an image's histograms were divided by to be no longer than 1."""
        return sqrt(len(self.cells)) if self.kind == "multilabel" else 1.0

    def histogram(self) -> Floats:
        """[Q, 2, 12] what could have been counted: at least 0, and as many as there are units.

        Of several classes an image is in one histogram of all, of several labels in one of each.
        """
        cells = self.sums() * self.scale
        apart = cells.reshape(1 if self.kind == "multiclass" else len(cells), -1)
        return nearest(apart, float(self.units)).reshape(cells.shape)


def rows(kind: Kind, probabilities: Floats, targets: Ints) -> Floats:
    """[N, Q, 2, 12]: each image's vector, of length at most 1.

    Args:
        probabilities: [N] of class 1 (binary), else [N, K].
        targets: [N] class indices, or [N, K] of 0 and 1 (multilabel).
    """
    if kind == "multiclass":
        confidence, right = probabilities.max(axis=1, initial=0.0), probabilities.argmax(axis=1) == targets
        which = np.asarray(targets[:, None] == np.arange(probabilities.shape[1]), dtype=np.float64)
        return which[:, :, None, None] * _placed(confidence, right.astype(np.int64))[:, None]
    scores = probabilities.reshape(len(targets), -1)
    answers = targets.reshape(scores.shape)
    return _placed(scores, answers) / sqrt(scores.shape[1])


def _placed(scores: Floats, answers: Ints) -> Floats:
    """[…, 2, 12] each score divided between the two knots around it, under its answer."""
    side = (scores > 0.5).astype(np.int64)
    place = np.clip((scores - 0.5 * side) * 2 * (SIDE - 1), 0.0, SIDE - 1)
    low = np.minimum(np.nan_to_num(place).astype(np.int64), SIDE - 2)  # of no number the vector is none, either
    upper = place - low
    found = np.zeros((*scores.shape, 2, len(KNOTS)))
    index = (*np.indices(scores.shape), answers)
    found[(*index, side * SIDE + low)] = 1.0 - upper
    found[(*index, side * SIDE + low + 1)] = upper
    return found


def figures(outcome: NoisedOutcome, rng: np.random.Generator | None = None) -> dict[str, Figure]:
    """Figures by key, under those of an outcome without noise; ``rng`` draws what noise does to them.

    Estimates are worked out on the noised sums themselves, which are right on average, as ``nearest`` ones are not.
    Intervals add two parts as independent: sampling, by the formulas for figures without noise, and the noise.
    """
    found = {key: missing(NOT_TOLD if outcome.units else NO_IMAGES) for key in KEYS}
    if not outcome.units:
        return found
    rng = rng or outcome.generator()
    seen, cells = outcome.histogram(), outcome.sums() * outcome.scale
    spread = outcome.noise * outcome.scale
    again = seen + rng.normal(0.0, spread, (DRAWS, *seen.shape))
    several = outcome.kind == "multiclass"
    found["accuracy"] = _linear(outcome, cells, RIGHT_OF_SEVERAL if several else RIGHT, _wilson)
    if not several:
        found["brier"] = _linear(outcome, cells, np.stack([KNOTS**2, (1 - KNOTS) ** 2]), _student)
    found["ece"] = _ece(outcome, cells, rng)
    sides = np.minimum(_sides(outcome, seen), _sides(outcome, cells))
    if float(sides.min()) < max(0.5, CLEAR * spread * sqrt(2 * len(KNOTS))):
        return found | dict.fromkeys(("balanced_accuracy", *(() if several else ("auroc",))), missing(DROWNED))
    found["balanced_accuracy"] = both_parts(
        recalls(cells, outcome).mean(), _recall_limits(outcome, seen), recalls(again, outcome).mean(axis=-1).std()
    )
    if not several:
        found["auroc"] = both_parts(areas(cells).mean(), _area_limits(outcome, seen), areas(again).mean(axis=-1).std())
    return found


def accuracy_noise(blank: NoisedOutcome, noise: float, units: int) -> float:
    """Standard deviation that noise of multiplier ``noise`` gives to the accuracy among so many units."""
    told = replace(blank, patients=units, units=units, variance=round(noise**2 * 2**UNIT))
    return figures(told)["accuracy"].noise


def _linear(outcome: NoisedOutcome, cells: Floats, weights: Floats, sampling: Sampling) -> Figure:
    """The mean of ``weights`` [2, 12] over images.

    How many images there are is known, so that their mean weight need not be told by noised cells.
    """
    mean = float(weights.mean())
    images = outcome.units * (len(cells) if outcome.kind == "multilabel" else 1)
    value = mean + float((cells * (weights - mean)).sum()) / images
    noise = outcome.noise * outcome.scale * sqrt(len(cells) * float(((weights - mean) ** 2).sum())) / images
    kept = outcome.histogram().sum(axis=0)
    return both_parts(value, sampling(value, kept / kept.sum(), weights, outcome.patients), noise)


def _wilson(value: float, share: Floats, weights: Floats, patients: int) -> Interval:
    return intervals.wilson(float(np.clip(value, 0.0, 1.0)), patients)


def _student(value: float, share: Floats, weights: Floats, patients: int) -> Interval:
    centre = float((share * weights).sum())
    half = Z * sqrt(max(0.0, float((share * weights**2).sum()) - centre**2) / max(1, patients))
    return value - half, value + half


def _ece(outcome: NoisedOutcome, cells: Floats, rng: np.random.Generator) -> Figure:
    """Σ |Σ confidence − Σ answers| ÷ images over knots, each gap's square less what noise adds to it on average.

    By the triangle inequality the gaps as they are seen exceed the true ones by at most Σ |noise|, whose 97.5 %
    quantile gives the lower limit; on average they do exceed them, so that their own spread gives the upper one.
    """
    by_knot, seen = cells.sum(axis=0), outcome.histogram().sum(axis=0)
    images = float(seen.sum())
    gaps = by_knot.sum(axis=0) * KNOTS - by_knot[1]
    own = outcome.noise * outcome.scale * sqrt(len(cells))
    noise = own * np.sqrt(KNOTS**2 + (1 - KNOTS) ** 2)
    shared = images / max(1, outcome.patients)  # answers of one patient may all go together
    sampling = np.sqrt(shared * (seen[0] * KNOTS**2 + seen[1] * (1 - KNOTS) ** 2))
    moved = rng.normal(0.0, np.hypot(noise, sampling), (DRAWS, len(KNOTS)))
    value = float(np.sqrt(np.maximum(0.0, gaps**2 - noise**2)).sum())
    observed, again = float(np.abs(gaps).sum()), np.abs(gaps + moved).sum(axis=1)
    low = max(0.0, observed - float(np.quantile(np.abs(moved).sum(axis=1), 0.975)))
    high = observed + float(again.mean() - np.quantile(again, 0.025))
    alone = np.abs(gaps + rng.normal(0.0, 1.0, moved.shape) * noise).sum(axis=1).std()
    value, low, high = (min(1.0, one / images) for one in (value, low, high))
    return within(value, (low, high), noise=float(alone) / images)


def _sides(outcome: NoisedOutcome, seen: Floats) -> Floats:
    """Images of each class: [Q, 2] of each answer, of several classes [K]."""
    return np.asarray(seen.sum(axis=(-2, -1)) if outcome.kind == "multiclass" else seen.sum(axis=-1))


def areas(histogram: Floats) -> Floats:
    """[…, Q] areas under the ROC curve by knots; noise of negatives and of positives is independent."""
    negatives, positives = histogram[..., 0, :], histogram[..., 1, :]
    below = np.cumsum(negatives, axis=-1) - negatives / 2
    return share((positives * below).sum(axis=-1), negatives.sum(axis=-1) * positives.sum(axis=-1))


def recalls(histogram: Floats, outcome: NoisedOutcome) -> Floats:
    """[…, R] share of each class's images that were recognised."""
    if outcome.kind == "multiclass":
        return share(histogram[..., 1, :].sum(axis=-1), histogram.sum(axis=(-2, -1)))
    right = np.stack([histogram[..., 0, :SIDE].sum(axis=-1), histogram[..., 1, SIDE:].sum(axis=-1)], axis=-1)
    shares = share(right, histogram.sum(axis=-1))
    return np.asarray(shares.reshape(*shares.shape[:-2], -1))


def share(part: Floats, whole: Floats) -> Floats:
    """A ratio that noise may have moved beyond [0, 1], but by no more than one."""
    found = np.divide(part, whole, out=np.full(part.shape, 0.5), where=whole > 0)
    return np.asarray(np.clip(found, -1.0, 2.0))


def _recall_limits(outcome: NoisedOutcome, seen: Floats) -> Interval:
    found = np.clip(recalls(seen, outcome), 0.0, 1.0).tolist()
    sizes = (_sides(outcome, seen).ravel() * outcome.patients / outcome.units).tolist()
    limits = [intervals.wilson(recall, size) for recall, size in zip(found, sizes, strict=True)]
    return intervals.average(found, limits)


def _area_limits(outcome: NoisedOutcome, seen: Floats) -> Interval:
    sizes = np.maximum(1, np.rint(_sides(outcome, seen) * outcome.patients / outcome.units)).astype(int)
    pairs = zip(areas(seen).tolist(), sizes.tolist(), strict=True)
    return intervals.average_dependent([intervals.area(area, yes, no) for area, (no, yes) in pairs])


def reliability(outcome: NoisedOutcome) -> tuple[Bin, ...]:
    """A bin for each knot, as wide as it reaches; the two at 1/2 are one."""
    by_knot = outcome.histogram().sum(axis=0)
    merged = np.delete(by_knot, SIDE, axis=1)
    merged[:, SIDE - 1] += by_knot[:, SIDE]
    at = np.delete(KNOTS, SIDE)
    half = (at[1] - at[0]) / 2
    return tuple(
        Bin(max(0.0, k - half), min(1.0, k + half), round(no + yes), k, yes / (no + yes) if no + yes > 0 else np.nan)
        for k, no, yes in zip(at.tolist(), *merged.tolist(), strict=True)
    )
