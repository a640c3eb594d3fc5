"""Sums over a site's images that travel beside the weights: their mean over sites is the federation's, exactly.

A site sends (Σ over its images) / n, n the number of all its training images. Sites count by images, so the mean over
sites is (Σ over all sites' images) / (all images), and quotients of such means are those of the pooled sums. A site
with more images than ``rounds.weight_cap`` counts as if it had so many.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from pydantic import Field
from torch import Tensor, nn

from polyclinic.core.config import Method
from polyclinic.core.errors import StudyError
from polyclinic.models.contracts import Start

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
        StudyError: the strategy or the server step makes something else of it.
    """
    for part, where in ((study.strategy, "strategy"), (study.server_step, "server_step")):
        if not part.averages():
            raise StudyError(
                f"'{method.method}' needs the plain mean over sites, and '{part.method}' makes something else of it",
                where=where,
                remedy="take strategy 'mean' or 'exact', and server step 'sgd' with learning_rate 1.0",
            )


def features(model: nn.Module, pixels: Tensor) -> Iterator[Tensor]:
    """What the head is given for uint8 pictures [N, C, (D,) S, S]: float64 [n, width] on the CPU, in turn."""
    device = next(model.parameters()).device
    with torch.no_grad():
        for some in pixels.split(BATCH):
            yield model(some.to(device).float() / 255.0, features=True).double().cpu()


def enough(start: Start, among: Tensor, minimum: int) -> bool:
    """Whether the images at ``among`` (indices into the pool) are of ``minimum`` patients or more."""
    return len({start.pool.patients[int(place)] for place in among}) >= minimum


def fill(parameter: Tensor, value: Tensor) -> None:
    """Writes what is to travel into a parameter that no gradient trains."""
    with torch.no_grad():
        parameter.copy_(value.to(parameter))
