"""Which figures each kind of outcome has, and how they are had: a kind of outcome is known here and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from polyclinic.core.statistics import detected_figures as detection
from polyclinic.core.statistics import figures as classification
from polyclinic.core.statistics import noised_outcome, noised_segmented
from polyclinic.core.statistics import segmented_figures as segmentation
from polyclinic.core.statistics.detected import Detected
from polyclinic.core.statistics.figures import Bin, Figure
from polyclinic.core.statistics.noised_outcome import NoisedOutcome
from polyclinic.core.statistics.noised_segmented import NoisedSegmented
from polyclinic.core.statistics.outcome import Outcome
from polyclinic.core.statistics.segmented import Segmented


@dataclass(frozen=True)
class Metric:
    """A figure of merit: its key in the files, its name for people, and whether more is better."""

    key: str
    name: str
    more_is_better: bool

    @property
    def inline(self) -> str:
        """Its name within a sentence: an abbreviation at its beginning stays as it is."""
        first = self.name.partition(" ")[0]
        return self.name if first[1:] != first[1:].lower() else self.name[0].lower() + self.name[1:]


@dataclass(frozen=True)
class Judged:
    """How one kind of outcome is judged.

    Attributes:
        metrics: its figures, in the order of tables.
        brief: keys of those for which a narrow table has room.
        leading: keys; the first of these that any site has is the figure by which sites are compared.
        figures: (outcome, generator or None) → figures by key; without a generator those of a bootstrap lack intervals.
        reliability: outcome → the bins of its reliability diagram.
        axes: what that diagram shows across and up, in a sentence; empty for a classification, whose kind says it.
    """

    metrics: tuple[Metric, ...]
    brief: tuple[str, ...]
    leading: tuple[str, ...]
    figures: Callable[[Any, np.random.Generator | None], dict[str, Figure]]
    reliability: Callable[[Any], tuple[Bin, ...]]
    axes: str = ""

    @property
    def first(self) -> Metric:
        """The first of its leading figures."""
        return next(metric for metric in self.metrics if metric.key == self.leading[0])


PLAIN: Mapping[str, Judged] = {
    Outcome.name: Judged(
        metrics=(
            Metric("auroc", "AUROC", True),
            Metric("accuracy", "Accuracy", True),
            Metric("balanced_accuracy", "Balanced accuracy", True),
            Metric("nll", "Log loss", False),
            Metric("brier", "Brier score", False),
            Metric("ece", "Calibration error", False),
            Metric("ece_adaptive", "Adaptive calibration error", False),
        ),
        brief=("auroc", "accuracy", "nll", "brier", "ece"),
        leading=("auroc", "balanced_accuracy", "nll", "accuracy"),
        figures=classification.figures,
        reliability=classification.reliability,
    ),
    Detected.name: Judged(
        metrics=(
            Metric("map50", "mAP at IoU 0.5", True),
            Metric("map", "mAP over IoU 0.5 to 0.95", True),
            Metric("sensitivity", "Sensitivity at 1 false positive an image", True),
            Metric("froc", "FROC score", True),
            Metric("ece", "Calibration error", False),
        ),
        brief=("map50", "map", "sensitivity", "froc", "ece"),
        leading=("map50",),
        figures=detection.figures,
        reliability=detection.reliability,
        axes="Across: the score that the model gives to a box; up: how often such a box hits a true one at IoU 0.5.",
    ),
    Segmented.name: Judged(
        metrics=(
            Metric("dice", "Dice", True),
            Metric("dice_pooled", "Pooled Dice", True),
            Metric("surface_dice", "Surface Dice", True),
            Metric("hd95", "HD95", False),
            Metric("nll", "Log loss", False),
            Metric("ece", "Calibration error", False),
            Metric("volume_bias", "Volume bias", False),
            Metric("volume_low", "Lower limit of agreement", False),
            Metric("volume_high", "Upper limit of agreement", False),
        ),
        brief=("dice", "surface_dice", "hd95", "ece", "volume_bias"),
        leading=("dice", "nll"),
        figures=segmentation.figures,
        reliability=segmentation.reliability,
    ),
}
JUDGED: Mapping[str, Judged] = {
    **PLAIN,
    NoisedOutcome.name: replace(
        PLAIN[Outcome.name], figures=noised_outcome.figures, reliability=noised_outcome.reliability
    ),
    NoisedSegmented.name: replace(
        PLAIN[Segmented.name], figures=noised_segmented.figures, reliability=noised_segmented.reliability
    ),
}
"""By the name of the statistic; what is told with noise has the same figures, as far as it has them."""


def kind_of(keys: Iterable[str]) -> Judged | None:
    """The first kind of outcome that has figures under all of these keys; None if there is none, or no key."""
    found = set(keys)
    kinds = (kind for kind in JUDGED.values() if found and found <= {metric.key for metric in kind.metrics})
    return next(kinds, None)
