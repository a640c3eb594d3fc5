"""What an adaptation is: a record of pure functions, identity wherever it has nothing to say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from polyclinic.core.study import Data
from polyclinic.core.update import Tensors
from polyclinic.models.contracts import Anchor, Objective, Task, Views

if TYPE_CHECKING:
    from polyclinic.models.backbones import Encoder

Memory = Mapping[str, Tensor]
"""What a site keeps from round to round and never sends, by names that begin with the method's."""


@dataclass(frozen=True)
class Pool:
    """A site's training images, all of them.

    Attributes:
        pixels: uint8 [N, C, (D,) S, S], on the CPU.
        targets: [N, …], on the CPU.
        patients: whose image each is.
    """

    pixels: Tensor
    targets: Tensor
    patients: tuple[str, ...]


@dataclass(frozen=True)
class Start:
    """What a site's training begins with in one round. Nothing of it leaves the site.

    Attributes:
        round: 1, 2, …
        anchor: the global tensors.
        forward: pixels → outputs of the global model, without a gradient; of whole pictures or of windows.
        features: pixels → its pooled features, likewise.
        frozen: pixels → pooled features of the backbone as it was pretrained, likewise.
        task: the study's.
        pool: the site's training images.
        labelled: indices of those that are trained on with their targets, sorted; all, where nothing selects.
        memory: what ``settle`` left at this site in the last round in which it trained.
        generator: for what an objective draws.
        seed: the same for a site in every round of a study.
    """

    anchor: Anchor
    forward: Callable[[Tensor], Tensor]
    features: Callable[[Tensor], Tensor]
    frozen: Callable[[Tensor], Tensor]
    task: Task
    pool: Pool
    labelled: Tensor
    memory: Memory
    generator: torch.Generator
    round: int = 1
    seed: int = 0

    @property
    def targets(self) -> Tensor:
        """Of the images that are trained on with their targets."""
        return self.pool.targets[self.labelled]


@dataclass(frozen=True)
class Trained:
    """What one round's training was.

    Attributes:
        rate: its learning rate.
        steps: how many steps of it were taken.
    """

    rate: float
    steps: int


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


Describe = Callable[[nn.Module, Tensors], PeftForm | None]
"""(the network as it was fitted, global state) → its form in peft; None where peft has none."""


def same_encoder(encoder: Encoder, data: Data) -> Encoder:
    """The encoder as it was."""
    return encoder


def unchanged(model: nn.Module, generator: torch.Generator) -> None:
    """Fits nothing in."""


def nothing(name: str) -> bool:
    """Nothing trains, nothing travels."""
    return False


def never(name: str, round_number: int) -> bool:
    """Nothing rests in any round."""
    return False


def none_of_it(model: nn.Module) -> frozenset[str]:
    """No parameter of the model."""
    return frozenset()


def same_objective(objective: Objective, start: Start) -> Objective:
    """The objective as it was."""
    return objective


def same_batch(model: nn.Module, task: Task, views: Views, generator: torch.Generator) -> Views:
    """The batch as it was."""
    return views


def receive_nothing(model: nn.Module, extra: Mapping[str, Tensor]) -> frozenset[str]:
    """Claims none of the tensors that are no parameters of the model."""
    return frozenset()


def mirror_nothing(model: nn.Module, names: Sequence[str]) -> None:
    """Adds nothing to what was fitted in."""


def keep_nothing(model: nn.Module, start: Start, trained: Trained) -> Memory:
    """Changes nothing after training and keeps nothing for the next round."""
    return {}


def not_in_peft(model: nn.Module, tensors: Tensors) -> None:
    """For what changes the model in a way that peft cannot say, whatever else stands in the chain."""


Select = Callable[[Start, torch.Generator], Tensor]
"""(start, of which ``labelled`` is what may be chosen from; generator) → indices, a sorted part of ``labelled``."""
Weigh = Callable[[Start], Tensor]
"""start → how often each labelled image is drawn, relative to the others: float [len(labelled)]."""


