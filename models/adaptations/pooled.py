"""Sums over a site's images that travel beside the weights: their mean over sites is the federation's, exactly.

A site sends (Σ over its images) / n, n the number of all its training images. Sites count by images, so the mean over
sites is (Σ over all sites' images) / (all images), and quotients of such means are those of the pooled sums. A site
with more images than ``rounds.weight_cap`` counts as if it had so many.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from polyclinic.core.config import Method
from polyclinic.core.errors import StudyError
from polyclinic.core.privacy.central import demand_untouched
from polyclinic.models.adaptation import Start

if TYPE_CHECKING:
    from polyclinic.core.study import Study

BATCH = 64


class Pooling(Method):
    """Base of methods that send sums over a site's images.

    ``minimum_patients``: a sum over images of fewer patients is not sent; nobody then counts for it. It bounds how much
    a mean can say of one patient; it is no privacy guarantee.
    """

    minimum_patients: int = Field(default=10, ge=1)

    def check(self, study: Study) -> None:
        """Refuses studies in which the mean over sites would not be that of the pooled images."""
        if study.rounds.weight != "images":
            raise StudyError(
                f"'{self.method}' sends sums over images, which add up only where sites count by images",
                where="rounds.weight",
                remedy='write weight = "images"',
            )
        demand_mean(study, self)


def demand_mean(study: Study, method: Method) -> None:
    """Nothing, if a tensor's new global value is its mean over sites.

    Raises:
        StudyError: the strategy, the server step or noise at the server makes something else of it.
    """
    demand_untouched(study, method.method, "it needs the plain mean over sites")
    for part, where in ((study.strategy, "strategy"), (study.server_step, "server_step")):
        if not part.averages():
            raise StudyError(
                f"'{method.method}' needs the plain mean over sites, and '{part.method}' makes something else of it",
                where=where,
                remedy="take strategy 'mean' or 'exact', and server step 'sgd' with learning_rate 1.0",
            )


def features(model: nn.Module, pixels: Tensor, *, raw: bool = False) -> Iterator[Tensor]:
    """What the head is given for uint8 pictures [N, C, (D,) S, S]: float64 [n, width] on the CPU, in turn.

    ``raw``: as the backbone gives it, before the neck.
    """
    device, parts = next(model.parameters()).device, cast(Any, model)
    with torch.no_grad():
        for some in pixels.split(BATCH):
            given = some.to(device).float() / 255.0
            seen: Tensor = parts.backbone(parts.entry(given)) if raw else parts(given, features=True)
            yield seen.double().cpu()


class Moments(nn.Module):
    """Mean [width] and second moments ([width], or [width, width]) of features, times ``seen``, the share that told."""

    def __init__(self, width: int, *, full: bool) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(width), requires_grad=False)
        self.second = nn.Parameter(torch.zeros(width, width) if full else torch.zeros(width), requires_grad=False)
        self.seen = nn.Parameter(torch.zeros(1), requires_grad=False)

    def gather(self, model: nn.Module, start: Start, minimum: int, *, raw: bool) -> None:
        """Fills in those of a site's training images by ``model``; zeros, and nothing seen, for too few patients."""
        count, told = len(start.pool.pixels), enough(start, torch.arange(len(start.pool.pixels)), minimum)
        mean, second = (
            torch.zeros_like(self.mean, dtype=torch.float64),
            torch.zeros_like(self.second, dtype=torch.float64),
        )
        for seen in features(model, start.pool.pixels, raw=raw) if told else ():
            mean += seen.sum(dim=0).to(mean) / count
            products = seen.T @ seen if self.second.dim() == 2 else seen.square().sum(dim=0)
            second += products.to(second) / count
        fill(self.mean, mean)
        fill(self.second, second)
        fill(self.seen, torch.tensor([float(told)]))


def spread(mean: Tensor, second: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """(mean [width], covariance [width, width] or variances [width]), float64; something must have been seen."""
    centre, products = mean.double() / seen.double(), second.double() / seen.double()
    return centre, products - (torch.outer(centre, centre) if products.dim() == 2 else centre.square())


def width_of(model: nn.Module) -> int:
    """Of the features that the backbone gives."""
    return int(cast(Any, model).backbone.width)


def enough(start: Start, among: Tensor, minimum: int) -> bool:
    """Whether the images at ``among`` (indices into the pool) are of ``minimum`` patients or more."""
    return len({start.pool.patients[int(place)] for place in among}) >= minimum


def fill(parameter: Tensor, value: Tensor) -> None:
    """Writes what is to travel into a parameter that no gradient trains."""
    with torch.no_grad():
        parameter.copy_(value.to(parameter))
