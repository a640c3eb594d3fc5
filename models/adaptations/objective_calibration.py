"""Losses that ask for honest confidence: margin-based label smoothing, and a calibration error that has a gradient."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from polyclinic.core.facts import Facts
from polyclinic.models.adaptation import Start
from polyclinic.models.adaptations.objective import ClassObjectives, choices
from polyclinic.models.contracts import Batch, Objective


class MarginSmoothing(ClassObjectives):
    """``method = "mbls"`` (Liu et al. 2022, arXiv 2111.15430): the loss + alpha·mean max(0, max_j l_j − l_k − margin).

    The mean is over pictures and classes, as in the authors' code; nothing happens while logits lie within the margin.
    """

    facts: ClassVar[Facts] = Facts(
        families=("objective",),
        paper="Liu et al. 2022 (MbLS), arXiv 2111.15430",
        exact_private=True,
        because="each picture's loss stands by itself",
    )

    method: Literal["mbls"] = "mbls"
    margin: float = Field(default=10.0, ge=0.0)
    alpha: float = Field(default=0.1, gt=0.0)

    def explain(self) -> str:
        """What it does."""
        return f"Logits further apart than {self.margin:g} are drawn together (MbLS, alpha = {self.alpha:g})."

    def objective(self, objective: Objective, start: Start) -> Objective:
        """See the class."""

        def held(model: nn.Module, batch: Batch) -> Tensor:
            logits, _ = choices(start, batch.output, batch.target)
            apart = logits.amax(dim=1, keepdim=True) - logits
            return objective(model, batch) + self.alpha * F.relu(apart - self.margin).mean()

        return held


class SoftEce(ClassObjectives):
    """``method = "soft_ece"`` (Karandikar et al. 2021, arXiv 2108.00106): the loss + weight·SB-ECE of the batch.

    A prediction belongs to bin j by softmax_j(−(confidence − centre_j)² / temperature); as the temperature falls it is
    the expected calibration error over bins of equal width, which the monitor reports. Small batches make it noisy.
    """

    facts: ClassVar[Facts] = Facts(
        families=("objective",),
        paper="Karandikar et al. 2021 (SB-ECE), arXiv 2108.00106",
        exact_private=False,
        because="a bin mixes the pictures of a batch, so that no patient's gradient stands by itself",
    )

    method: Literal["soft_ece"] = "soft_ece"
    weight: float = Field(default=0.1, gt=0.0)
    bins: int = Field(default=15, ge=2, le=100)
    temperature: float = Field(default=0.01, gt=0.0)
    power: float = Field(default=2.0, ge=1.0, le=4.0)

    def explain(self) -> str:
        """What it does."""
        return f"The calibration error of each batch, made smooth, is part of the loss (weight {self.weight:g})."

    def objective(self, objective: Objective, start: Start) -> Objective:
        """See the class."""

        def calibrated(model: nn.Module, batch: Batch) -> Tensor:
            logits, right = choices(start, batch.output, batch.target)
            confidence, chosen = logits.softmax(dim=1).max(dim=1)
            error = soft_ece(confidence, (chosen == right).float(), self.bins, self.temperature, self.power)
            return objective(model, batch) + self.weight * error

        return calibrated


def soft_ece(confidence: Tensor, correct: Tensor, bins: int, temperature: float, power: float) -> Tensor:
    """(Σ_j share_j · |mean confidence − mean correct|_j^power)^(1/power) over soft bins of [0, 1]; inputs [M]."""
    centres = (torch.arange(bins, device=confidence.device) + 0.5) / bins
    member = F.softmax(-((confidence[:, None] - centres) ** 2) / temperature, dim=1)
    size = member.sum(dim=0).clamp_min(1e-12)
    gap = (member * (confidence - correct)[:, None]).sum(dim=0) / size
    total = (size / len(confidence) * gap.abs() ** power).sum()
    return (total + 1e-12) ** (1.0 / power)
