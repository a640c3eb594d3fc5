"""Weighted sums that are the same bits in any order: integers add associatively, floats do not.

Each product weight × value is rounded once to two integer limbs, high in units of 2^-8 and low in units of 2^-58.
With |value| ≤ 2^20, weight ≤ 2^20 and at most 2^13 addends neither limb can overflow int64. A float32 value times an
integer weight is exact in float64, so an addend of magnitude 2^-34 or more loses nothing at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from polyclinic.core.errors import UpdateError

HIGH, LOW = 2.0**8, 2.0**58
MOST = 2**13


@dataclass
class FixedSum:
    """A running Σ weight × array; ``add`` and ``merge`` change it in place.

    Attributes:
        high, low: int64 limbs, of the array's shape.
        weight: Σ weight.
        addends: how many arrays were added.
    """

    high: np.ndarray
    low: np.ndarray
    weight: int = 0
    addends: int = 0

    @staticmethod
    def zero(shape: tuple[int, ...]) -> FixedSum:
        """The empty sum."""
        return FixedSum(np.zeros(shape, np.int64), np.zeros(shape, np.int64))

    def add(self, array: np.ndarray, weight: int) -> None:
        """Adds ``weight`` × ``array`` (float32 or float64, |value| ≤ 2^20; weight 1 … 2^20)."""
        product = array.astype(np.float64) * weight
        high = np.rint(product * HIGH)
        product -= high / HIGH
        product *= LOW
        self.high += high.astype(np.int64)
        self.low += np.rint(product).astype(np.int64)
        self._count(weight, 1)

    def merge(self, other: FixedSum) -> None:
        """Adds another sum over the same shape."""
        self.high += other.high
        self.low += other.low
        self._count(other.weight, other.addends)

    def total(self) -> np.ndarray:
        """Σ weight × array, float64."""
        found: np.ndarray = self.high / HIGH + self.low / LOW
        return found

    def mean(self) -> np.ndarray:
        """Σ weight × array ÷ Σ weight, float64.

        Raises:
            UpdateError: nothing was added.
        """
        if self.weight == 0:
            raise UpdateError("no update to average", remedy="a round needs one good reply at least")
        return self.total() / self.weight

    def _count(self, weight: int, addends: int) -> None:
        self.weight += weight
        self.addends += addends
        if self.addends > MOST:
            raise UpdateError(f"more than {MOST} updates in one sum")
