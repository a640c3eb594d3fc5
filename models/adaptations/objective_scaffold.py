"""SCAFFOLD: each site's steps are corrected by how its gradients differ from the federation's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from polyclinic.core.errors import StudyError
from polyclinic.core.facts import Facts
from polyclinic.models.adaptation import Adaptation, Memory, Start, Trained
from polyclinic.models.adaptations.objective import Objectives
from polyclinic.models.adaptations.pooled import demand_mean, fill
from polyclinic.models.contracts import Batch, Objective

if TYPE_CHECKING:
    from polyclinic.core.study import Study

CONTROL, OWN = "scaffold.control", "scaffold/own"


class Control(nn.Module):
    """A control variate: one number for each of the weights ``names``, one after another in their order."""

    def __init__(self, names: Sequence[str], size: int) -> None:
        super().__init__()
        self.names = tuple(names)
        self.control = nn.Parameter(torch.zeros(size), requires_grad=False)


class Scaffold(Objectives):
    """``method = "scaffold"`` (Karimireddy et al. 2020, arXiv 1910.06378, algorithm 1 with option II).

    At a site y ← y − η (g(y) − c_i + c): the correction is the gradient of ⟨c − c_i, y⟩, which the loss gains. After K
    steps c_i⁺ = c_i − c + (x − y)/(K η). x is the federation's model and c its control variate, the mean of the c_i⁺ of
    all sites: what the algorithm makes it where all take part, weighted like the models. What is personal has none.
    A site that missed a round keeps its c_i, and c is then the mean over those who answered.
    """

    facts: ClassVar[Facts] = Facts(
        families=("objective",),
        paper="Karimireddy et al. 2020, arXiv 1910.06378",
        exact_private=True,
        because="control variates follow from weights that were sent, and the correction depends on no patient",
        travels="the site's control variate: its mean gradient over the round, as large as the weights that travel",
        personal="the site's own control variate",
    )

    demands: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "training": {"optimiser": "sgd", "momentum": 0.0, "weight_decay": 0.0, "clip_norm": "none"}
    }

    method: Literal["scaffold"] = "scaffold"

    def check(self, study: Study) -> None:
        """Refuses studies in which (x − y)/(K η) would not be a mean of gradients, or c no mean over all sites."""
        said = study.training.model_dump(mode="json")
        wrong = [
            (f"training.{key}", f"it must be {v!r}") for key, v in self.demands["training"].items() if said[key] != v
        ]
        if study.rounds.sites_per_round is not None:
            wrong.append(("rounds.sites_per_round", "leave it out"))
        wrong += [
            ("adaptation", f"leave out '{other.method}', under which weights rest in turn")
            for other in study.adaptation
            if other.alternates
        ]
        for where, remedy in wrong:
            problem = "'scaffold' takes a site's way in a round for the sum of its gradients, at all sites"
            raise StudyError(problem, where=where, remedy=remedy)
        demand_mean(study, self)

    def build(self) -> Adaptation:
        """The adaptation."""

        def own(name: str) -> bool:
            return name == CONTROL

        return Adaptation(
            families=frozenset({"objective"}),
            mirror=_mirror,
            travels=own,
            still=own,
            aside=own,
            objective=self.objective,
            settle=_settle,
        )

    def explain(self) -> str:
        """What it does and sends."""
        return (
            "A site's steps are corrected by the difference between the federation's mean gradient and its own "
            "(SCAFFOLD); it sends its mean gradient of the round and keeps it."
        )

    def objective(self, objective: Objective, start: Start) -> Objective:
        """See the class."""
        drift = start.anchor[CONTROL] - _kept(start)

        def corrected(model: nn.Module, batch: Batch) -> Tensor:
            weights = dict(model.named_parameters())
            now = torch.cat([weights[name].reshape(-1) for name in cast(Control, model.scaffold).names])
            return objective(model, batch) + drift @ now

        return corrected


def _mirror(model: nn.Module, names: Sequence[str]) -> None:
    weights = dict(model.named_parameters())
    model.scaffold = Control(names, sum(weights[name].numel() for name in names))


def _settle(model: nn.Module, start: Start, trained: Trained) -> Memory:
    held, weights = cast(Control, model.scaffold), dict(model.named_parameters())
    own = _kept(start).double()
    if trained.steps:
        way = torch.cat([(start.anchor[n].double() - weights[n].detach().double()).reshape(-1) for n in held.names])
        own = own - start.anchor[CONTROL].double() + way / (trained.steps * trained.rate)
    fill(held.control, own)
    return {OWN: held.control.detach().cpu().clone()}


def _kept(start: Start) -> Tensor:
    """c_i: 0 before the site has trained."""
    control = start.anchor[CONTROL]
    return start.memory[OWN].to(control) if OWN in start.memory else torch.zeros_like(control)
