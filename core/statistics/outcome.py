"""How good a classifier was, as integers that add over sites: confusions, losses, calibration, scores."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from polyclinic.core.errors import DataError
from polyclinic.core.statistics.monoid import LIMIT, Floats, Ints, Sums, demand, demand_moments, fixed

Kind = Literal["binary", "multiclass", "multilabel"]
UNIT = 28
"""Sums are in units of 2^-28: rounding moves a mean by at most 2^-29 < 2e-9."""
NLL_CAP = 1024.0
"""Nats at which one image's loss is cut off: probabilities of e^-1024 are beyond float64 anyway."""
LOGIT_CAP = 10.0
"""Score histograms are uniform in logit space on [-10, 10]; what lies beyond falls into the first and last bin."""


@dataclass(frozen=True, eq=False)
class Outcome(Sums):
    """A classifier's outcome on some images; see ``tally``.

    K is the number of classes, C the number of yes-or-no questions about an image: 1 for a binary task (is it class
    1?), K otherwise (one class against the rest). Arrays are int64; a sum of at most 2^34 numbers (``LIMIT``) that
    are at most 1 stays below 2^62 units. The losses' sums are Python integers, which have no bound.

    Attributes:
        kind: "binary", "multiclass" or "multilabel".
        classes: K.
        images: how many.
        sides: [C, 2] patients with an image for which the answer is no (0) and yes (1).
        confusion: [K, K] images by (truth, prediction); multilabel [K, 2, 2] for each label.
        nll, nll_squared, brier, brier_squared: sums over images, in units of 2^-28.
        scores: [C, 2, S] images by answer and bin of the score's logit.
        reliability: [3, B + 1] count, Σ confidence (2^-28), Σ correct in B bins of equal width; the last is exactly 1.
        fine: [3, S] the same in the bins of ``scores``.
    """

    name: ClassVar[str] = "outcome"
    settings: ClassVar[tuple[str, ...]] = ("kind", "classes")

    kind: str
    classes: int
    images: int
    sides: Ints
    confusion: Ints
    nll: int
    nll_squared: int
    brier: int
    brier_squared: int
    scores: Ints
    reliability: Ints
    fine: Ints

    @property
    def questions(self) -> int:
        """C: yes-or-no questions about an image."""
        return 1 if self.kind == "binary" else self.classes

    def check(self) -> None:
        """Raises UpdateError naming the field that cannot be."""
        super().check()
        demand(self.kind in ("binary", "multiclass", "multilabel"), "kind", "is unknown")
        least = {"binary": 2, "multiclass": 2, "multilabel": 1}[self.kind]
        demand(least <= self.classes <= (2 if self.kind == "binary" else 2**16), "classes", "is no possible number")
        demand(0 <= self.images <= LIMIT, "images", "is no possible count")
        demand(self.patients <= self.images, "patients", "are more than images")
        demand((self.patients == 0) == (self.images == 0), "patients", "are none while there are images")
        self._check_confusion()
        self._check_losses()
        answers = self._answers()
        demand(self.scores.ndim == 3 and self.scores.shape[:2] == answers.shape, "scores", "has another shape")
        demand(bool((self.scores >= 0).all()), "scores", "has negative counts")
        demand(bool((self.scores <= self.images).all()), "scores", "do not add up to the images")
        demand(bool((self.scores.sum(axis=2) == answers).all()), "scores", "do not add up to the images")
        self._check_bins("reliability", equal_width_edges(self.reliability.shape[-1] - 1))
        self._check_bins("fine", fine_edges(self.scores.shape[2]))

    def _answers(self) -> Ints:
        """[C, 2] images by answer, from the confusion counts."""
        if self.kind == "multilabel":
            return np.asarray(self.confusion.sum(axis=2))
        of_class = self.confusion.sum(axis=1)
        yes = of_class[1:] if self.kind == "binary" else of_class
        return np.stack([self.images - yes, yes], axis=1)

    def _check_confusion(self) -> None:
        shape = (self.classes, 2, 2) if self.kind == "multilabel" else (self.classes, self.classes)
        demand(self.confusion.shape == shape, "confusion", "has another shape")
        demand(bool((self.confusion >= 0).all()), "confusion", "has negative counts")
        demand(bool((self.confusion <= self.images).all()), "confusion", "does not add up to the images")
        totals = self.confusion.sum(axis=(-2, -1))
        demand(bool((totals == self.images).all()), "confusion", "does not add up to the images")
        answers = self._answers()
        demand(self.sides.shape == answers.shape, "sides", "has another shape")
        possible = (self.sides <= np.minimum(answers, self.patients)) & ((self.sides > 0) == (answers > 0))
        demand(bool(possible.all()), "sides", "do not fit the images of each class")
        demand(bool((self.sides.sum(axis=1) >= self.patients).all()), "sides", "leave patients out")

    def _check_losses(self) -> None:
        for field, cap in (("nll", NLL_CAP), ("brier", 2.0)):
            total, squared = getattr(self, field), getattr(self, f"{field}_squared")
            demand_moments(total, squared, self.images, int(cap), UNIT, field)

    def _check_bins(self, field: str, edges: Floats) -> None:
        bins = getattr(self, field)
        demand(bins.shape == (3, len(edges) - 1), field, "has another shape")
        count, confidence, correct = bins
        demand(bool((count >= 0).all() and (correct >= 0).all()), field, "has negative counts")
        demand(bool((correct <= count).all()), field, "has more correct than there are")
        each = self.classes if self.kind == "multilabel" else 1
        demand(int(count.sum()) == self.images * each, field, "does not add up to the images")
        right = int(np.trace(self.confusion)) if self.kind == "multiclass" else int(self._answers()[:, 1].sum())
        demand(int(correct.sum()) == right, field, "contradicts the confusion counts")
        # 2^-20 of slack for each: rounding, and bins chosen in float32
        low, high = (edges[:-1] - 2**-20) * count * 2.0**UNIT, (edges[1:] + 2**-20) * count * 2.0**UNIT
        demand(bool(((low <= confidence) & (confidence <= high)).all()), field, "has confidences outside their bin")


