"""How good a segmentation was, told under privacy: the Dice of every class over cases, with noise."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar, Self

import numpy as np

from polyclinic.core.statistics import intervals
from polyclinic.core.statistics.figures import NO_IMAGES, Bin, Figure, missing
from polyclinic.core.statistics.monoid import Floats, demand
from polyclinic.core.statistics.noised import Noised, both_parts
from polyclinic.core.statistics.noised_outcome import CLEAR, DRAWS, NOT_TOLD, share

KEYS = ("dice", "dice_pooled", "surface_dice", "hd95", "nll", "ece", "volume_bias", "volume_low", "volume_high")
DROWNED = "too few cases to be told from noise"


@dataclass(frozen=True, eq=False)
class NoisedSegmented(Noised):
    """Σ over cases of (1 − Dice, Dice) ÷ √K of each class that a case has in truth; ``cells`` is [K, 2]."""

    name: ClassVar[str] = "noised_segmented"

    def check(self) -> None:
        """Raises UpdateError naming the field that cannot be."""
        super().check()
        demand(self.cells.ndim == 2 and self.cells.shape[1] == 2, "cells", "have another shape")

    @classmethod
    def blank(cls, classes: int) -> Self:
        """That of nobody."""
        return cls(0, 0, 0, np.zeros((classes, 2), np.int64))


def rows(there: np.ndarray, dice: Floats) -> Floats:
    """[N, K, 2]: each case's vector, of length at most 1, from what it has in truth and its Dice, both [N, K]."""
    share = np.where(there, dice, 0.0)
    return np.stack([np.where(there, 1.0 - share, 0.0), share], axis=-1) / sqrt(there.shape[1])


def figures(outcome: NoisedSegmented, rng: np.random.Generator | None = None) -> dict[str, Figure]:
    """Dice, the mean over classes; every other figure of a segmentation is not told. ``rng`` draws noise."""
    found = {key: missing(NOT_TOLD if outcome.units else NO_IMAGES) for key in KEYS}
    if not outcome.units:
        return found
    scale = sqrt(len(outcome.cells))
    cells, spread = outcome.sums() * scale, outcome.noise * scale
    cases = cells.sum(axis=1)
    clear = cases > max(CLEAR * spread * sqrt(2.0), 0.5)
    if not clear.any():
        return found | {"dice": missing(DROWNED)}
    kept = cells[clear]
    again = kept + (rng or outcome.generator()).normal(0.0, spread, (DRAWS, *kept.shape))
    shares = np.clip(_dice(kept), 0.0, 1.0)
    patients = np.minimum(cases[clear] * outcome.patients / outcome.units, outcome.patients)
    limits = [intervals.wilson(share, n) for share, n in zip(shares.tolist(), patients.tolist(), strict=True)]
    noise = float(_dice(again).mean(axis=-1).std())
    return found | {"dice": both_parts(float(_dice(kept).mean()), intervals.average_dependent(limits), noise)}


def _dice(cells: Floats) -> Floats:
    return share(cells[..., 1], cells.sum(axis=-1))


def reliability(outcome: NoisedSegmented) -> tuple[Bin, ...]:
    """Nothing is told of it."""
    return ()
