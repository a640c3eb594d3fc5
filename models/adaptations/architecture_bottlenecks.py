"""Bottlenecks beside or after the parts of a frozen block: Houlsby's adapters and AdaptFormer."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from polyclinic.core.config import Method
from polyclinic.core.facts import Facts
from polyclinic.models.adaptation import Adaptation, not_in_peft
from polyclinic.models.adaptations.sequence import blocks, width

_LAYERS = "each picture's tokens go through them by themselves"
_BACKBONES = "one stack of plain transformer blocks"


class Bottleneck(nn.Module):
    """s · up(σ(down(x))), tokens [N, T, width] → the same; ``up`` starts at zero, so that it begins by adding nothing.

    ``down`` is Kaiming's uniform with a = √5 from the generator; both biases are zero.
    """

    def __init__(self, width: int, size: int, activation: nn.Module, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        self.down = nn.utils.skip_init(nn.Linear, width, size)  # nn.Linear draws from the global generator
        self.up = nn.utils.skip_init(nn.Linear, size, width)
        self.activation, self.scale = activation, scale
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5), generator=generator)
        for weight in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """What is added."""
        added: Tensor = self.up(self.activation(self.down(tokens)))
        return added * self.scale


class Houlsby(Method):
    """``method = "houlsby"`` (Houlsby et al. 2019, arXiv 1902.00751): a bottleneck after attention and after the MLP.

    h + up(gelu(down(h))) on what each gives, before it is added to the tokens. The paper starts near the identity;
    here ``up`` is zero at first, which is the identity itself. The paper trains the normalisations, too: add
    ``layernorm`` for that.
    """

    adapts: ClassVar[bool] = True
    changes: ClassVar[frozenset[str]] = frozenset({"attention outputs", "MLP outputs"})
    merges: ClassVar[bool] = False
    facts: ClassVar[Facts] = Facts(
        families=("architecture",),
        paper="Houlsby et al. 2019, arXiv 1902.00751",
        exact_private=True,
        because=_LAYERS,
        travels="two bottlenecks of every block",
        backbones=_BACKBONES,
    )

    method: Literal["houlsby"] = "houlsby"
    size: int = Field(default=64, ge=1, le=4096)

    def build(self) -> Adaptation:
        """The adaptation."""
        return Adaptation(
            families=frozenset({"architecture"}),
            fit_in=self._fit_in,
            travels=lambda name: ".houlsby." in name,
            peft=(not_in_peft,),
        )

    def explain(self) -> str:
        """What trains."""
        return f"Bottlenecks of {self.size} after the attention and the MLP of every block train (Houlsby's adapters)."

    def _fit_in(self, model: nn.Module, generator: torch.Generator) -> None:
        for block in blocks(model):
            for part in (block.attention, block.mlp):
                part.houlsby = Bottleneck(width(model), self.size, nn.GELU(), 1.0, generator)
                part.register_forward_hook(_after)


class AdaptFormer(Method):
    """``method = "adaptformer"`` (Chen et al. 2022, arXiv 2205.13535): a bottleneck beside the MLP of every block.

    MLP(LN(x)) + scale · up(relu(down(LN(x)))). A backbone that scales what its MLP gives (DINOv2)
    scales this, too.
    """

    adapts: ClassVar[bool] = True
    changes: ClassVar[frozenset[str]] = frozenset({"MLP outputs"})
    merges: ClassVar[bool] = False
    facts: ClassVar[Facts] = Facts(
        families=("architecture",),
        paper="Chen et al. 2022 (AdaptFormer), arXiv 2205.13535",
        exact_private=True,
        because=_LAYERS,
        travels="a bottleneck of every block",
        backbones=_BACKBONES,
    )

    method: Literal["adaptformer"] = "adaptformer"
    size: int = Field(default=64, ge=1, le=4096)
    scale: float = Field(default=0.1, gt=0.0)

    def build(self) -> Adaptation:
        """The adaptation."""
        return Adaptation(
            families=frozenset({"architecture"}),
            fit_in=self._fit_in,
            travels=lambda name: ".adaptformer." in name,
            peft=(not_in_peft,),
        )

    def explain(self) -> str:
        """What trains."""
        return f"A bottleneck of {self.size} beside the MLP of every block trains (AdaptFormer)."

    def _fit_in(self, model: nn.Module, generator: torch.Generator) -> None:
        for block in blocks(model):
            block.mlp.adaptformer = Bottleneck(width(model), self.size, nn.ReLU(), self.scale, generator)
            block.mlp.register_forward_hook(_beside)


def _after(part: Any, given: Any, output: Any) -> Any:
    """What a part gave, and what its bottleneck makes of that."""
    if isinstance(output, tuple):  # an attention gives its weights, too
        return (output[0] + part.houlsby(output[0]), *output[1:])
    return output + part.houlsby(output)


def _beside(mlp: Any, given: tuple[Any, ...], output: Tensor) -> Tensor:
    """What an MLP gave, and what the bottleneck beside it makes of the same."""
    beside: Tensor = mlp.adaptformer(given[0])
    return output + beside