def equal_width_edges(bins: int) -> Floats:
    """[bins + 2] edges i / bins on [0, 1], then 1 again: confidences of exactly 1 have a bin to themselves.

    So torchmetrics 1.9 bins, each bin with its lower edge; but its own edges, from ``torch.linspace``, differ in their
    last bit from one processor to another.
    """
    demand(bins >= 1, "reliability", "has too few bins")
    return np.append(np.arange(bins + 1) / bins, 1.0)


def fine_edges(score_bins: int) -> Floats:
    """[score_bins + 1] edges as probabilities: uniform in logit space on [-10, 10], the outermost moved to 0 and 1."""
    demand(score_bins >= 2, "scores", "has too few bins")
    inner = 1.0 / (1.0 + np.exp(-np.linspace(-LOGIT_CAP, LOGIT_CAP, score_bins + 1)[1:-1]))
    return np.concatenate([[0.0], inner, [1.0]])


def tally(
    kind: Kind,
    probabilities: Floats,
    targets: Ints,
    patients: Sequence[Hashable],
    nll: Floats,
    bins: int = 15,
    score_bins: int = 256,
) -> Outcome:
    """Counts an outcome.

    Confidence and correctness, for calibration, are: the probability of class 1 and whether it is so (binary; for
    multilabel every label by itself), or the largest probability and whether its class is right (multiclass).

    Args:
        kind: of the task.
        probabilities: [N] of class 1 (binary), else [N, K].
        targets: [N] class indices, or [N, K] of 0 and 1 (multilabel).
        patients: [N] whose image each is.
        nll: [N] each image's negative log-likelihood in nats, computed by the caller from logits.
        bins: of equal width, for the calibration error.
        score_bins: of the score histograms.

    Raises:
        DataError: shapes that do not match, or numbers that are no probabilities, classes or losses.
    """
    classes = 2 if kind == "binary" else probabilities.shape[-1]
    _demand_sound(kind, probabilities, targets, patients, nll, classes)
    yes = _answers(kind, targets, classes)
    scores = probabilities.reshape(yes.shape)
    errors = (scores - yes) ** 2
    if kind == "multiclass":
        guess = scores.argmax(axis=1)
        confidence, correct = scores.max(axis=1, initial=0.0), guess == targets
        confusion, brier = _counts([targets, guess], (classes, classes)), errors.sum(axis=1)
    else:
        guess = (scores > 0.5).astype(np.int64)
        confidence, correct = scores.reshape(-1), yes.reshape(-1) == 1
        confusion = np.stack([_counts([t, g], (2, 2)) for t, g in zip(yes.T, guess.T, strict=True)])
        confusion, brier = confusion[0] if kind == "binary" else confusion, errors.mean(axis=1)
    # torchmetrics bins multi-class confidences in float32
    precision: type[np.floating[Any]] = np.float32 if kind == "multiclass" else np.float64
    edges, inner = equal_width_edges(bins)[:-1].astype(precision), fine_edges(score_bins)[1:-1]
    wide = np.searchsorted(edges, confidence.astype(precision), side="right") - 1
    fine = np.searchsorted(inner, scores, side="right")
    codes, loss = _codes(patients), np.minimum(nll, NLL_CAP)
    return Outcome(
        kind=kind,
        classes=classes,
        images=len(targets),
        patients=len(np.unique(codes)),
        sides=np.array([[len(np.unique(codes[t == side])) for side in (0, 1)] for t in yes.T], dtype=np.int64),
        confusion=confusion,
        nll=_total(loss),
        nll_squared=_total(loss**2),
        brier=_total(brier),
        brier_squared=_total(brier**2),
        scores=np.stack([_counts([t, b], (2, score_bins)) for t, b in zip(yes.T, fine.T, strict=True)]),
        reliability=_binned(wide, confidence, correct, bins + 1),
        fine=_binned(np.searchsorted(inner, confidence, side="right"), confidence, correct, score_bins),
    )


