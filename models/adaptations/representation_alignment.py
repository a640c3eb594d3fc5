"""Alignment: a batch's features are held to the federation's distribution of features."""

from __future__ import annotations

from math import sqrt
from typing import ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from polyclinic.core.facts import Facts
from polyclinic.core.statistics.kernel import frequencies
from polyclinic.models.adaptation import Adaptation, Memory, Start, Trained
from polyclinic.models.adaptations.pooled import Moments, Pooling, enough, features, fill, spread, width_of
from polyclinic.models.contracts import Batch, Objective

_BATCH = "a batch's statistic mixes its pictures, and moments leave beside the gradients"


class Aligning(Pooling):
    """Base: tensors under the method's own name travel, train by no gradient, and serve training alone."""

    relies_on: ClassVar[frozenset[str]] = frozenset({"neck"})  # moments of one round are compared with in the next

    weight: float = Field(default=1.0, gt=0.0)

    def build(self) -> Adaptation:
        """The adaptation."""
        return Adaptation(
            families=frozenset({"representation"}),
            fit_in=self.fit_in,
            travels=self._own,
            still=self._own,
            aside=self._own,
            objective=self.objective,
            settle=self.settle,
        )

    def fit_in(self, model: nn.Module, generator: torch.Generator) -> None:
        """Puts the tensors beside the model."""
        raise NotImplementedError

    def objective(self, objective: Objective, start: Start) -> Objective:
        """The loss, with the distance of a batch to the federation added, from round 2 on."""
        raise NotImplementedError

    def settle(self, model: nn.Module, start: Start, trained: Trained) -> Memory:
        """Fills in the site's own."""
        raise NotImplementedError

    def _own(self, name: str) -> bool:
        return name.startswith(f"{self.method}.")


class Coral(Aligning):
    """``method = "coral"`` (Sun and Saenko 2016, arXiv 1607.01719): the loss + weight/(4·width²)·‖C_batch − C‖²_F.

    C is the covariance of the pooled features of all sites' images, by the models that the sites had trained in the
    round before. Nothing is added in round 1, nor for a batch of one image.
    """

    facts: ClassVar[Facts] = Facts(
        families=("representation",),
        paper="Sun and Saenko 2016 (Deep CORAL), arXiv 1607.01719",
        exact_private=False,
        because=_BATCH,
        travels="mean of the features over the site's images and of all their products (width × width)",
    )

    method: Literal["coral"] = "coral"

    def explain(self) -> str:
        """What it does and sends."""
        return (
            f"A batch's covariance of features is held to the federation's (CORAL, weight = {self.weight:g}); sites "
            "send means of features and of their products."
        )

    def fit_in(self, model: nn.Module, generator: torch.Generator) -> None:
        """See the class."""
        model.coral = Moments(width_of(model), full=True)

    def objective(self, objective: Objective, start: Start) -> Objective:
        """See the class."""
        mean, second, seen = (start.anchor[f"coral.{name}"] for name in ("mean", "second", "seen"))
        if float(seen) <= 0:
            return objective
        covariance = spread(mean, second, seen)[1].float()

        def aligned(model: nn.Module, batch: Batch) -> Tensor:
            if len(batch.features) < 2:
                return objective(model, batch)
            apart = (torch.cov(batch.features.T) - covariance).square().sum()
            return objective(model, batch) + self.weight / (4 * len(mean) ** 2) * apart

        return aligned

    def settle(self, model: nn.Module, start: Start, trained: Trained) -> Memory:
        """See the class."""
        cast(Moments, model.coral).gather(model, start, self.minimum_patients, raw=False)
        return {}


class FourierMeans(nn.Module):
    """Means [features] of random Fourier features z of pooled features, times ``seen``, the share that told."""

    frequencies: Tensor

    def __init__(self, width: int, count: int, seed: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(count), requires_grad=False)
        self.seen = nn.Parameter(torch.zeros(1), requires_grad=False)
        drawn = torch.from_numpy(frequencies(width, count, seed)).float()
        self.register_buffer("frequencies", drawn, persistent=False)

    def forward(self, pooled: Tensor) -> Tensor:
        """[N, features]: z of features less their mean over the width and of length 1, as the monitor has them."""
        centred = pooled - pooled.mean(dim=1, keepdim=True)
        angles = nn.functional.normalize(centred, dim=1) @ self.frequencies.T.to(pooled)
        z: Tensor = torch.cat([angles.cos(), angles.sin()], dim=1) / sqrt(len(self.frequencies))
        return z


class Mmd(Aligning):
    """``method = "mmd"`` (Long et al. 2015, arXiv 1502.02791): the loss + weight·MMD²(batch, federation).

    With random Fourier features z (Rahimi and Recht 2007) of Gaussian kernels of several widths, those of the shift
    monitor, MMD² is ‖mean z of the batch − mean z of all sites' images‖², the latter by the models that the sites had
    trained in the round before. Nothing is added in round 1.
    """

    facts: ClassVar[Facts] = Facts(
        families=("representation",),
        paper="Long et al. 2015 (DAN), arXiv 1502.02791; Rahimi and Recht 2007",
        exact_private=False,
        because=_BATCH,
        travels="means over the site's images of random Fourier features of the features",
    )

    method: Literal["mmd"] = "mmd"
    features: int = Field(default=256, ge=8, le=4096, multiple_of=2)

    def explain(self) -> str:
        """What it does and sends."""
        return (
            f"A batch's features are held to the federation's (MMD, weight = {self.weight:g}); sites send means of "
            f"{self.features} random Fourier features."
        )

    def fit_in(self, model: nn.Module, generator: torch.Generator) -> None:
        """See the class."""
        seed = int(torch.randint(2**62, (), generator=generator))
        model.mmd = FourierMeans(width_of(model), self.features, seed)

    def objective(self, objective: Objective, start: Start) -> Objective:
        """See the class."""
        mean, seen = start.anchor["mmd.mean"], start.anchor["mmd.seen"]
        if float(seen) <= 0:
            return objective
        federation = mean / seen

        def aligned(model: nn.Module, batch: Batch) -> Tensor:
            z: Tensor = cast(FourierMeans, model.mmd)(batch.features)
            apart: Tensor = (z.mean(dim=0) - federation).square().sum()
            return objective(model, batch) + self.weight * apart

        return aligned

    def settle(self, model: nn.Module, start: Start, trained: Trained) -> Memory:
        """See the class."""
        own, count = cast(FourierMeans, model.mmd), len(start.pool.pixels)
        told, total = enough(start, torch.arange(count), self.minimum_patients), torch.zeros(self.features).double()
        for seen in features(model, start.pool.pixels) if told else ():
            total += own(seen.to(own.mean.device)).detach().cpu().sum(dim=0) / count
        fill(own.mean, total)
        fill(own.seen, torch.tensor([float(told)]))
        return {}
