"""Harmonisation of brightness: every picture's histogram is brought to the federation's mean one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from polyclinic.core.config import Method
from polyclinic.core.facts import Facts
from polyclinic.models.adaptation import Adaptation, Memory, Start, Trained
from polyclinic.models.adaptations.looking import looked
from polyclinic.models.adaptations.places import after, demand_plain_average, entering, within

if TYPE_CHECKING:
    from polyclinic.core.study import Study

CHANNELS = 3
BLACK = 0.5 / 255
"""What is not brighter is black: the border of a padded picture, the air around a body."""


class HarmoniseHistogram(Method):
    """``method = "harmonise_histogram"``: quantile mapping of every picture to the federation's mean quantiles.

    After Nyúl & Udupa 1999: the reference is the mean of the training pictures' quantile functions, channel by channel
    (``levels`` intervals between the darkest and the brightest), and every picture, in training and in use, is mapped
    to it piecewise linearly by its own. Each site tells the mean over its pictures; weighted by their number, the mean
    of these is exactly that over all. There is no reference before the end of round 1: until then nothing changes.
    ``keep_black`` leaves black as it is and out of the quantiles.
    """

    merges: ClassVar[bool] = False
    facts: ClassVar[Facts] = Facts(
        families=("data",),
        paper="Nyúl and Udupa 1999, doi 10.1002/(SICI)1522-2594(199912)42:6<1072::AID-MRM11>3.0.CO;2-M",
        exact_private=False,
        because="a site's mean histogram leaves beside the gradients, and no clipping bounds it",
        travels="the mean quantiles of each channel over the site's training pictures: their mean histogram",
    )

    method: Literal["harmonise_histogram"] = "harmonise_histogram"
    levels: int = Field(default=64, ge=2, le=256)
    keep_black: bool = True

    def check(self, study: Study) -> None:
        """Refuses server steps after which the reference would be no mean."""
        demand_plain_average(study, self.method)

    def build(self) -> Adaptation:
        """The adaptation."""
        return Adaptation(
            families=frozenset({"data"}),
            fit_in=self._fit_in,
            travels=lambda name: within("histogram", name),
            still=lambda name: within("histogram", name),
            receive=_take,
            settle=_tell,
        )

    def explain(self) -> str:
        """What it does."""
        return (
            "Every picture is mapped to the federation's mean histogram; each site sends that of its own training "
            f"pictures ({self.levels + 1} quantiles a channel) after every round."
        )

    def _fit_in(self, model: nn.Module, generator: torch.Generator) -> None:
        model.entry = after(model.entry, "histogram", Matched(self.levels, self.keep_black))  # type: ignore[arg-type]


class Matched(nn.Module):
    """Pixels [N, C, (D,) S, S] → pixels, mapped to ``reference``; unchanged while that is 0 throughout.

    Attributes:
        told: [3, levels + 1] what travels: after training the site's own means, on arrival the federation's.
        reference: what is in use: the federation's, from its arrival to the next one's.
    """

    reference: Tensor

    def __init__(self, levels: int, keep_black: bool) -> None:
        super().__init__()
        self.keep_black = keep_black
        self.told = nn.Parameter(torch.zeros(CHANNELS, levels + 1))
        self.register_buffer("reference", torch.zeros(CHANNELS, levels + 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """See the class."""
        if not self.reference.any():
            return pixels
        each = self.reference if pixels.shape[1] == CHANNELS else self.reference.mean(dim=0, keepdim=True)
        rows = pixels.flatten(2).flatten(0, 1)
        own = quantiles(rows, self.reference.shape[1] - 1, self.keep_black)
        seen = mapped(rows, own, each.repeat(len(pixels), 1))
        if self.keep_black:
            seen = torch.where(rows > BLACK, seen, rows)
        return seen.view_as(pixels)

    def own(self, pixels: Tensor) -> Tensor:
        """[N, 3, levels + 1]: each picture's quantiles; of a grey one in all channels the same."""
        rows = pixels.flatten(2).flatten(0, 1)
        found = quantiles(rows, self.told.shape[1] - 1, self.keep_black).view(*pixels.shape[:2], -1)
        return found.expand(-1, CHANNELS, -1)


def quantiles(rows: Tensor, levels: int, keep_black: bool) -> Tensor:
    """[R, levels + 1]: quantiles of each row [R, M] at 0, 1/levels, …, 1, linear between values; 0 if all is black."""
    values, _ = rows.sort(dim=1)
    last = rows.shape[1] - 1
    first = (values <= BLACK).sum(dim=1, keepdim=True) if keep_black else torch.zeros_like(values[:, :1])
    first = first.clamp(max=last).to(torch.float64)
    at = first + (last - first) * torch.linspace(0, 1, levels + 1, dtype=torch.float64, device=rows.device)
    below = at.floor().long()
    low, high = values.gather(1, below), values.gather(1, (below + 1).clamp(max=last))
    return low + (high - low) * (at - below).to(rows.dtype)


def mapped(rows: Tensor, own: Tensor, reference: Tensor) -> Tensor:
    """Rows [R, M] through the line that joins the points (own, reference) [R, K], own ascending.

    Where several points share a value, as in a picture of few greys, it goes to the middle between the first and the
    last of them.
    """
    found = [_joined(rows, own, reference, right=right) for right in (False, True)]
    return (found[0] + found[1]) / 2


def _joined(rows: Tensor, own: Tensor, reference: Tensor, *, right: bool) -> Tensor:
    place = torch.searchsorted(own, rows.contiguous(), right=right).clamp(1, own.shape[1] - 1)
    start, end = own.gather(1, place - 1), own.gather(1, place)
    share = ((rows - start) / (end - start).clamp_min(1e-12)).clamp(0.0, 1.0)
    low, high = reference.gather(1, place - 1), reference.gather(1, place)
    return low + share * (high - low)


def _matched(model: nn.Module) -> Matched:
    return next(module for module in model.modules() if isinstance(module, Matched))


def _take(model: nn.Module, extra: Mapping[str, Tensor]) -> frozenset[str]:
    """A global state has arrived: its reference is the one in use until the next."""
    module = _matched(model)
    module.reference.copy_(module.told.detach())
    return frozenset()


def _tell(model: nn.Module, start: Start, trained: Trained) -> Memory:
    """Leaves the mean quantiles of all training pictures in what travels."""
    module, entry = _matched(model), model.entry
    everything = torch.arange(len(start.pool.pixels))
    found = looked(start, everything, lambda pixels: module.own(entering(module, entry, pixels)).double())  # type: ignore[arg-type]
    with torch.no_grad():
        module.told.copy_(found.mean(dim=0))
    return {}
