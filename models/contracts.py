"""What a task, an adaptation and a backbone are: small records of pure functions that the rest is built from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from polyclinic.core.statistics.monoid import Statistic
from polyclinic.core.study import Data
from polyclinic.core.update import Tensors

if TYPE_CHECKING:
    from polyclinic.models.backbones import Encoder

Anchor = Mapping[str, Tensor]
"""The global tensors that a round started from, by parameter name; detached, on the model's device."""


Needs = Literal["label", "mask", "boxes"]
"""What a manifest must give for every image of a task."""

IGNORED = 255
"""In a mask, a pixel that counts nowhere: outside of a padded picture, or not labelled."""

Findings = Mapping[str, np.ndarray]
"""What of a model's outputs matters for its outcome: arrays of one row an image, however large the outputs were."""


@dataclass(frozen=True)
class Encoded:
    """What a backbone gives for a batch.

    Attributes:
        pooled: [N, width].
        maps: where a task asks for them, [N, channels, (D,) H, W] of every level, the finest first; else none.
    """

    pooled: Tensor
    maps: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Level:
    """One level of a backbone's maps: its channels, and how many pixels of the picture one place stands for."""

    channels: int
    stride: int


@dataclass(frozen=True)
class Shape:
    """What a head must fit.

    Attributes:
        width: of the pooled features.
        levels: of the maps, the finest first; empty for a backbone that has none.
        side: of the square that the model sees, in pixels.
        depth: slices of a volume; None for flat pictures.
        channels: of the picture as the encoder sees it.
    """

    width: int
    levels: tuple[Level, ...]
    side: int
    depth: int | None = None
    channels: int = 3


class Detailed(nn.Module):
    """A dense head that is given the picture, as the encoder sees it, before the backbone's maps."""


@dataclass(frozen=True)
class Batch:
    """What a site's model has just seen.

    Attributes:
        pixels: [N, C, (D,) H, W] in [0, 1], as they went into the model.
        features: the pooled features behind the output, float32 [N, width].
        output: what it gave for them, float32 [N, …].
        target: what it should have given, [N, …].
    """

    pixels: Tensor
    features: Tensor
    output: Tensor
    target: Tensor


Objective = Callable[[nn.Module, Batch], Tensor]
"""(model, batch) → scalar loss: the mean over the batch."""


@dataclass(frozen=True)
class Example:
    """One picture with what a model made of it, for the eyes of its own site.

    Attributes:
        picture: uint8 [H, W, 3], what is true and what was found drawn in where it has a place.
        truth, found: in words.
    """

    picture: np.ndarray
    truth: str
    found: str


