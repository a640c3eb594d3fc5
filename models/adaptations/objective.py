"""Objectives: what a site minimises beside the task's loss."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from polyclinic.core.config import Method
from polyclinic.core.facts import Facts
from polyclinic.models.contracts import Adaptation, Batch, Objective, Start


class FedProx(Method):
    """``method = "fedprox"`` (Li et al. 2020, arXiv 1812.06127): the loss + mu/2·‖w − w_global‖², over what travels."""

    facts: ClassVar[Facts] = Facts(
        families=("objective",),
        paper="Li et al. 2020, arXiv 1812.06127",
        exact_private=True,
        because="the pull to the global model depends on no patient",
    )

    method: Literal["fedprox"] = "fedprox"
    mu: float = Field(default=0.01, gt=0.0)

    def build(self) -> Adaptation:
        """The adaptation."""
        return Adaptation(families=frozenset({"objective"}), objective=self._objective)

    def explain(self) -> str:
        """What it does."""
        return f"Training is held near the federation's model (FedProx, mu = {self.mu:g})."

    def _objective(self, objective: Objective, start: Start) -> Objective:
        def proximal(model: nn.Module, batch: Batch) -> Tensor:
            weights = dict(model.named_parameters())
            distance = torch.stack([(weights[n] - old).square().sum() for n, old in start.anchor.items()]).sum()
            return objective(model, batch) + 0.5 * self.mu * distance

        return proximal
