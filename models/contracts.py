"""What a task, an adaptation and a backbone are: small records of pure functions that the rest is built from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from polyclinic.core.statistics.monoid import Statistic

Anchor = Mapping[str, Tensor]
"""The global tensors that a round started from, by parameter name; detached, on the model's device."""

Objective = Callable[[nn.Module, Tensor, Tensor], Tensor]
"""(model, output, target) → scalar loss: the mean over the batch."""


class Task(Protocol):
    """What is predicted, how it is trained and how it is judged. Its configuration class is the plugin."""

    @property
    def classes(self) -> Sequence[str]:
        """What is told apart, in the order of indices."""

    @property
    def outputs(self) -> int:
        """Numbers that the head gives for one image."""

    def target(self, label: str) -> int | tuple[int, ...]:
        """The target that a manifest's label stands for; ValueError with the known labels if it is none."""

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean loss of outputs [N, outputs] against targets [N] or [N, outputs]."""

    def tally(
        self, output: np.ndarray, target: np.ndarray, patients: Sequence[str], *, bins: int, score_bins: int
    ) -> Statistic:
        """Mergeable outcome of outputs [N, outputs] against targets [N] or [N, outputs]."""

    def blank(self, *, bins: int, score_bins: int) -> Statistic:
        """The outcome of no image: what every outcome of this task must be able to merge with."""


def unchanged(model: nn.Module, generator: torch.Generator) -> None:
    """Fits nothing in."""


def nothing(name: str) -> bool:
    """Nothing trains, nothing travels."""
    return False


def same_objective(objective: Objective, anchor: Anchor) -> Objective:
    """The objective as it was."""
    return objective


def same_batch(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """The batch as it was."""
    return pixels


def receive_nothing(model: nn.Module, extra: Mapping[str, Tensor]) -> frozenset[str]:
    """Claims none of the tensors that are no parameters of the model."""
    return frozenset()


@dataclass(frozen=True)
class Adaptation:
    """One way to adapt a model: identity wherever it has nothing to say; several combine through ``chain``.

    Attributes:
        families: which of parameter, representation, objective, data, architecture it belongs to.
        fit_in: changes the model in place, once, before training; draws only from the generator.
        travels: whether the named parameter trains at the site and leaves it.
        receive: takes those tensors of a global state that are no parameters of the model and returns the names that
            it claimed (FedEx-LoRA's residual is one).
        objective: the loss, changed; ``anchor`` is the global state that the round started from.
        batch: pixels [N, C, H, W] in [0, 1] at training time, changed; draws only from the generator.
    """

    families: frozenset[str]
    fit_in: Callable[[nn.Module, torch.Generator], None] = unchanged
    travels: Callable[[str], bool] = nothing
    receive: Callable[[nn.Module, Mapping[str, Tensor]], frozenset[str]] = receive_nothing
    objective: Callable[[Objective, Anchor], Objective] = same_objective
    batch: Callable[[Tensor, torch.Generator], Tensor] = same_batch


def chain(*parts: Adaptation) -> Adaptation:
    """The adaptations one after another, in order; ``chain()`` is the identity and ``chain`` is associative."""

    def fit_in(model: nn.Module, generator: torch.Generator) -> None:
        for part in parts:
            part.fit_in(model, generator)

    def receive(model: nn.Module, extra: Mapping[str, Tensor]) -> frozenset[str]:
        return frozenset().union(*(part.receive(model, extra) for part in parts))

    def objective(loss: Objective, anchor: Anchor) -> Objective:
        for part in parts:
            loss = part.objective(loss, anchor)
        return loss

    def batch(pixels: Tensor, generator: torch.Generator) -> Tensor:
        for part in parts:
            pixels = part.batch(pixels, generator)
        return pixels

    return Adaptation(
        families=frozenset().union(*(part.families for part in parts)),
        fit_in=fit_in,
        travels=lambda name: any(part.travels(name) for part in parts),
        receive=receive,
        objective=objective,
        batch=batch,
    )
