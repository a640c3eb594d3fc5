"""Contrast between models: features near the federation's, and away from what the site made of them before."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from polyclinic.core.config import Method
from polyclinic.core.facts import Facts
from polyclinic.models.adaptation import Adaptation, Memory, Start, Trained
from polyclinic.models.contracts import Batch, Objective
from polyclinic.models.network import at_rest

PREVIOUS = "moon/previous/"
GATHERED = ("running_mean", "running_var")


class Moon(Method):
    """``method = "moon"`` (Li et al. 2021, arXiv 2103.16257): the loss + mu·ℓ, ℓ the paper's equation 3.

    ℓ = −log(e^(cos(z, z_glob)/τ) / (e^(cos(z, z_glob)/τ) + e^(cos(z, z_prev)/τ))), mean over the batch, z the pooled
    features by the model in training, z_glob by the model as it arrived, z_prev by the site's own at the end of the
    last round in which it trained; nothing in the first. The paper has a projection head between, and this has none.
    Under strategy ``exact`` the site's previous factors stand on the residual of this round.
    """

    relies_on: ClassVar[frozenset[str]] = frozenset({"neck"})  # features of one round are compared with in the next
    facts: ClassVar[Facts] = Facts(
        families=("representation",),
        paper="Li et al. 2021 (MOON), arXiv 2103.16257",
        exact_private=True,
        because="each picture's loss stands by itself; the previous model is what the same steps made",
        personal="what trained here, as the site's last round left it",
    )

    method: Literal["moon"] = "moon"
    mu: float = Field(default=1.0, gt=0.0)
    temperature: float = Field(default=0.5, gt=0.0, le=100.0)

    def build(self) -> Adaptation:
        """The adaptation."""
        return Adaptation(families=frozenset({"representation"}), objective=self.objective, settle=self.settle)

    def explain(self) -> str:
        """What it does."""
        return (
            "Features are drawn to those of the federation's model and away from those of the site's own of the round "
            f"before (MOON, mu = {self.mu:g}), which the site keeps."
        )

    def objective(self, objective: Objective, start: Start) -> Objective:
        """See the class."""
        kept = {name.removeprefix(PREVIOUS): t for name, t in start.memory.items() if name.startswith(PREVIOUS)}
        if not kept:
            return objective
        device = next(iter(start.anchor.values())).device
        previous = {name: tensor.to(device) for name, tensor in kept.items()}

        def contrasted(model: nn.Module, batch: Batch) -> Tensor:
            with torch.no_grad(), at_rest(model):
                before: Tensor = torch.func.functional_call(model, previous, (batch.pixels,), {"features": True})
            apart = contrast(batch.features, start.features(batch.pixels), before.float(), self.temperature)
            return objective(model, batch) + self.mu * apart

        return contrasted

    def settle(self, model: nn.Module, start: Start, trained: Trained) -> Memory:
        """Keeps what features depend on."""
        weights = {
            name: weight
            for name, weight in model.named_parameters()
            if weight.requires_grad or name in start.anchor  # what trained may stand on what the server alone changes
        }
        gathered = {name: own for name, own in model.named_buffers() if name.rpartition(".")[2] in GATHERED}
        kept = {name: own for name, own in (weights | gathered).items() if not name.startswith("head.")}
        return {f"{PREVIOUS}{name}": own.detach().cpu().clone() for name, own in kept.items()}


def contrast(own: Tensor, federation: Tensor, before: Tensor, temperature: float) -> Tensor:
    """Mean of ℓ over features [N, width]: see ``Moon``."""
    near, far = (F.cosine_similarity(own, other, dim=1) for other in (federation, before))
    return F.softplus((far - near) / temperature).mean()