class Task(Protocol):
    """What is predicted, how it is trained and how it is judged. Its configuration class is the plugin.

    A target is an array of one shape for all images of a study, so that a batch of them is a tensor.
    """

    @property
    def needs(self) -> Needs:
        """What a manifest must give for every image."""

    @property
    def dense(self) -> bool:
        """Whether the head takes the backbone's maps, and not its pooled features."""

    @property
    def classes(self) -> Sequence[str]:
        """What is told apart, in the order of indices."""

    @property
    def exclusive(self) -> bool:
        """Whether an image has exactly one class."""

    def seen(self, data: Data) -> Data:
        """How large what the model sees at once is, as settings of data: a window's size, or that of whole pictures."""

    def head(self, shape: Shape, generator: torch.Generator) -> nn.Module:
        """A head as training begins, drawn from the generator alone: pooled [N, width] or maps → outputs [N, …].

        Raises:
            StudyError: no head fits such a backbone.
        """

    def target(self, label: str) -> int | tuple[int, ...]:
        """The target that a manifest's label stands for; ValueError with the known labels if it is none."""

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Mean loss of outputs [N, …] against targets [N, …]."""

    def cropped(self, views: Views, generator: torch.Generator) -> Views:
        """What of a training batch the model sees: as it is, or a window of each picture, of the size of ``seen``."""

    def moved(self, target: Tensor, inverse: Tensor) -> Tensor:
        """Targets of pictures that were moved: ``inverse`` [N, 2, 3] maps places after the move to those before it.

        Both in [-1, 1] over the picture, as ``torch.nn.functional.affine_grid`` has it; of a volume, every slice
        moves alike.
        """

    def presence(self, target: np.ndarray) -> np.ndarray:
        """Which classes targets [N, …] hold: indices [N] if ``exclusive``, else 0 or 1 [N, classes]."""

    def infer(self, model: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
        """Outputs [N, …] for whole pictures [N, C, (D,) S, S]; a task may slide a window over them."""

    def examine(self, output: np.ndarray, target: np.ndarray, *, bins: int, spacing: np.ndarray) -> Findings:
        """What of outputs [N, …] against targets [N, …] matters for the outcome, a row an image.

        Args:
            bins: of the reliability diagram.
            spacing: mm between neighbouring pixels, [N, 2] along H, W or [N, 3] along D, H, W; nan where unknown.
        """

    def tally(self, findings: Findings, patients: Sequence[str], *, bins: int, score_bins: int) -> Statistic:
        """Mergeable outcome of all images of a split together."""

    def drawn(self, pixels: np.ndarray, output: np.ndarray, target: np.ndarray) -> Example:
        """An example from uint8 [C, (D,) S, S], an output […] and a target […] of one picture."""

    def trained(self, pooling: str) -> str:
        """What the head is, and what of the backbone it is given, in one sentence; ``pooling`` is the study's."""

    def told(self, *, bins: int, score_bins: int) -> str:
        """What an outcome holds, in words for the site that tells it."""

    def blank(self, *, bins: int, score_bins: int) -> Statistic:
        """The outcome of no image: what every outcome of this task must be able to merge with."""


@runtime_checkable
class Choosing(Protocol):
    """A task that chooses between classes; objectives that speak of classes need one."""

    def choices(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """(logits [M, C], index of the right one [M]): every choice that the outputs of a batch make.

        The mean cross-entropy over the M choices is the task's loss.
        """

    def lowered(self, output: Tensor, by: Tensor) -> Tensor:
        """Outputs with the logit of each option lowered by ``by``, in the form of ``occurrences``."""

    def occurrences(self, target: Tensor) -> Tensor:
        """How often each class is right among targets; [C], or [K, C] where K choices an image are made in turn."""

    @property
    def options(self) -> int:
        """C."""


@runtime_checkable
class Masking(Protocol):
    """A task that learns from masks."""

    @property
    def unit(self) -> Literal["pixel", "mm"]:
        """That of distances; "mm" needs masks that say how large their pixels are."""

    def indexed(self, values: np.ndarray) -> np.ndarray:
        """What the numbers of a mask stand for, uint8; below 0 is outside of the picture, which is ``IGNORED``.

        Raises:
            ValueError: a number that stands for nothing.
        """


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
class Views:
    """A training batch before the model sees it: pixels [N, C, (D,) S, S] in [0, 1] and targets [N, …]."""

    pixels: Tensor
    target: Tensor


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
        travels: whether the named parameter leaves the site; it also trains there, unless ``constant`` or ``still``.
        chosen: names of more such parameters, where that depends on the whole model (its last blocks, say).
        constant: whether the named parameter, though it travels, does not train: every site works out the same bits,
            and one that finds others than arrive refuses (a fingerprint of what must be the same everywhere).
        still: whether the named parameter, though it travels or is personal, is trained by no gradient: what
            ``settle`` leaves in it is what leaves the site.
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
    aside: Callable[[str], bool] = nothing
    personal: Callable[[nn.Module], frozenset[str]] = none_of_it
    receive: Callable[[nn.Module, Mapping[str, Tensor]], frozenset[str]] = receive_nothing
    select: Select | None = None
    weigh: Weigh | None = None
    objective: Callable[[Objective, Start], Objective] = same_objective
    batch: Callable[[nn.Module, Task, Views, torch.Generator], Views] = same_batch
    settle: Callable[[nn.Module, Start, Trained], Memory] = keep_nothing
    peft: tuple[Describe, ...] = field(default=())
