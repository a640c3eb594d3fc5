"""How good a detector was, as integers that add over sites: hits and false alarms by score, and how far to trust it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from polyclinic.core.errors import DataError
from polyclinic.core.statistics.contents import check_counts
from polyclinic.core.statistics.monoid import Ints, Sums, demand, fixed
from polyclinic.core.statistics.outcome import equal_width_edges

IOUS = np.linspace(0.5, 0.95, 10)
"""Overlaps (intersection over union) from which on a detection counts as a hit: COCO's ten."""
UNIT = 18
"""Sums of scores are in units of 2^-18: rounding moves a mean by at most 2^-19 < 2e-6."""
MOST = 2**10
"""Boxes of one image, true or detected. Of 2^34 images these are at most 2^44, and their scores' sum 2^62 units."""


@dataclass(frozen=True, eq=False)
class Detected(Sums):
    """A detector's outcome on some images; see ``tally``.

    K is the number of classes, S that of bins of equal width for scores in [0, 1], lower edges included; the last bin
    holds 1, too.

    Attributes:
        classes: K.
        images: how many.
        carriers: patients with a true box of any class.
        class_patients, class_images: [K] patients and images with a true box of each class.
        truths: [K] true boxes of each class.
        found: [K, S] detections by class and score.
        hits: [K, 10, S] those of them that match a true box, at each overlap of ``IOUS``.
        reliability: [3, B + 1] count, Σ score (2^-18), Σ hits at the lowest overlap, in B bins of equal width; the
            last is exactly 1.
    """

    name: ClassVar[str] = "detected"
    settings: ClassVar[tuple[str, ...]] = ("classes",)

    classes: int
    images: int
    carriers: int
    class_patients: Ints
    class_images: Ints
    truths: Ints
    found: Ints
    hits: Ints
    reliability: Ints

    def check(self) -> None:
        """Raises UpdateError naming the field that cannot be."""
        super().check()
        demand(1 <= self.classes <= 2**16, "classes", "is no possible number")
        check_counts(self.patients, self.images)
        self._check_truths()
        self._check_found()
        self._check_reliability()

    def _check_truths(self) -> None:
        for field in ("class_patients", "class_images", "truths"):
            counts = getattr(self, field)
            demand(counts.shape == (self.classes,), field, "has another shape")
            demand(bool((counts >= 0).all()), field, "has negative counts")
        demand(bool((self.class_images <= self.images).all()), "class_images", "are more than images")
        least, most = self.class_images, self.class_images * MOST
        demand(bool(((least <= self.truths) & (self.truths <= most)).all()), "truths", "do not fit the images")
        most = np.minimum(self.class_images, self.patients)
        fits = (self.class_patients <= most) & ((self.class_patients > 0) == (self.class_images > 0))
        demand(bool(fits.all()), "class_patients", "do not fit the images of each class")
        all_of_them = sum(self.class_patients.tolist())
        possible = max(self.class_patients.tolist()) <= self.carriers <= min(self.patients, all_of_them)
        demand(possible, "carriers", "do not fit the patients of each class")

    def _check_found(self) -> None:
        demand(self.found.ndim == 2 and len(self.found) == self.classes, "found", "has another shape")
        demand(self.found.shape[1] >= 2, "found", "has too few bins")
        demand(self.hits.shape == (self.classes, len(IOUS), self.found.shape[1]), "hits", "has another shape")
        demand(bool((self.found >= 0).all()), "found", "has negative counts")
        total = sum(self.found.ravel().tolist())
        demand(total <= self.images * MOST, "found", "is more than the images can have")
        demand(bool(((self.hits >= 0) & (self.hits <= self.found[:, None])).all()), "hits", "do not fit what was found")
        demand(
            bool((self.hits.sum(axis=2) <= self.truths[:, None]).all()), "hits", "are more than there are true boxes"
        )

    def _check_reliability(self) -> None:
        bins = self.reliability
        demand(bins.ndim == 2 and len(bins) == 3 and bins.shape[1] >= 2, "reliability", "has another shape")
        count, score, correct = bins
        demand(bool((count >= 0).all() and (correct >= 0).all()), "reliability", "has negative counts")
        demand(bool((correct <= count).all()), "reliability", "has more hits than detections")
        same = sum(count.tolist()) == int(self.found.sum()) and sum(correct.tolist()) == int(self.hits[:, 0].sum())
        demand(same, "reliability", "does not add up to what was found and hit")
        edges = equal_width_edges(bins.shape[1] - 1)
        # 2^-17 of slack for each: rounding, and bins chosen in float32
        low, high = (edges[:-1] - 2**-17) * count * 2.0**UNIT, (edges[1:] + 2**-17) * count * 2.0**UNIT
        inside = bool(((low <= score) & (score <= high)).all())
        demand(inside, "reliability", "has scores outside their bin")


