"""Classification of whole images: binary, multi-class or multi-label."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from polyclinic.core.config import Method
from polyclinic.core.facts import Facts
from polyclinic.core.statistics import noised_outcome
from polyclinic.core.statistics.monoid import Floats
from polyclinic.core.statistics.noised_outcome import NoisedOutcome
from polyclinic.core.statistics.outcome import Outcome, tally
from polyclinic.core.study import Data
from polyclinic.models.contracts import Example, Findings, Needs, Shape, Views
from polyclinic.models.tasks.drawing import flat


class Classification(Method):
    """One or several classes an image.

    ``classes`` are the values of the label column, in the order of their index; of two in a binary task the second
    is the positive one. In a multi-label task a label names any number of classes, joined by ``separator``.
    """

    facts: ClassVar[Facts] = Facts(
        families=(), paper="", exact_private=True, because="the loss is a mean over images", travels="the head"
    )
    discloses: ClassVar[bool] = True
    needs: ClassVar[Needs] = "label"
    dense: ClassVar[bool] = False

    method: Literal["classification"] = "classification"
    kind: Literal["binary", "multiclass", "multilabel"] = "binary"
    classes: tuple[str, ...] = Field(default=("0", "1"), min_length=1)
    separator: str = Field(default="|", min_length=1, max_length=1)

    @model_validator(mode="after")
    def _count(self) -> Self:
        if len(set(self.classes)) < len(self.classes):
            raise ValueError("classes must differ")
        if self.kind == "binary" and len(self.classes) != 2:
            raise ValueError("a binary task has two classes: the negative first, the positive second")
        if self.kind == "multiclass" and len(self.classes) < 3:
            raise ValueError("a multiclass task has three classes or more; with two it is binary")
        if self.kind == "multilabel" and any(self._named(name) != [name] for name in self.classes):
            raise ValueError("in a multi-label task no class is empty, has blanks around it or holds the separator")
        return self

    @property
    def outputs(self) -> int:
        """One logit for a binary task, else one a class."""
        return 1 if self.kind == "binary" else len(self.classes)

    @property
    def exclusive(self) -> bool:
        """Whether an image has exactly one class."""
        return self.kind != "multilabel"

    def seen(self, data: Data) -> Data:
        """Whole pictures."""
        return data

    def cropped(self, views: Views, generator: torch.Generator) -> Views:
        """The pictures as they are."""
        return views

    def head(self, shape: Shape, generator: torch.Generator) -> nn.Linear:
        """A linear head on the pooled features."""
        with torch.random.fork_rng(devices=[]):  # nn.Linear draws from the global generator
            head = nn.Linear(shape.width, self.outputs)
        nn.init.normal_(head.weight, std=0.02, generator=generator)
        nn.init.zeros_(head.bias)
        return head

    def target(self, label: str) -> int | tuple[int, ...]:
        """Index of the class; for a multi-label task a 0/1 for every class.

        Raises:
            ValueError: a label that is no class.
        """
        chosen = self._named(label) if self.kind == "multilabel" else [label]
        for name in chosen:
            if name not in self.classes:
                raise ValueError(f"unknown label '{name}'; the study knows {', '.join(self.classes)}")
        if self.kind == "multilabel":
            return tuple(int(name in chosen) for name in self.classes)
        return self.classes.index(label)

    def _named(self, label: str) -> list[str]:
        return [part.strip() for part in label.split(self.separator) if part.strip()]

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy: over classes, or over each logit by itself for binary and multi-label tasks."""
        if self.kind == "multiclass":
            return F.cross_entropy(output, target)
        return F.binary_cross_entropy_with_logits(output, target.to(output.dtype).view_as(output))

    @property
    def options(self) -> int:
        """Between how many classes one choice is made: two for a binary task and for each label of several."""
        return len(self.classes) if self.kind == "multiclass" else 2

    def choices(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """(logits [M, options], index of the right one [M]).

        A single logit z stands for the two logits (0, z): their softmax is its sigmoid. M = N, or N times the labels
        of a multi-label task, image by image.
        """
        if self.kind == "multiclass":
            return output, target
        flat = output.reshape(-1)
        return torch.stack([torch.zeros_like(flat), flat], dim=1), target.reshape(-1)

    def lowered(self, output: Tensor, by: Tensor) -> Tensor:
        """Outputs [N, outputs] with each option's logit lowered by [options], or [labels, options]."""
        # the output holds one logit an option, or that of yes against a no whose logit is 0
        return output - (by if self.kind == "multiclass" else by[..., 1] - by[..., 0])

    def occurrences(self, target: Tensor) -> Tensor:
        """How often each class is right: [options], for a multi-label task [labels, options]."""
        counts = F.one_hot(target, self.options).sum(dim=0)
        return counts.to(torch.float32)

    def moved(self, target: Tensor, inverse: Tensor) -> Tensor:
        """A class stays what it is, wherever the picture goes."""
        return target

    def presence(self, target: np.ndarray) -> np.ndarray:
        """The targets themselves."""
        return target

    def infer(self, model: Callable[[Tensor], Tensor], pixels: Tensor) -> Tensor:
        """One pass."""
        return model(pixels)

    def examine(self, output: np.ndarray, target: np.ndarray, *, bins: int, spacing: np.ndarray) -> Findings:
        """Logits and targets as they are."""
        return {"output": output, "target": target}

    def tally(self, findings: Findings, patients: Sequence[str], *, bins: int, score_bins: int) -> Outcome:
        """Mergeable outcome of logits [N, outputs] against targets [N] or [N, classes]."""
        target = findings["target"]
        probabilities, nll = self._judged(findings["output"].astype(np.float64), target)
        return tally(self.kind, probabilities, target, patients, nll, bins=bins, score_bins=score_bins)

    def disclosed(self, findings: Findings) -> Floats:
        """[N, Q, 2, 12]: see ``noised_outcome.rows``."""
        probabilities, _ = self._judged(findings["output"].astype(np.float64), findings["target"])
        return noised_outcome.rows(self.kind, probabilities, findings["target"])

    def _judged(self, logits: Floats, target: np.ndarray) -> tuple[Floats, Floats]:
        """(probabilities, negative log-likelihoods [N]) of logits [N, outputs]."""
        with np.errstate(invalid="ignore"):  # what is no number is refused by name where it is counted
            if self.kind == "multiclass":
                shifted = logits - logits.max(axis=1, keepdims=True)
                log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
                return np.exp(log_p), -log_p[np.arange(len(target)), target]
            signed = np.where(target.reshape(logits.shape) == 1, logits, -logits)
            nll = np.logaddexp(0.0, -signed).mean(axis=1)
            probabilities = np.exp(-np.logaddexp(0.0, -logits))
            return probabilities[:, 0] if self.kind == "binary" else probabilities, nll

    def drawn(self, pixels: np.ndarray, output: np.ndarray, target: np.ndarray) -> Example:
        """The picture as it is, or the middle slice of a volume, with the classes and their probabilities."""
        picture = flat(pixels)
        scores = torch.from_numpy(output)
        if self.kind == "multilabel":
            yes = [name for name, on in zip(self.classes, target, strict=True) if on]
            odds = zip(self.classes, scores.sigmoid().tolist(), strict=True)
            return Example(picture, ", ".join(yes) or "none", ", ".join(f"{name} {p:.2f}" for name, p in odds))
        single = self.kind == "binary"
        p = torch.cat([1 - scores.sigmoid(), scores.sigmoid()]) if single else scores.softmax(dim=0)
        best = int(p.argmax())
        return Example(picture, self.classes[int(target)], f"{self.classes[best]} {float(p[best]):.2f}")

    def trained(self, pooling: str) -> str:
        """The linear head."""
        return f"A linear head trains from the pooled features ({pooling})."

    def told(self, *, bins: int, score_bins: int) -> str:
        """What an outcome holds."""
        return f"confusion counts, sums of loss and Brier score, {bins} reliability bins, scores in {score_bins} bins"

    def blank(self, *, bins: int, score_bins: int) -> Outcome:
        """The outcome of no image."""
        target = np.zeros((0, len(self.classes)) if self.kind == "multilabel" else 0, np.int64)
        findings = {"output": np.zeros((0, self.outputs)), "target": target}
        return self.tally(findings, (), bins=bins, score_bins=score_bins)

    def undisclosed(self) -> NoisedOutcome:
        """What ``disclosed`` sums to over nobody."""
        return NoisedOutcome.blank(self.kind, len(self.classes))

    def explain(self) -> str:
        """What is predicted."""
        joiner = " or " if self.kind == "binary" else ", "
        return f"Every image gets a probability for {joiner.join(self.classes)} ({self.kind} classification)."