def _demand_sound(
    kind: Kind, probabilities: Floats, targets: Ints, patients: Sequence[Hashable], nll: Floats, classes: int
) -> None:
    n = len(targets)
    shapes = {"binary": ((n,), (n,)), "multiclass": ((n, classes), (n,)), "multilabel": ((n, classes), (n, classes))}
    if (probabilities.shape, targets.shape) != shapes[kind] or nll.shape != (n,) or len(patients) != n:
        raise DataError("probabilities, targets, patients and losses are not of one length", where="outcome")
    if not ((probabilities >= 0) & (probabilities <= 1)).all() or not (nll >= 0).all():
        problem, remedy = "probabilities or losses are no numbers", "the model may have diverged: train more gently"
        raise DataError(problem, where="outcome", remedy=remedy)
    if not ((targets >= 0) & (targets < (classes if kind == "multiclass" else 2))).all():
        raise DataError("a target is no class", where="outcome")


def _answers(kind: Kind, targets: Ints, classes: int) -> Ints:
    """[N, C] 0 or 1: each image's answers."""
    if kind == "multiclass":
        return np.asarray(targets[:, None] == np.arange(classes), dtype=np.int64)
    return targets.reshape(len(targets), 1 if kind == "binary" else classes).astype(np.int64)


def _codes(patients: Sequence[Hashable]) -> Ints:
    index: dict[Hashable, int] = {}
    return np.array([index.setdefault(patient, len(index)) for patient in patients], dtype=np.int64)


def _counts(where: list[Ints], shape: tuple[int, int]) -> Ints:
    flat = np.ravel_multi_index(tuple(where), shape)
    return np.asarray(np.bincount(flat, minlength=shape[0] * shape[1]).reshape(shape))


def _total(values: Floats) -> int:
    return sum(fixed(values, UNIT).tolist())


def _binned(where: Ints, confidence: Floats, correct: Ints, bins: int) -> Ints:
    """[3, bins] count, Σ confidence, Σ correct. Float sums of integers are exact up to 2^53: 2^25 images."""
    weights = (np.ones(len(where)), fixed(confidence, UNIT), correct)
    return np.stack([np.bincount(where, weights, bins).astype(np.int64) for weights in weights])