def tally(
    kinds: Ints,
    scores: NDArray[Any],
    hits: NDArray[np.bool_],
    truths: Ints,
    patients: Sequence[Hashable],
    bins: int = 15,
    score_bins: int = 256,
) -> Detected:
    """Counts an outcome of N images with at most D detections each.

    Args:
        kinds: [N, D] class of each detection, -1 where there is none.
        scores: [N, D] in [0, 1].
        hits: [N, D, 10] whether it matches a true box of its class and image, at each overlap of ``IOUS``.
        truths: [N, K] true boxes of each class.
        patients: [N] whose image each is.
        bins: of equal width, for the calibration error.
        score_bins: of the score histograms.

    Raises:
        DataError: lengths differ, a score is no number in [0, 1], a class is none.
    """
    n, classes = truths.shape
    _demand_sound(kinds, scores, hits, len(patients), n, classes)
    real = kinds >= 0
    kind, score, hit = kinds[real], scores[real].astype(np.float64), hits[real]
    fine = np.minimum((score * score_bins).astype(np.int64), score_bins - 1)
    wide = np.searchsorted(equal_width_edges(bins)[1:-1], score, side="right")
    matched = np.zeros((classes, len(IOUS), score_bins), np.int64)
    for i in range(len(IOUS)):
        matched[:, i] = _counts(kind[hit[:, i]], fine[hit[:, i]], (classes, score_bins))
    weights = (np.ones(len(score)), fixed(score, UNIT), hit[:, 0])
    return Detected(
        patients=len(set(patients)),
        classes=classes,
        images=n,
        carriers=_owners(patients, truths.sum(axis=1) > 0),
        class_patients=np.array([_owners(patients, there) for there in truths.T > 0], dtype=np.int64),
        class_images=(truths > 0).sum(axis=0).astype(np.int64),
        truths=truths.sum(axis=0).astype(np.int64),
        found=_counts(kind, fine, (classes, score_bins)),
        hits=matched,
        reliability=np.stack([np.bincount(wide, weight, bins + 1).astype(np.int64) for weight in weights]),
    )


def _owners(patients: Sequence[Hashable], which: NDArray[np.bool_]) -> int:
    """How many patients have one of the images marked in ``which`` [N]."""
    return len({patient for patient, marked in zip(patients, which, strict=True) if marked})


def _counts(kind: Ints, fine: Ints, shape: tuple[int, int]) -> Ints:
    """How many of each class and bin."""
    flat = np.ravel_multi_index((kind, fine), shape)
    return np.asarray(np.bincount(flat, minlength=shape[0] * shape[1]).reshape(shape), dtype=np.int64)


def _demand_sound(
    kinds: Ints, scores: NDArray[Any], hits: NDArray[np.bool_], patients: int, images: int, classes: int
) -> None:
    if kinds.shape != scores.shape or hits.shape != (*kinds.shape, len(IOUS)) or not len(kinds) == images == patients:
        raise DataError("detections, true boxes and patients are not of one length", where="outcome")
    if not ((kinds >= -1) & (kinds < classes)).all():
        raise DataError("a detection is of no class", where="outcome")
    real = kinds >= 0
    if not ((scores[real] >= 0) & (scores[real] <= 1)).all():
        problem, remedy = "scores are no numbers", "the model may have diverged: train more gently"
        raise DataError(problem, where="outcome", remedy=remedy)
