"""What privacy was measured to cost: the project's own curves, for a plan to say what a study may expect."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from polyclinic.core.study import Study


@dataclass(frozen=True)
class Curve:
    """AUROC that was lost against the same study without noise, pooled over three sites' test images.

    Attributes:
        of: what trained, for people.
        lost: epsilon → (mean, least, most) over packs of data and seeds.
    """

    of: str
    lost: Mapping[float, tuple[float, float, float]]

    def at(self, epsilon: float) -> tuple[float, float, float]:
        """(mean, least, most), between the epsilons measured on a logarithmic scale; beyond them, the nearest."""
        points = sorted(self.lost)
        logs = [math.log(point) for point in points]
        columns = zip(*(self.lost[point] for point in points), strict=True)
        mean, least, most = (float(np.interp(math.log(epsilon), logs, column)) for column in columns)
        return mean, least, most


CURVES: Mapping[frozenset[str], Curve] = {
    frozenset(): Curve(
        "a linear probe",
        {
            1.0: (0.11, 0.0, 0.411),
            2.0: (0.067, -0.01, 0.195),
            4.0: (0.052, -0.015, 0.129),
            8.0: (0.046, -0.009, 0.093),
        },
    ),
    frozenset({"linear layers"}): Curve(
        "low-rank factors",
        {
            1.0: (0.129, 0.016, 0.364),
            2.0: (0.111, 0.024, 0.3),
            4.0: (0.113, 0.025, 0.265),
            8.0: (0.091, 0.018, 0.179),
        },
    ),
    frozenset({"tokens"}): Curve(
        "prompts",
        {
            1.0: (0.049, -0.009, 0.106),
            4.0: (0.074, 0.008, 0.115),
        },
    ),
}
"""Which weights of the backbone a chain changes → what that was seen to cost: see docs/privacy.md."""


def curve(study: Study) -> Curve | None:
    """The curve of studies like this one; None for what was not measured."""
    changed = frozenset().union(*(method.changes for method in study.adaptation))
    return CURVES.get(changed) if study.task.method == "classification" else None
