"""Losses for classes that are unequal: rare at a site, rare everywhere, hard, or forgotten in local training.

All speak of choices: logits [M, C] of which one is right. A binary output z is the choice between logits (0, z); a
multi-label output is one such choice a label.
"""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from polyclinic.core.facts import Facts
from polyclinic.models.adaptation import Start
from polyclinic.models.adaptations.objective import ClassObjectives, choices, occurrences
from polyclinic.models.contracts import Batch, Choosing, Objective

_BY_ITSELF = "each picture's loss stands by itself"
_COUNTS = "the site's class counts enter every patient's gradient, and they are patients' data"


class FedLC(ClassObjectives):
    """``method = "fedlc"`` (Zhang et al. 2022, arXiv 2209.00189): the logit of class c is lowered by tau·n_c^(−1/4).

    n_c is how often c is right among the site's training images; an absent class counts as 10⁻⁸, as in the usual code.
    The counts never leave. A loss that stands before it in the chain gets the calibrated logits.
    """

    relies_on: ClassVar[frozenset[str]] = frozenset({"head"})  # which learns to make up for what is lowered
    facts: ClassVar[Facts] = Facts(
        families=("objective",), paper="Zhang et al. 2022, arXiv 2209.00189", exact_private=False, because=_COUNTS
    )

    method: Literal["fedlc"] = "fedlc"
    tau: float = Field(default=1.0, gt=0.0, le=100.0)

    def explain(self) -> str:
        """What it does."""
        return f"The loss makes up for classes that are rare at a site (FedLC, tau = {self.tau:g}); counts stay there."

    def objective(self, objective: Objective, start: Start) -> Objective:
        """See the class."""
        lowered = self.tau * (occurrences(start) + 1e-8) ** -0.25
        task = cast(Choosing, start.task)

        def calibrated(model: nn.Module, batch: Batch) -> Tensor:
            return objective(model, replace(batch, output=task.lowered(batch.output, lowered)))

        return calibrated


class Focal(ClassObjectives):
    """``method = "focal"`` (Lin et al. 2017, arXiv 1708.02002): −(1 − p)^gamma · log p, p that of the right class."""

    replaces: ClassVar[bool] = True
    facts: ClassVar[Facts] = Facts(
        families=("objective",), paper="Lin et al. 2017, arXiv 1708.02002", exact_private=True, because=_BY_ITSELF
    )

    method: Literal["focal"] = "focal"
    gamma: float = Field(default=2.0, ge=0.0, le=10.0)

    def explain(self) -> str:
        """What it does."""
        return f"Pictures that are told apart with ease count less (focal loss, gamma = {self.gamma:g})."

    def objective(self, objective: Objective, start: Start) -> Objective:
        """See the class."""
        return lambda model, batch: focal(*choices(start, batch.output, batch.target), self.gamma).mean()


class ClassBalanced(ClassObjectives):
    """``method = "class_balanced"`` (Cui et al. 2019, arXiv 1901.05555): weights (1 − beta) / (1 − beta^n_c).

    They are scaled so that they average 1 over the classes that the site has; n_c as in FedLC. With ``gamma`` above 0
    what is weighted is the focal loss.
    """

    replaces: ClassVar[bool] = True
    facts: ClassVar[Facts] = Facts(
        families=("objective",), paper="Cui et al. 2019, arXiv 1901.05555", exact_private=False, because=_COUNTS
    )

    method: Literal["class_balanced"] = "class_balanced"
    beta: float = Field(default=0.999, ge=0.0, lt=1.0)
    gamma: float = Field(default=0.0, ge=0.0, le=10.0)

    def explain(self) -> str:
        """What it does."""
        return f"Classes that are rare at a site count more (class-balanced loss, beta = {self.beta:g})."

    def objective(self, objective: Objective, start: Start) -> Objective:
        """See the class."""
        weights = balance(occurrences(start), self.beta)

        def balanced(model: nn.Module, batch: Batch) -> Tensor:
            logits, right = choices(start, batch.output, batch.target)
            each = weights.expand(len(right), -1) if weights.dim() == 1 else weights.repeat(len(batch.target), 1)
            return (each.gather(1, right[:, None])[:, 0] * focal(logits, right, self.gamma)).mean()

        return balanced


