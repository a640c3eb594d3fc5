"""Samplers: how often each training picture is drawn, where a plain epoch would see some classes or patients most."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from polyclinic.core.config import Method
from polyclinic.core.facts import Facts
from polyclinic.models.adaptation import Adaptation, Start


class Rebalance(Method):
    """``method = "rebalance"``: pictures of a class with n of them are drawn in proportion to n^(−power).

    So each class is drawn in proportion to n^(1 − power) (Kang et al. 2020, section 4.1, whose q is 1 − power): at 1
    all alike, at 0.5 by square roots, at 0 as they are. A picture of several classes counts by its rarest, as in
    repeat-factor sampling (Gupta et al. 2019, arXiv 1908.03195); one of none is of a class of its own. An epoch is as
    many draws as there are pictures, with replacement.
    """

    facts: ClassVar[Facts] = Facts(
        families=("data",),
        paper="Kang et al. 2020, arXiv 1910.09217",
        exact_private=False,
        because="the site's class counts decide how often each patient is drawn, and they are patients' data",
    )

    method: Literal["rebalance"] = "rebalance"
    power: float = Field(default=1.0, gt=0.0, le=2.0)

    def build(self) -> Adaptation:
        """The adaptation."""
        return Adaptation(families=frozenset({"data"}), weigh=self._weigh)

    def explain(self) -> str:
        """What it does."""
        return f"Pictures of classes that are rare at a site are drawn more often (by count to the −{self.power:g})."

    def _weigh(self, start: Start) -> Tensor:
        present = np.asarray(start.task.presence(start.targets.numpy()))
        if present.ndim == 1:
            present = present[:, None] == np.arange(len(start.task.classes))
        held = np.column_stack([present > 0, ~(present > 0).any(axis=1)])
        counts = held.sum(axis=0)
        each = np.where(counts > 0, np.maximum(counts, 1).astype(np.float64) ** -self.power, 0.0)
        return _averaging_one((held * each).max(axis=1))


class ByPatient(Method):
    """``method = "by_patient"``: every patient is drawn equally often, however many pictures of him there are.

    An epoch is as many draws as there are pictures, with replacement.
    """

    facts: ClassVar[Facts] = Facts(
        families=("data",),
        paper="sampling of clusters with equal probability (Cochran 1977, chapter 9A)",
        exact_private=False,
        because="patients are drawn with replacement, which is not the sampling that privacy is accounted for",
    )

    method: Literal["by_patient"] = "by_patient"

    def build(self) -> Adaptation:
        """The adaptation."""
        return Adaptation(families=frozenset({"data"}), weigh=self._weigh)

    def explain(self) -> str:
        """What it does."""
        return "Every patient is drawn equally often, however many pictures there are of each."

    def _weigh(self, start: Start) -> Tensor:
        whose = [start.pool.patients[i] for i in start.labelled.tolist()]
        counts = Counter(whose)
        return _averaging_one(np.array([1.0 / counts[patient] for patient in whose]))


def _averaging_one(weights: np.ndarray) -> Tensor:
    return torch.from_numpy(weights / weights.mean())
