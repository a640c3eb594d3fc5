"""The exact sum of what sites changed, each change clipped as a whole (McMahan et al. 2018, arXiv 1710.06963).

Adding or leaving out one update moves the sum by at most ``clip`` in L2 norm over all tensors together, whatever the
update is: what noise at the server is measured by. Every site counts alike, whatever weight its update claims.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from polyclinic.core.errors import UpdateError
from polyclinic.core.update import Manifest, Tensors, Update
from polyclinic.strategies.fixed_point import FixedSum
from polyclinic.strategies.mean import Sums

COUNT = "central/count"
"""Under which stands Σ ±½, [1]: + for an update within the clip, − for one that was shortened."""
MARGIN = 1.0 - 2.0**-20
"""Of the clip that is used: the rest is for the rounding of norms and of the fixed-point sums."""


@dataclass
class Clipped:
    """A running sum.

    Attributes:
        reference: the global state that updates started from.
        sums: of clipped changes.
        halves: twice what ``COUNT`` is.
    """

    reference: Tensors
    sums: Sums
    halves: int = 0


class ClippedSum:
    """The fold; see ``polyclinic.strategies.contract.Strategy``, but that the sum over nobody is a sum, too."""

    streams = True

    def __init__(self, clip: float) -> None:
        self.clip = clip

    def expects(self, reference: Tensors) -> Manifest:
        """Every tensor of the global state comes back."""
        return Manifest.of(reference)

    def init(self, reference: Tensors) -> Clipped:
        """Empty sums."""
        return Clipped(reference, {name: FixedSum.zero(array.shape) for name, array in reference.items()})

    def add(self, state: Clipped, update: Update) -> Clipped:
        """One more update, counted once. Raises UpdateError, before anything is added, if it is not finite."""
        changes = {name: _wide(update.tensors[name]) - _wide(array) for name, array in state.reference.items()}
        norm = math.sqrt(sum(float(np.vdot(change, change)) for change in changes.values()))
        if not math.isfinite(norm):
            raise UpdateError("its change has no finite length", where=update.site)
        clip = self.clip * MARGIN
        scale = min(1.0, clip / norm) if norm else 1.0
        for name, total in state.sums.items():
            total.add(changes[name] * scale, 1)
        state.halves += 1 if norm <= clip else -1
        return state

    def merge(self, one: Clipped, other: Clipped) -> Clipped:
        """Both."""
        for name, total in one.sums.items():
            total.merge(other.sums[name])
        one.halves += other.halves
        return one

    def finish(self, state: Clipped) -> Tensors:
        """Σ clipped (update − reference), float64, zeros if nobody sent anything, and ``COUNT``; not noised."""
        return {**{name: total.total() for name, total in state.sums.items()}, COUNT: np.array([state.halves / 2])}


def _wide(array: np.ndarray) -> np.ndarray:
    wide: np.ndarray = array.astype(np.float64)
    return wide
