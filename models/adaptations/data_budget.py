"""Label budgets: training with the targets of a few patients, as if only these had been labelled."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from polyclinic.core.config import Method
from polyclinic.core.facts import Facts
from polyclinic.core.seeds import derive
from polyclinic.models.adaptation import Adaptation, Start


class LabelBudget(Method):
    """``method = "label_budget"``: only some patients of each site count as labelled, the same in every round.

    ``patients`` of them, or where that is 0 a ``share``, rounded up; a site with fewer is labelled in full. They are
    the first in the order of a hash of (study seed, site, patient): a larger budget holds every smaller one, and
    patients who join or leave change nobody's place. ``stratified`` goes through the classes in turn, the first of each
    that is left, so that each is there as early as it can be; the order then rests on all labels, as if a clinician
    had looked for them.
    """

    facts: ClassVar[Facts] = Facts(
        families=("data",),
        paper="usual practice for curves of label efficiency",
        exact_private=False,
        because="a patient who joins may take the place of another in the budget, so that two change",
    )

    method: Literal["label_budget"] = "label_budget"
    patients: int = Field(default=0, ge=0)
    share: float = Field(default=0.1, gt=0.0, le=1.0)
    stratified: bool = False

    def build(self) -> Adaptation:
        """The adaptation."""
        return Adaptation(families=frozenset({"data"}), select=self._select)

    def explain(self) -> str:
        """What it does."""
        size = f"{self.patients} patients" if self.patients else f"{100 * self.share:.4g} % of the patients"
        chosen = "drawn class by class" if self.stratified else "drawn by chance"
        return f"Labels of {size} of each site are used, {chosen} and the same in every round."

    def _select(self, start: Start, generator: torch.Generator) -> Tensor:
        present = offered(start)
        order = _by_class(start, present) if self.stratified else shuffled(present, start.seed, self.method)
        size = self.patients or math.ceil(len(order) * self.share - 1e-9)  # 0.07 of 100 is 7
        return images_of(start, order[:size])


def offered(start: Start) -> list[str]:
    """The patients that may be chosen, by name."""
    return sorted({start.pool.patients[i] for i in start.labelled.tolist()})


def shuffled(patients: Sequence[str], seed: int, purpose: str) -> list[str]:
    """Patients in an order by chance in which everybody's place depends on himself alone."""
    return sorted(patients, key=lambda patient: (derive(seed, purpose, patient), patient))


def images_of(start: Start, patients: Sequence[str]) -> Tensor:
    """Indices of the images of these patients among those that may be chosen, sorted."""
    chosen = set(patients)
    return torch.tensor([i for i in start.labelled.tolist() if start.pool.patients[i] in chosen], dtype=torch.int64)


def _by_class(start: Start, patients: Sequence[str]) -> list[str]:
    """Patients in the order in which going through the classes takes them: one of each in turn, by hash."""
    present = np.asarray(start.task.presence(start.targets.numpy()))
    if present.ndim == 1:
        present = present[:, None] == np.arange(len(start.task.classes))
    held: dict[str, np.ndarray] = {}
    for i, row in zip(start.labelled.tolist(), present > 0, strict=True):
        whose = start.pool.patients[i]
        held[whose] = held.get(whose, False) | row
    order = shuffled(patients, start.seed, "label_budget")
    none = [patient for patient in order if not held[patient].any()]
    queues = [*([patient for patient in order if held[patient][c]] for c in range(present.shape[1])), none]
    taken: dict[str, None] = {}
    while len(taken) < len(order):
        for queue in queues:
            left = next((patient for patient in queue if patient not in taken), None)
            if left is not None:
                taken[left] = None
    return list(taken)
