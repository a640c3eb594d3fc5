"""Prompts: tokens that are learned and run through the frozen backbone beside those of the picture."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from polyclinic.core.config import Method
from polyclinic.core.facts import Facts
from polyclinic.models.adaptation import Adaptation, not_in_peft
from polyclinic.models.adaptations.sequence import blocks, width
from polyclinic.models.per_example import Shared

PROMPTS = "vpt_prompts"
"""What their layer is called in every block that has some."""


class Vpt(Method):
    """``method = "vpt"`` (Jia et al. 2022, arXiv 2203.12119): ``prompts`` learned tokens beside those of the picture.

    Shallow, they enter before the first block: [x₁, P₁, E₁] = L₁([x₀, P, E₀]). With ``deep`` every block has its own:
    [xᵢ, _, Eᵢ] = Lᵢ([xᵢ₋₁, Pᵢ₋₁, Eᵢ₋₁]). They stand after the patches' tokens, where no pooling and no map looks; the
    paper puts them behind the class token, which comes to the same, since positions are added before. They start as
    in the paper, uniform in ±√(6 / (3·patch² + width)), so that the model does not begin as the frozen one.
    """

    adapts: ClassVar[bool] = True
    changes: ClassVar[frozenset[str]] = frozenset({"tokens"})
    merges: ClassVar[bool] = False
    facts: ClassVar[Facts] = Facts(
        families=("architecture",),
        paper="Jia et al. 2022 (VPT), arXiv 2203.12119",
        exact_private=True,
        because="each picture's tokens attend to the prompts by themselves",
        travels="the prompts, of every block if deep",
        backbones="one stack of plain transformer blocks",
        identity=False,
    )

    method: Literal["vpt"] = "vpt"
    prompts: int = Field(default=8, ge=1, le=1024)
    deep: bool = True

    def build(self) -> Adaptation:
        """The adaptation."""
        return Adaptation(
            families=frozenset({"architecture"}),
            fit_in=self._fit_in,
            travels=lambda name: name.endswith(f".{PROMPTS}.weight"),
            peft=(not_in_peft,),
        )

    def explain(self) -> str:
        """What trains."""
        where = "in every block" if self.deep else "before the first block"
        return f"{self.prompts} learned tokens enter {where} (visual prompts); the backbone itself stays frozen."

    def _fit_in(self, model: nn.Module, generator: torch.Generator) -> None:
        inner, patch = width(model), model.backbone.levels[0].stride  # type: ignore[union-attr, index]
        bound = math.sqrt(6.0 / (3 * patch**2 + inner))  # type: ignore[operator]
        for i, block in enumerate(blocks(model)[: None if self.deep else 1]):
            drawn = torch.empty((1, self.prompts, inner)).uniform_(-bound, bound, generator=generator)
            block.module.register_module(PROMPTS, Shared(drawn))
            block.module.register_forward_pre_hook(_replaced if i else _appended)


def _appended(block: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a block is given, its prompts after the tokens."""
    tokens, *rest = given
    return (torch.cat([tokens, getattr(block, PROMPTS)(tokens)], dim=1), *rest)


def _replaced(block: Any, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a block is given, its prompts in place of those of the block before."""
    tokens, *rest = given
    prompts = getattr(block, PROMPTS)(tokens)
    return (torch.cat([tokens[:, : -prompts.shape[1]], prompts], dim=1), *rest)