@dataclass(frozen=True)
class Adaptation:
    """One way to adapt a model: identity wherever it has nothing to say; several combine through ``chain``.

    Attributes:
        families: which of parameter, representation, objective, data, architecture it belongs to.
        recast: changes the encoder as it was loaded, before a head is built for it, and draws nothing: the study's
            plain network has it, too, and so has the frozen backbone that describes data.
        fit_in: changes the model in place, once, before training; draws only from the generator. Besides wrapping
            layers it may put modules at ``model.entry`` (pixels → pixels, for every picture) and ``model.neck``
            (pooled features → pooled features), and replace ``model.backbone.see`` by a method of a module.
        mirror: once, after all of a chain is fitted in: (model, names of the parameters that travel and train) → adds
            what must be as large as these are.
        travels: whether the named parameter leaves the site; it also trains there, unless ``constant``,
            ``still`` or ``given``.
        chosen: names of more such parameters, where that depends on the whole model (its last blocks, say).
        constant: whether the named parameter, though it travels, does not train: every site works out the same bits,
            and one that finds others than arrive refuses (a fingerprint of what must be the same everywhere).
        still: whether the named parameter, though it travels or is personal, is trained by no gradient: what
            ``settle`` leaves in it is what leaves the site.
        given: whether the named parameter, though it travels, is the server's to change: no gradient trains it, and no
            site sends it back. The study's strategy must say so, too, in ``expects``.
        rests: (name, round 1, 2, …) → whether the parameter, though it trains, does not in that round: it is then in no
            gradient, no clipping and no noise, and a site sends it back as it came, to the bit.
        aside: whether the named parameter, though it travels, serves training alone: what is exported lacks it.
        personal: names of parameters and floating-point buffers that are a site's own: kept there from round to round,
            never sent. Parameters train unless ``still``. A site's first round begins with those of the pretrained
            model; a module with a personal buffer is in training mode while the site trains.
        receive: takes those tensors of a global state that are no parameters of the model and returns the names that
            it claimed (FedEx-LoRA's residual is one). It is called whenever a state has been written, parameters and
            what is personal included.
        select: which images are trained on with their targets; None for all.
        weigh: how often each of these is drawn; None for once an epoch.
        objective: the loss, changed; ``Start`` holds what the round started from.
        batch: pixels and targets at training time, changed; draws only from the generator.
        settle: after a round's training: may write what is ``still``, and returns what to keep for the next round.
        peft: how what this made is said in peft's form; empty where it makes nothing in the model, or parameters for
            which peft has no form; ``not_in_peft`` where the model changes beyond its parameters.
    """

    families: frozenset[str]
    recast: Callable[[Encoder, Data], Encoder] = same_encoder
    fit_in: Callable[[nn.Module, torch.Generator], None] = unchanged
    mirror: Callable[[nn.Module, Sequence[str]], None] = mirror_nothing
    travels: Callable[[str], bool] = nothing
    chosen: Callable[[nn.Module], frozenset[str]] = none_of_it
    constant: Callable[[str], bool] = nothing
    still: Callable[[str], bool] = nothing
    given: Callable[[str], bool] = nothing
    rests: Callable[[str, int], bool] = never
    aside: Callable[[str], bool] = nothing
    personal: Callable[[nn.Module], frozenset[str]] = none_of_it
    receive: Callable[[nn.Module, Mapping[str, Tensor]], frozenset[str]] = receive_nothing
    select: Select | None = None
    weigh: Weigh | None = None
    objective: Callable[[Objective, Start], Objective] = same_objective
    batch: Callable[[nn.Module, Task, Views, torch.Generator], Views] = same_batch
    settle: Callable[[nn.Module, Start, Trained], Memory] = keep_nothing
    peft: tuple[Describe, ...] = field(default=())
