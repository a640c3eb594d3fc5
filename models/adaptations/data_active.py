"""Active selection: whose pictures are to be labelled next, under a budget, from the pictures alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from polyclinic.core.config import Method
from polyclinic.core.errors import StudyError
from polyclinic.core.facts import Facts
from polyclinic.core.seeds import derive
from polyclinic.models.adaptation import Adaptation, Memory, Start, Trained
from polyclinic.models.adaptations.data_budget import images_of, offered, shuffled
from polyclinic.models.adaptations.looking import looked
from polyclinic.models.adaptations.objective import choices
from polyclinic.models.contracts import Choosing

if TYPE_CHECKING:
    from polyclinic.core.study import Study

Rows = NDArray[np.float64]
Criterion = Literal["entropy", "core_set", "typicality"]

CLUSTERS, NEIGHBOURS, SMALLEST = 500, 20, 6
"""TypiClust's own: the most clusters, the neighbours that typicality looks at, the fewest patients of a cluster."""


class Active(Method):
    """``method = "active"``: a site labels ``first`` patients, then ``per_round`` more a round, up to ``budget``.

    ``criterion`` says who is next: those of whom the global model is least certain ("entropy", the mean over a
    patient's pictures), those furthest from all that are labelled ("core_set", the greedy k-centre of Sener & Savarese
    2018), or the most typical of each part of the data that nobody stands for ("typicality", TypiClust). The last two
    look at frozen features, one mean a patient. At the start "entropy" and "core_set" draw by chance, as their authors
    do. The targets of patients who were not chosen are never looked at; who was chosen is kept at the site, as hashes.
    """

    facts: ClassVar[Facts] = Facts(
        families=("data",),
        paper="Sener and Savarese 2018, arXiv 1708.00489; Hacohen et al. 2022 (TypiClust), arXiv 2202.02794",
        exact_private=False,
        because="whom a site labels depends on the pictures of all its patients",
        personal="which patients count as labelled",
    )

    method: Literal["active"] = "active"
    criterion: Criterion = "entropy"
    first: int = Field(default=10, ge=1)
    per_round: int = Field(default=5, ge=1)
    budget: int = Field(default=50, ge=1)

    @model_validator(mode="after")
    def _within(self) -> Self:
        if self.first > self.budget:
            raise ValueError("first must not exceed the budget")
        return self

    def check(self, study: Study) -> None:
        """Refuses entropy of a task that does not choose between classes."""
        if self.criterion == "entropy" and not isinstance(study.task, Choosing):
            raise StudyError(
                f"the task '{study.task.method}' has no entropy to choose by",
                where="adaptation",
                remedy='write criterion = "core_set" or "typicality"',
            )

    def build(self) -> Adaptation:
        """The adaptation."""
        return Adaptation(families=frozenset({"data"}), select=self._select, settle=self._settle)

    def explain(self) -> str:
        """What it does."""
        return (
            f"Each site labels {self.first} patients at first and {self.per_round} more a round up to {self.budget}, "
            f"chosen by {self.criterion.replace('_', ' ')} from the pictures alone."
        )

    def _select(self, start: Start, generator: torch.Generator) -> Tensor:
        patients = offered(start)
        known = set(start.memory.get(f"{self.method}.chosen", torch.zeros(0, dtype=torch.int64)).tolist())
        before = [patient for patient in patients if self._hashed(start, patient) in known]
        more = min(self.per_round if before else self.first, self.budget - len(before), len(patients) - len(before))
        if more <= 0:
            return images_of(start, before)
        if not before and self.criterion != "typicality":
            return images_of(start, shuffled(patients, start.seed, self.method)[:more])
        rows = np.stack(list(_by_patient(start, patients, LOOKS[self.criterion]).values()))
        places = [patients.index(patient) for patient in before]
        seed = int(torch.randint(2**31 - 1, (1,), generator=generator))
        found = CRITERIA[self.criterion](rows, places, more, seed)
        return images_of(start, [*before, *(patients[i] for i in found)])

    def _settle(self, model: nn.Module, start: Start, trained: Trained) -> Memory:
        hashes = [self._hashed(start, patient) for patient in offered(start)]
        return {f"{self.method}.chosen": torch.tensor(sorted(hashes), dtype=torch.int64)}

    def _hashed(self, start: Start, patient: str) -> int:
        return derive(start.seed, self.method, patient)


