"""Figures of a detector's outcome: average precision as COCO has it, FROC as radiologists read it, calibration."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from polyclinic.core.statistics import intervals
from polyclinic.core.statistics.detected import UNIT, Detected
from polyclinic.core.statistics.figures import NO_IMAGES, Bin, Figure, diagram, missing, real, within
from polyclinic.core.statistics.monoid import Floats, Ints

NO_BOXES = "no true boxes"
NOTHING_FOUND = "nothing was detected"
RECALLS = np.linspace(0.0, 1.0, 101)
"""COCO's."""
RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""False positives an image at which FROC is read (Setio et al. 2017, LUNA16, Med Image Anal 42:1-13)."""


class Range(NamedTuple):
    """What a figure is at least and at most, whatever the order of detections within a bin."""

    least: Floats
    most: Floats


def figures(outcome: Detected, rng: np.random.Generator | None) -> dict[str, Figure]:
    """All figures by name; ``rng`` draws the bootstrap of the calibration error, which has no interval without it."""
    return {
        "map50": mean_precision(outcome, 1),
        "map": mean_precision(outcome, outcome.hits.shape[1]),
        "sensitivity": sensitivity(outcome, (1.0,)),
        "froc": sensitivity(outcome, RATES),
        "ece": ece(outcome, rng),
    }


def mean_precision(outcome: Detected, overlaps: int) -> Figure:
    """Mean over classes, and over the first so many of ``IOUS``, of ``average_precision``: COCO's mAP.

    Classes without a true box are left out, as COCO does. Crowds and ranges of area are not known. The value is the
    middle of what the order within bins leaves open, the bound the rest.

    Interval: Wilson's for each class's average precision seen as a share among its patients, limits averaged over
    classes. Boyd et al. 2013 (ECML PKDD, LNAI 8190:451-466) find a binomial interval fit for the area under a
    precision-recall curve, with positives as witnesses; here each patient is one. An approximation.
    """
    if not outcome.images:
        return missing(NO_IMAGES)
    present = np.flatnonzero(outcome.truths)
    if not len(present):
        return missing(NO_BOXES)
    found = [average_precision(outcome.found[k], outcome.hits[k, :overlaps], int(outcome.truths[k])) for k in present]
    middles = [float((one.least + one.most).mean()) / 2 for one in found]
    bound = float(np.mean([(one.most - one.least).mean() for one in found])) / 2
    witnesses = [int(outcome.class_patients[k]) for k in present]
    limits = [intervals.wilson(middle, n) for middle, n in zip(middles, witnesses, strict=True)]
    return within(float(np.mean(middles)), intervals.average_dependent(limits), bound)


def average_precision(found: Ints, hits: Ints, truths: int) -> Range:
    """Average precision of one class [T], at each of T overlaps: precision at COCO's 101 recalls, each the best at
    that recall or a higher one.

    Precision at the k-th hit is k over how many detections come no later. It is highest if within each bin hits come
    first, and lowest if they come last; in both cases it rises within a bin, so that the bin's last hit tells.

    Args:
        found: [S] detections by bin of score, lowest first.
        hits: [T, S] those of them that hit.
        truths: how many boxes there are.
    """
    hits, found = hits[:, ::-1].astype(np.float64), found[::-1].astype(np.float64)
    right, wrong = hits.cumsum(axis=1), (found - hits).cumsum(axis=1)
    wanted = _needed(truths)
    ranges = []
    for before in (wrong, wrong - (found - hits)):
        precision = np.divide(right, right + before, out=np.zeros_like(right), where=hits > 0)
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        padded = np.pad(best, ((0, 0), (0, 1)))  # a recall that is never reached
        places = np.stack([np.searchsorted(row, wanted) for row in right])
        ranges.append(np.take_along_axis(padded, places, axis=1).mean(axis=1))
    return Range(*ranges)


def _needed(truths: int) -> Floats:
    """[101] how many hits reach each recall, by the same comparison of floats as COCO's; one for a recall of 0."""
    hits = np.maximum(1.0, np.ceil(RECALLS * truths))
    hits = np.where((hits > 1) & ((hits - 1) / truths >= RECALLS), hits - 1, hits)
    return np.where(hits / truths < RECALLS, hits + 1, hits)


def sensitivity(outcome: Detected, rates: tuple[float, ...]) -> Figure:
    """Share of true boxes hit, of all classes together and at overlap 0.5, where at most ``rates`` false positives an
    image are made; the mean over rates.

    A false positive is a detection that hits no box of its class. At a rate the lowest score counts from which on there
    are no more than that; nothing is interpolated. The bound covers every order within the bin in which it lies.

    Interval: Wilson's over patients with a true box; over rates limits are averaged.
    """
    if not outcome.images:
        return missing(NO_IMAGES)
    truths = int(outcome.truths.sum())
    if not truths:
        return missing(NO_BOXES)
    hits = outcome.hits[:, 0].sum(axis=0)[::-1]
    wrong = (outcome.found.sum(axis=0)[::-1] - hits).cumsum()
    right = np.concatenate([[0], hits.cumsum()])
    # the first bin with which there are too many: its hits may come before or after
    places = np.searchsorted(wrong, np.array(rates) * outcome.images, side="right")
    least, most = right[places] / truths, right[np.minimum(places + 1, len(hits))] / truths
    middles = ((least + most) / 2).tolist()
    limits = [intervals.wilson(middle, outcome.carriers) for middle in middles]
    bound = float((most - least).mean()) / 2
    return within(float(np.mean(middles)), intervals.average_dependent(limits), bound)


def ece(outcome: Detected, rng: np.random.Generator | None) -> Figure:
    """Detection's expected calibration error: Σ over bins of the share of detections × |precision - mean score|.

    D-ECE of Küppers et al. 2020 (CVPR workshops, arXiv 2004.13546) of scores alone, at overlap 0.5.
    """
    if not outcome.images:
        return missing(NO_IMAGES)
    groups = count, score, correct = real(outcome.reliability, UNIT)
    if not count.any():
        return missing(NOTHING_FOUND)
    value = float(np.abs(score - correct).sum() / count.sum())
    interval = None if rng is None else intervals.calibration(*groups, outcome.patients, rng)
    return within(value, interval, 2.0 ** -(UNIT + 1))


def reliability(outcome: Detected) -> tuple[Bin, ...]:
    """The reliability diagram's bins of equal width: mean score, and the share that hits at overlap 0.5."""
    return diagram(outcome.reliability, UNIT)
