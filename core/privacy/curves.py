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


CURVES: Mapping[frozenset[str], Curve] = {}
"""Which weights of the backbone a chain changes → what that was seen to cost: see docs/privacy.md."""


def curve(study: Study) -> Curve | None:
    """The curve of studies like this one; None for what was not measured."""
    changed = frozenset().union(*(method.changes for method in study.adaptation))
    return CURVES.get(changed) if study.task.method == "classification" else None
