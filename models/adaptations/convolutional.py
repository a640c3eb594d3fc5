"""Low-rank factors beside frozen convolutions."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import nn

from polyclinic.core.facts import Facts
from polyclinic.models.adaptations.layers import convolutions
from polyclinic.models.adaptations.parameter import LowRank


class ConvLora(LowRank):
    """``method = "conv_lora"`` (LoCon: Yeh et al. 2024, arXiv 2309.14859; peft's LoRA on convolutions).

    Beside a convolution of a k × k (× k) kernel lie one of the same kernel to ``rank`` channels and one of a single
    pixel back: W + (alpha / rank)·B·A, with B = 0 at the start. Grouped (depthwise), dilated and transposed
    convolutions stay as they are. The mixture of experts of the same name (Zhong et al. 2024) is something else.

    ``exact`` does not take it: it knows the products of linear layers.
    """

    changes: ClassVar[frozenset[str]] = frozenset({"convolutions"})
    low_rank: ClassVar[bool] = False
    facts: ClassVar[Facts] = Facts(
        families=("parameter",),
        paper="Yeh et al. 2024 (LyCORIS, LoCon), arXiv 2309.14859",
        exact_private=True,
        because="a convolution sees each picture by itself, and normalisations over batches stay as they were trained",
        travels="the factors A and B of every adapted convolution",
        backbones="convolutions that are neither grouped nor dilated (MONAI's networks, efficientnet-lite0)",
    )

    method: Literal["conv_lora"] = "conv_lora"
    targets: Literal["all"] = "all"

    def layers(self, model: nn.Module) -> list[str]:
        """Full names of the convolutions."""
        return convolutions(model)

    def explain(self) -> str:
        """What trains."""
        return f"Low-rank factors of rank {self.rank} train beside every plain convolution of the frozen backbone."
