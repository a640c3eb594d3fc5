"""Objectives: what a site minimises beside the task's loss, or in its place."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from polyclinic.core.config import Method
from polyclinic.core.errors import StudyError
from polyclinic.core.facts import Facts
from polyclinic.models.adaptation import Adaptation, Start
from polyclinic.models.contracts import Batch, Choosing, Objective

if TYPE_CHECKING:
    from polyclinic.core.study import Study


class Objectives(Method):
    """Base of methods that change the loss and nothing else."""

    def build(self) -> Adaptation:
        """The adaptation."""
        return Adaptation(families=frozenset({"objective"}), objective=self.objective)

    def objective(self, objective: Objective, start: Start) -> Objective:
        """The loss, changed."""
        raise NotImplementedError


class ClassObjectives(Objectives):
    """Base of methods that speak of classes: for tasks that choose between them."""

    replaces: ClassVar[bool] = False
    """Whether the loss is another one, and not the one before it with something added."""
    fewest: ClassVar[int] = 2
    """Classes that it takes."""

    @classmethod
    def fits(cls, task: type[Method]) -> bool:
        """Whether the task chooses between classes."""
        return all(hasattr(task, name) for name in ("choices", "occurrences", "options"))

    def check(self, study: Study) -> None:
        """Refuses too few classes, and a loss that would silently throw away what stands before it."""
        options = cast(Choosing, study.task).options
        if options < self.fewest:
            raise StudyError(
                f"'{self.method}' needs {self.fewest} classes to choose from, and a choice here is between {options}",
                where="adaptation",
                remedy="leave it out, or make the task multi-class",
            )
        before = study.adaptation[: study.adaptation.index(self)]
        lost = [method.method for method in before if isinstance(method, Objectives)]
        if self.replaces and lost:
            raise StudyError(
                f"'{self.method}' replaces the loss, and with it what '{lost[-1]}' makes of it",
                where="adaptation",
                remedy=f"put '{self.method}' before '{lost[-1]}', or keep one of them if both replace the loss",
            )


class FedProx(Objectives):
    """``method = "fedprox"`` (Li et al. 2020, arXiv 1812.06127): the loss + mu/2·‖w − w_global‖², over what travels."""

    facts: ClassVar[Facts] = Facts(
        families=("objective",),
        paper="Li et al. 2020, arXiv 1812.06127",
        exact_private=True,
        because="the pull to the global model depends on no patient",
    )

    method: Literal["fedprox"] = "fedprox"
    mu: float = Field(default=0.01, gt=0.0)

    def explain(self) -> str:
        """What it does."""
        return f"Training is held near the federation's model (FedProx, mu = {self.mu:g})."

    def objective(self, objective: Objective, start: Start) -> Objective:
        """See the class."""

        def proximal(model: nn.Module, batch: Batch) -> Tensor:
            weights = dict(model.named_parameters())
            distance = torch.stack([(weights[n] - old).square().sum() for n, old in start.anchor.items()]).sum()
            return objective(model, batch) + 0.5 * self.mu * distance

        return proximal


def choices(start: Start, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """(logits [M, C], index of the right one [M]) of a batch's outputs, as the task reads them."""
    return cast(Choosing, start.task).choices(output, target)


def occurrences(start: Start) -> Tensor:
    """How often each class is right among the site's training images: [C] or [K, C]; it stays at the site."""
    return cast(Choosing, start.task).occurrences(start.targets)
