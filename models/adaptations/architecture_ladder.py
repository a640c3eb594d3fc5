"""A ladder beside the backbone: a narrow network that reads the frozen blocks, so that no gradient enters them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from polyclinic.core.config import Method
from polyclinic.core.errors import StudyError
from polyclinic.core.facts import Facts
from polyclinic.models.adaptation import Adaptation, not_in_peft
from polyclinic.models.adaptations.injected import seeded
from polyclinic.models.adaptations.sequence import blocks, entered, pooled_only, tapped, width
from polyclinic.models.backbones import Seen

if TYPE_CHECKING:
    from polyclinic.core.study import Study

TEMPERATURE = 0.1
"""Of the gates, as in the paper's code."""


class Rung(nn.Module):
    """One transformer block of the side network, its norms first; tokens [N, T, width] → the same."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixed, self.joined = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Attention, then the MLP."""
        parts = self.mixed(self.before(tokens)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(parts[0], parts[1], parts[2])
        tokens = tokens + self.joined(attended.transpose(1, 2).flatten(2))
        result: Tensor = tokens + self.mlp(self.after(tokens))
        return result


class Side(nn.Module):
    """The side network and how an encoder is seen through it.

    hᵢ = rungᵢ(μᵢ · downᵢ(xᵢ) + (1 - μᵢ) · hᵢ₋₁) with μᵢ = sigmoid(αᵢ / 0.1), xᵢ what the frozen block i gives and h₀
    the narrowed embedding. ``up`` starts at zero, so that what is seen begins as it was.
    """

    def __init__(self, see: Any, names: list[str], leading: int, width: int, narrow: int) -> None:
        super().__init__()
        self._see, self.names, self.leading = see, names, leading
        self.gates = nn.Parameter(torch.zeros(len(names)))
        self.foot = nn.Linear(width, narrow)
        self.downs = nn.ModuleList(nn.Linear(width, narrow) for _ in names)
        heads = next(heads for heads in (4, 3, 2, 1) if narrow % heads == 0)
        self.rungs = nn.ModuleList(Rung(narrow, heads) for _ in names)
        self.norm, self.up = nn.LayerNorm(narrow), nn.Linear(narrow, width)
        for weight in self.up.parameters():
            nn.init.zeros_(weight)

    def see(self, module: nn.Module, pixels: Tensor, maps: bool) -> Seen:
        """What the frozen encoder sees, to which the side network adds; no gradient enters the encoder."""
        found = [module.get_submodule(name) for name in self.names]
        with torch.no_grad(), tapped(found) as given, entered(found[0]) as first:
            seen: Seen = self._see(module, pixels, False)
        added = self(first[0], given)
        cls = None if seen.cls is None else seen.cls + added[:, 0]
        return Seen(seen.mean + added[:, self.leading :].mean(dim=1), cls)

    def forward(self, embedded: Tensor, given: list[Tensor]) -> Tensor:
        """What is added to the tokens' last features, [N, T, width]."""
        side = self.foot(embedded)
        shares = (self.gates / TEMPERATURE).sigmoid()
        for share, down, rung, tokens in zip(shares, self.downs, self.rungs, given, strict=True):
            side = rung(share * down(tokens) + (1 - share) * side)
        added: Tensor = self.up(self.norm(side))
        return added


class Ladder(Method):
    """``method = "ladder"`` (Sung et al. 2022, LST, arXiv 2206.06522): a narrow network reads every frozen block.

    Its tokens are ``reduction`` times narrower than the backbone's and, widened again, are added to the last features.
    The paper starts the side network from a pruned backbone; here it is drawn from the seed, and what it adds is zero
    at first. Nothing else may train in the backbone: no gradient enters it, which saves the memory of its activations.
    """

    adapts: ClassVar[bool] = True
    changes: ClassVar[frozenset[str]] = frozenset({"tokens"})
    merges: ClassVar[bool] = False
    facts: ClassVar[Facts] = Facts(
        families=("architecture",),
        paper="Sung et al. 2022 (LST), arXiv 2206.06522",
        exact_private=True,
        because="each picture's tokens go through the side network by themselves",
        travels="the side network",
        backbones="one stack of plain transformer blocks",
    )

    method: Literal["ladder"] = "ladder"
    reduction: int = Field(default=8, ge=1, le=64)

    @classmethod
    def fits(cls, task: type[Method]) -> bool:
        """It adds to pooled features, not to maps."""
        return pooled_only(task)

    def check(self, study: Study) -> None:
        """Refuses chains in which something trains within the backbone: no gradient would reach it."""
        others = [method.method for method in study.adaptation if method.adapts and method is not self]
        if others:
            raise StudyError(
                f"no gradient enters the backbone beside 'ladder', and '{others[0]}' trains in it",
                where="adaptation",
                remedy=f"leave out 'ladder' or '{others[0]}'",
            )

    def build(self) -> Adaptation:
        """The adaptation."""
        return Adaptation(
            families=frozenset({"architecture"}),
            fit_in=self._fit_in,
            travels=lambda name: name.startswith("ladder."),
            peft=(not_in_peft,),
        )

    def explain(self) -> str:
        """What trains."""
        return (
            f"A network 1/{self.reduction} as wide trains beside the backbone, which stays frozen (ladder side-tuning)."
        )

    def _fit_in(self, model: Any, generator: torch.Generator) -> None:
        inner, backbone = width(model), model.backbone
        names = [block.name.removeprefix("backbone.encoder.") for block in blocks(model)]
        with seeded(generator):
            side = Side(backbone.see, names, backbone.leading, inner, math.ceil(inner / self.reduction))
        model.ladder, backbone.see = side, side.see
