"""What a task, an adaptation and a backbone are: small records of pure functions that the rest is built from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from polyclinic.core.statistics.monoid import Statistic
from polyclinic.core.update import Tensors

Anchor = Mapping[str, Tensor]
"""The global tensors that a round started from, by parameter name; detached, on the model's device."""


@dataclass(frozen=True)
class Batch:
    """What a site's model has just seen.

    Attributes:
        pixels: [N, C, H, W] in [0, 1], as they went into the model.
        output: what it gave for them, float32 [N, …].
        target: what it should have given, [N, …].
    """

    pixels: Tensor
    output: Tensor
    target: Tensor


Objective = Callable[[nn.Module, Batch], Tensor]
"""(model, batch) → scalar loss: the mean over the batch."""


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


@runtime_checkable
class Choosing(Protocol):
    """A task that chooses between classes; objectives that speak of classes need one."""

    def choices(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """(logits [M, C], index of the right one [M]): every choice that the outputs of a batch make.

        The mean cross-entropy over the M choices is the task's loss.
        """

    def occurrences(self, target: Tensor) -> Tensor:
        """How often each class is right among targets; [C], or [K, C] where K choices an image are made in turn."""

    @property
    def options(self) -> int:
        """C."""


@dataclass(frozen=True)
class Start:
    """What a site's training begins with in one round. Nothing of it leaves the site.

    Attributes:
        anchor: the global tensors.
        forward: pixels → outputs of the global model, without a gradient.
        task: the study's.
        targets: of the site's training images, [N] or [N, …].
    """

    anchor: Anchor
    forward: Callable[[Tensor], Tensor]
    task: Task
    targets: Tensor


@dataclass(frozen=True)
class PeftForm:
    """A global state, or the part of it that one adaptation made, as peft saves and loads it.

    Attributes:
        config: adapter_config.json, without what export knows itself.
        tensors: adapter_model.safetensors, by peft's names.
        covers: names of the state's tensors of which this says everything.
    """

    config: Mapping[str, Any]
    tensors: Tensors
    covers: frozenset[str]


Describe = Callable[[nn.Module, Tensors], PeftForm]
"""(the network as it was fitted, global state) → its form in peft."""


def unchanged(model: nn.Module, generator: torch.Generator) -> None:
    """Fits nothing in."""


def nothing(name: str) -> bool:
    """Nothing trains, nothing travels."""
    return False


def none_of_it(model: nn.Module) -> frozenset[str]:
    """No parameter of the model."""
    return frozenset()


def same_objective(objective: Objective, start: Start) -> Objective:
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
        chosen: names of more such parameters, where that depends on the whole model (its last blocks, say).
        constant: whether the named parameter, though it travels, does not train: every site works out the same bits,
            and one that finds others than arrive refuses (a fingerprint of what must be the same everywhere).
        receive: takes those tensors of a global state that are no parameters of the model and returns the names that
            it claimed (FedEx-LoRA's residual is one).
        objective: the loss, changed; ``Start`` holds what the round started from.
        batch: pixels [N, C, H, W] in [0, 1] at training time, changed; draws only from the generator.
        peft: how what this made is said in peft's form; empty where peft has no form for it.
    """

    families: frozenset[str]
    fit_in: Callable[[nn.Module, torch.Generator], None] = unchanged
    travels: Callable[[str], bool] = nothing
    chosen: Callable[[nn.Module], frozenset[str]] = none_of_it
    constant: Callable[[str], bool] = nothing
    receive: Callable[[nn.Module, Mapping[str, Tensor]], frozenset[str]] = receive_nothing
    objective: Callable[[Objective, Start], Objective] = same_objective
    batch: Callable[[Tensor, torch.Generator], Tensor] = same_batch
    peft: tuple[Describe, ...] = ()


def chain(*parts: Adaptation) -> Adaptation:
    """The adaptations one after another, in order; ``chain()`` is the identity and ``chain`` is associative."""

    def fit_in(model: nn.Module, generator: torch.Generator) -> None:
        for part in parts:
            part.fit_in(model, generator)

    def receive(model: nn.Module, extra: Mapping[str, Tensor]) -> frozenset[str]:
        return frozenset().union(*(part.receive(model, extra) for part in parts))

    def objective(loss: Objective, start: Start) -> Objective:
        for part in parts:
            loss = part.objective(loss, start)
        return loss

    def batch(pixels: Tensor, generator: torch.Generator) -> Tensor:
        for part in parts:
            pixels = part.batch(pixels, generator)
        return pixels

    return Adaptation(
        families=frozenset().union(*(part.families for part in parts)),
        fit_in=fit_in,
        travels=lambda name: any(part.travels(name) for part in parts),
        chosen=lambda model: frozenset().union(*(part.chosen(model) for part in parts)),
        constant=lambda name: any(part.constant(name) for part in parts),
        receive=receive,
        objective=objective,
        batch=batch,
        peft=tuple(describe for part in parts for describe in part.peft),
    )