def uncertain(start: Start, pixels: Tensor) -> Tensor:
    """[N, 1]: entropy in nats of the global model's choices about each picture, the mean where there are several."""
    blank = torch.zeros((len(pixels), *start.pool.targets.shape[1:]), dtype=start.pool.targets.dtype)
    logits, _ = choices(start, start.forward(pixels), blank.to(pixels.device))
    log_p = F.log_softmax(logits, dim=1)
    return -(log_p.exp() * log_p).sum(dim=1).view(len(pixels), -1).mean(dim=1, keepdim=True)


def _by_patient(
    start: Start, patients: Sequence[str], look: Callable[[Start, Tensor], Tensor]
) -> dict[str, NDArray[np.float64]]:
    """Patient → mean row over his pictures, in the order of ``patients``."""
    places = images_of(start, patients)
    rows = looked(start, places, lambda pixels: look(start, pixels)).double().numpy()
    whose = np.array([start.pool.patients[i] for i in places.tolist()])
    return {patient: rows[whose == patient].mean(axis=0) for patient in patients}


def most_uncertain(rows: Rows, before: Sequence[int], more: int, seed: int) -> list[int]:
    """Indices of the highest ``rows`` [P, 1] that are not in ``before``; of equals the first."""
    left = np.setdiff1d(np.arange(len(rows)), before)
    return [int(i) for i in left[np.argsort(-rows[left, 0], kind="stable")][:more]]


def k_centre(rows: Rows, before: Sequence[int], more: int, seed: int) -> list[int]:
    """Greedy k-centre (Sener & Savarese 2018, algorithm 1): again and again the row furthest from all that are chosen.

    Rows [P, width], Euclidean; ``before`` are centres already and must be some.
    """
    nearest = np.full(len(rows), np.inf)
    for i in before:
        nearest = np.minimum(nearest, np.linalg.norm(rows - rows[i], axis=1))
    chosen: list[int] = []
    for _ in range(more):
        free = np.setdiff1d(np.arange(len(rows)), [*before, *chosen])
        chosen.append(int(free[nearest[free].argmax()]))
        nearest = np.minimum(nearest, np.linalg.norm(rows - rows[chosen[-1]], axis=1))
    return chosen


def typical(rows: Rows, before: Sequence[int], more: int, seed: int) -> list[int]:
    """TypiClust (Hacohen et al. 2022, algorithm 1) on rows [P, width] of length 1, as the authors' code has it.

    k-means into as many clusters as will be labelled; from the clusters with the fewest labelled, the largest first,
    the row with the highest typicality: 1 / the mean distance to its nearest neighbours within the cluster. Clusters
    of fewer than ``SMALLEST`` are passed over as long as there are others.
    """
    from sklearn.cluster import KMeans

    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    count = min(len(before) + more, CLUSTERS, len(np.unique(unit, axis=0)))
    labels = KMeans(count, n_init=10, random_state=seed).fit(unit).labels_.copy()
    sizes, covered = np.bincount(labels, minlength=count), np.bincount(labels[list(before)], minlength=count)
    order = sorted(range(count), key=lambda cluster: (sizes[cluster] < SMALLEST, covered[cluster], -sizes[cluster]))
    large = [cluster for cluster in order if sizes[cluster] >= SMALLEST] or order
    labels[list(before)] = -1
    chosen: list[int] = []
    turn = 0
    while len(chosen) < more:
        if not np.isin(labels, large).any():
            large = order  # nobody is left in the large clusters
        members = np.flatnonzero(labels == large[turn % len(large)])
        turn += 1
        if len(members):
            chosen.append(int(members[typicality(unit[members]).argmax()]))
            labels[chosen[-1]] = -1
    return chosen


def typicality(rows: Rows) -> Rows:
    """[n]: 1 / (mean Euclidean distance to the nearest neighbours + 1e-5), at most ``NEIGHBOURS`` or half of them."""
    from scipy.spatial.distance import cdist

    neighbours = max(1, min(NEIGHBOURS, len(rows) // 2))
    apart = np.sort(cdist(rows, rows), axis=1)[:, 1 : neighbours + 1]
    return np.asarray(1.0 / (apart.mean(axis=1) + 1e-5)) if len(rows) > 1 else np.ones(len(rows))


Chosen = Callable[[Rows, Sequence[int], int, int], list[int]]
LOOKS: Mapping[str, Callable[[Start, Tensor], Tensor]] = {
    "entropy": uncertain,
    "core_set": lambda start, pixels: start.frozen(pixels),
    "typicality": lambda start, pixels: start.frozen(pixels),
}
CRITERIA: Mapping[str, Chosen] = {"entropy": most_uncertain, "core_set": k_centre, "typicality": typical}
"""(rows [P, …], who is labelled, how many more, seed) → who is next."""
