"""What a task is, what it is given by a backbone, and what it gives: small records and protocols of pure functions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from polyclinic.core.statistics.monoid import Floats, Statistic
from polyclinic.core.statistics.noised import Noised
from polyclinic.core.study import Data

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
class Views:
    """A training batch before the model sees it: pixels [N, C, (D,) S, S] in [0, 1] and targets [N, …]."""

    pixels: Tensor
    target: Tensor


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
class Disclosing(Protocol):
    """A task whose outcome can be told under privacy, as a sum of one bounded vector a patient."""

    def disclosed(self, findings: Findings) -> Floats:
        """[N, …] a vector an image, of Euclidean length at most 1."""

    def undisclosed(self) -> Noised:
        """What these sum to over nobody: its cells are of one vector's shape."""


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