class LabelSmoothing(ClassObjectives):
    """``method = "label_smoothing"`` (Szegedy et al. 2016, arXiv 1512.00567): targets (1 − ε)·one-hot + ε/C."""

    replaces: ClassVar[bool] = True
    facts: ClassVar[Facts] = Facts(
        families=("objective",), paper="Szegedy et al. 2016, arXiv 1512.00567", exact_private=True, because=_BY_ITSELF
    )

    method: Literal["label_smoothing"] = "label_smoothing"
    epsilon: float = Field(default=0.1, gt=0.0, lt=1.0)

    def explain(self) -> str:
        """What it does."""
        return f"Labels are smoothed by {self.epsilon:g}, so that the model is not asked for certainty."

    def objective(self, objective: Objective, start: Start) -> Objective:
        """See the class."""

        def smoothed(model: nn.Module, batch: Batch) -> Tensor:
            logits, right = choices(start, batch.output, batch.target)
            return F.cross_entropy(logits, right, label_smoothing=self.epsilon)

        return smoothed


class FedNTD(ClassObjectives):
    """``method = "fedntd"`` (Lee et al. 2022, arXiv 2106.03097): the loss + beta·tau²·KL(global ‖ local), not-true.

    Both distributions are softmaxes of logits / tau over the wrong classes alone, so that training at one site does not
    forget what the global model knows of the classes that the site lacks.
    """

    fewest: ClassVar[int] = 3
    facts: ClassVar[Facts] = Facts(
        families=("objective",),
        paper="Lee et al. 2022, arXiv 2106.03097",
        exact_private=True,
        because=f"{_BY_ITSELF}; the teacher is the global model",
    )

    method: Literal["fedntd"] = "fedntd"
    beta: float = Field(default=1.0, gt=0.0)
    tau: float = Field(default=1.0, gt=0.0)

    def explain(self) -> str:
        """What it does."""
        return f"On wrong classes a site's model is held to the federation's (FedNTD, beta = {self.beta:g})."

    def objective(self, objective: Objective, start: Start) -> Objective:
        """See the class."""

        def distilled(model: nn.Module, batch: Batch) -> Tensor:
            logits, right = choices(start, batch.output, batch.target)
            teacher, _ = choices(start, start.forward(batch.pixels), batch.target)
            own, its = (F.log_softmax(not_true(given, right) / self.tau, dim=1) for given in (logits, teacher))
            divergence = F.kl_div(own, its, reduction="batchmean", log_target=True)
            return objective(model, batch) + self.beta * self.tau**2 * divergence

        return distilled


def focal(logits: Tensor, right: Tensor, gamma: float) -> Tensor:
    """[M]: −(1 − p)^gamma · log p."""
    log_p = F.log_softmax(logits, dim=1).gather(1, right[:, None])[:, 0]
    if gamma == 0.0:
        return -log_p
    return -((-torch.expm1(log_p)).clamp_min(1e-12) ** gamma) * log_p


def balance(counts: Tensor, beta: float) -> Tensor:
    """Weights of the classes, of the counts' shape [..., C]; 0 for those that never occur, else 1 on average."""
    there = counts > 0
    effective = (1.0 - beta ** counts.double()) / (1.0 - beta)
    weights = torch.where(there, 1.0 / effective.clamp_min(1e-30), torch.zeros_like(effective))
    mean = weights.sum(-1, keepdim=True) / there.sum(-1, keepdim=True)
    return (weights / mean).float()


def not_true(logits: Tensor, right: Tensor) -> Tensor:
    """[M, C − 1]: the logits of all classes but the right one, in their order."""
    wrong = torch.ones_like(logits, dtype=torch.bool).scatter_(1, right[:, None], value=False)
    return logits[wrong].view(len(logits), -1)
