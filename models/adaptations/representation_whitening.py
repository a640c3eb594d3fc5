"""Features on one scale everywhere: standardised or whitened by the federation's moments before the head sees them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from polyclinic.core.config import Method
from polyclinic.core.facts import Facts
from polyclinic.models.adaptation import Adaptation, Memory, Start, Trained
from polyclinic.models.adaptations.pooled import Moments, Pooling, spread, width_of

NECK = "neck."


class Scaled(Moments):
    """A neck: features less their mean, each over its deviation or all whitened; as they are while nothing was seen.

    ``shift`` and ``turn`` follow from the moments that arrived, and stay while a site trains and measures anew.
    """

    shift: Tensor
    turn: Tensor

    def __init__(self, width: int, shrinkage: float, *, full: bool) -> None:
        super().__init__(width, full=full)
        self.shrinkage = shrinkage
        self.register_buffer("shift", torch.zeros(width), persistent=False)
        self.register_buffer("turn", torch.eye(width) if full else torch.ones(width), persistent=False)

    def renew(self) -> None:
        """Works out ``shift`` and ``turn`` from the moments."""
        width, full = len(self.mean), self.second.dim() == 2
        shift, turn = torch.zeros(width), torch.eye(width) if full else torch.ones(width)
        if float(self.seen) > 0:
            shift, covariance = spread(self.mean.cpu(), self.second.cpu(), self.seen.cpu())
            turn = scale(covariance, self.shrinkage)
        with torch.no_grad():
            self.shift.copy_(shift)
            self.turn.copy_(turn)

    def forward(self, pooled: Tensor) -> Tensor:
        """[N, width] → [N, width]."""
        centred = pooled - self.shift
        return centred @ self.turn if self.turn.dim() == 2 else centred * self.turn


class Necked(Pooling):
    """Base of methods that put the federation's moments before the head."""

    fills: ClassVar[frozenset[str]] = frozenset({"neck"})
    merges: ClassVar[bool] = False
    full: ClassVar[bool]
    """Whether all products of features are summed, and not their squares alone."""

    shrinkage: float = Field(default=0.1, ge=0.0, le=1.0)

    @classmethod
    def fits(cls, task: type[Method]) -> bool:
        """Whether the head takes pooled features."""
        return getattr(task, "dense", True) is False

    def build(self) -> Adaptation:
        """The adaptation."""
        return Adaptation(
            families=frozenset({"representation"}),
            fit_in=self._fit_in,
            travels=lambda name: name.startswith(NECK),
            still=lambda name: name.startswith(NECK),
            receive=self._receive,
            settle=self._settle,
        )

    def _fit_in(self, model: nn.Module, generator: torch.Generator) -> None:
        model.neck = Scaled(width_of(model), self.shrinkage, full=self.full)

    def _receive(self, model: nn.Module, extra: Mapping[str, Tensor]) -> frozenset[str]:
        cast(Scaled, model.neck).renew()  # the moments have just arrived
        return frozenset()

    def _settle(self, model: nn.Module, start: Start, trained: Trained) -> Memory:
        cast(Scaled, model.neck).gather(model, start, self.minimum_patients, raw=True)
        return {}


_PAPER = "Ioffe and Szegedy 2015, arXiv 1502.03167, with moments of the federation in place of a batch's"
_MOMENTS = "moments are sums over patients' features, and leave beside the gradients"


class Standardise(Necked):
    """``method = "standardise"``: each feature less its mean over the federation, over its deviation.

    Moments are of the pooled features of all sites' training images, by the models that the sites had trained in the
    round before; round 1 leaves features as they are. Variances are shrunk towards their mean by ``shrinkage``.
    """

    full: ClassVar[bool] = False
    facts: ClassVar[Facts] = Facts(
        families=("representation",),
        paper=_PAPER,
        exact_private=False,
        because=_MOMENTS,
        travels="mean and mean square of every feature over the site's images",
    )

    method: Literal["standardise"] = "standardise"

    def explain(self) -> str:
        """What it does and sends."""
        return (
            "The head sees features less the federation's mean, over its deviation; sites send means and mean squares."
        )


class Whiten(Necked):
    """``method = "whiten"``: features whitened by the federation's mean and covariance: (x − m) C^(−1/2).

    The symmetric root (ZCA, Kessy et al. 2018, arXiv 1512.00809): of all whitened features the closest to the ones
    before. Moments as for ``standardise``; C is shrunk towards its mean variance times identity by ``shrinkage``, as
    Ledoit and Wolf 2004 do. With few images it must be: their covariance has no inverse.
    """

    full: ClassVar[bool] = True
    facts: ClassVar[Facts] = Facts(
        families=("representation",),
        paper="Kessy et al. 2018, arXiv 1512.00809",
        exact_private=False,
        because=_MOMENTS,
        travels="mean of the features over the site's images and of all their products (width × width)",
    )

    method: Literal["whiten"] = "whiten"

    def explain(self) -> str:
        """What it does and sends."""
        return "The head sees features whitened by the federation's moments; sites send means of features and products."


def scale(covariance: Tensor, shrinkage: float) -> Tensor:
    """C^(−1/2) of a covariance [width, width], or of variances [width], shrunk; 1 where nothing varies."""
    variances, axes = (covariance, None) if covariance.dim() == 1 else torch.linalg.eigh(covariance)
    variances = variances.clamp_min(0.0)
    mean = variances.mean()
    shrunk = (1.0 - shrinkage) * variances + shrinkage * mean
    # rounding of what travels leaves variances that are none: they must not be blown up
    turn = torch.where(shrunk > 1e-6 * mean, shrunk, 1.0).rsqrt()
    return turn if axes is None else (axes * turn) @ axes.T
