"""ComBat on features: what a site adds to and multiplies every feature by is taken off again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor, nn

from polyclinic.core.config import Method
from polyclinic.core.errors import StudyError
from polyclinic.core.facts import Facts
from polyclinic.models.adaptation import Adaptation, Memory, Start, Trained
from polyclinic.models.adaptations.looking import looked
from polyclinic.models.adaptations.places import after, demand_plain_average, entering, within

if TYPE_CHECKING:
    from polyclinic.core.study import Study

_TOLD, _OWN = ("mean", "variance"), ("own_mean", "own_variance", "own_count")
_MOST, _CLOSE = 200, 1e-4


class Combat(Method):
    """``method = "combat"`` (Johnson et al. 2007; Fortin et al. 2018): pooled features without a site's own effects.

    z = (f − α)/σ with the federation's mean α and variance within sites σ² of each feature; the site's own mean γ and
    variance δ² of z, with ``shrink`` drawn towards those of all features by parametric empirical Bayes; the head gets
    σ·(z − γ)/δ + α. α and σ² are means of what sites tell, weighted by their pictures: exactly those over all. γ and δ
    stay at the site. As no covariates are given, what really differs between sites' patients, such as how many are
    ill, is taken off like all else.

    In round 1 nothing changes; a site without figures of its own keeps its features as they are. Where the backbone
    is adapted the figures are those of the site's model at the end of its last round.
    """

    merges: ClassVar[bool] = False
    facts: ClassVar[Facts] = Facts(
        families=("data",),
        paper="Johnson et al. 2007, doi 10.1093/biostatistics/kxj037; Fortin et al. 2018, arXiv 1708.09292",
        exact_private=False,
        because="a site's means and variances leave beside the gradients, and no clipping bounds them",
        travels="mean and variance of each feature over the site's training pictures",
        personal="mean and variance of each feature, and of how many pictures",
    )

    method: Literal["combat"] = "combat"
    shrink: bool = True

    @classmethod
    def fits(cls, task: type[Method]) -> bool:
        """Whether the head takes pooled features."""
        return not getattr(task, "dense", False)

    def check(self, study: Study) -> None:
        """Refuses heads that take no pooled features, and server steps after which what travels would be no mean."""
        demand_plain_average(study, self.method)
        if getattr(study.task, "dense", False):
            raise StudyError(
                "'combat' changes pooled features, and this task's head takes none",
                where="adaptation",
                remedy="leave it out",
            )

    def build(self) -> Adaptation:
        """The adaptation."""
        return Adaptation(
            families=frozenset({"data"}),
            fit_in=self._fit_in,
            travels=_told,
            still=_told,
            personal=lambda model: frozenset(
                name for name, _ in model.named_buffers() if within("combat", name) and name.rpartition(".")[2] in _OWN
            ),
            receive=_take,
            settle=_settle,
        )

    def explain(self) -> str:
        """What it does."""
        how = "by empirical Bayes" if self.shrink else "as they stand"
        return (
            f"Features are freed of each site's own mean and variance (ComBat, {how}); each site sends the mean and "
            "variance of its features after every round."
        )

    def _fit_in(self, model: nn.Module, generator: torch.Generator) -> None:
        width: int = model.backbone.width  # type: ignore[union-attr, assignment]
        model.neck = after(model.neck, "combat", Freed(width, self.shrink))  # type: ignore[arg-type]


class Freed(nn.Module):
    """Features [N, width] → features·scale + shift, which ``take`` works out.

    Attributes:
        mean, variance: [width] what travels: on arrival the federation's, after training the site's own.
        own_mean, own_variance, own_count: [width], [width], [1]: the site's, kept there.
    """

    own_mean: Tensor
    own_variance: Tensor
    own_count: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, width: int, shrink: bool) -> None:
        super().__init__()
        self.shrink = shrink
        self.mean, self.variance = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        for name, size in zip(_OWN, (width, width, 1), strict=True):
            self.register_buffer(name, torch.zeros(size))
        self.register_buffer("scale", torch.ones(width), persistent=False)
        self.register_buffer("shift", torch.zeros(width), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """See the class."""
        return features * self.scale + self.shift

    def take(self) -> None:
        """Works out scale and shift from what has arrived and what is the site's own."""
        scale, shift = torch.ones_like(self.scale), torch.zeros_like(self.shift)
        known = (self.variance.detach() > 0) & (self.own_variance > 0)
        if self.own_count.item() >= 2 and known.any():
            parts = (self.mean.detach(), self.variance.detach(), self.own_mean, self.own_variance)
            alpha, sigma2, own_mean, own_variance = (part[known].double() for part in parts)
            sigma, count = sigma2.sqrt(), self.own_count.item()
            gamma, delta2 = (own_mean - alpha) / sigma, own_variance / sigma2 * count / (count - 1)
            if self.shrink and len(gamma) > 1:
                gamma, delta2 = shrunken(gamma, delta2, count)
            scale[known] = delta2.rsqrt().to(scale.dtype)
            shift[known] = (alpha - (alpha + sigma * gamma) * delta2.rsqrt()).to(shift.dtype)
        self.scale.copy_(scale)
        self.shift.copy_(shift)


def shrunken(gamma: Tensor, delta2: Tensor, count: float) -> tuple[Tensor, Tensor]:
    """Posterior means of a site's location and scale of each feature [width] (Johnson et al. 2007, section 3.1).

    Priors by the method of moments over features: N(mean γ, var γ) and the inverse gamma of the mean and variance of
    δ²; the two conditional means in turn until they move by less than 10⁻⁴ of themselves. ``gamma`` and ``delta2`` are
    mean and unbiased variance of ``count`` standardised pictures.
    """
    centre, spread = gamma.mean(), gamma.var()
    m, s2 = delta2.mean(), delta2.var()
    if spread <= 0 or s2 <= 0:
        return gamma, delta2  # features that are all alike say nothing of how much they vary
    shape, rate = (2 * s2 + m**2) / s2, (m * s2 + m**3) / s2
    location, scale2 = gamma, delta2
    for _ in range(_MOST):
        moved = (spread * count * gamma + scale2 * centre) / (spread * count + scale2)
        squares = (count - 1) * delta2 + count * (gamma - moved) ** 2
        wider = (0.5 * squares + rate) / (count / 2 + shape - 1)
        steps = torch.cat([(moved - location).abs() / location.abs(), (wider - scale2).abs() / scale2])
        location, scale2 = moved, wider
        if steps.max() < _CLOSE:
            break
    return location, scale2


def _told(name: str) -> bool:
    return within("combat", name) and name.rpartition(".")[2] in _TOLD


def _freed(model: nn.Module) -> Freed:
    return next(module for module in model.modules() if isinstance(module, Freed))


def _take(model: nn.Module, extra: Mapping[str, Tensor]) -> frozenset[str]:
    """A global state has arrived, and with it the site's own figures."""
    _freed(model).take()
    return frozenset()


def _settle(model: nn.Module, start: Start, trained: Trained) -> Memory:
    """Leaves mean and variance of the features of all training pictures in what travels and in what is kept."""
    module = _freed(model)
    everything = torch.arange(len(start.pool.pixels))
    rows = looked(start, everything, lambda pixels: entering(module, model.encode, pixels).double())  # type: ignore[arg-type]
    mean, variance = rows.mean(dim=0), rows.var(dim=0, unbiased=False)
    with torch.no_grad():
        for place, value in ((module.mean, mean), (module.variance, variance)):
            place.copy_(value)
        module.own_mean.copy_(mean)
        module.own_variance.copy_(variance)
        module.own_count.fill_(float(len(rows)))
    return {}
