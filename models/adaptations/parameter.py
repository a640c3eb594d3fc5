"""Parameter-efficient adaptation: small trainable weights inside a frozen backbone."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from polyclinic.core.config import Method
from polyclinic.core.errors import StudyError, UpdateError
from polyclinic.models.contracts import Adaptation

ROLES = {
    "attention": r"q_proj|k_proj|v_proj|o_proj|query|key|value|qkv",
    "mlp": r"fc1|fc2|up_proj|down_proj|gate_proj",
}
ROLES["all"] = "|".join(ROLES.values())
RESIDUAL = ".residual"


class Lora(Method):
    """``method = "lora"`` (Hu et al. 2022, arXiv 2106.09685): W + (alpha / rank)·B·A with B = 0 at the start.

    ``targets`` names layers by their role in the backbone: the projections of attention, the MLP, or all of these.
    """

    low_rank: ClassVar[bool] = True

    method: Literal["lora"] = "lora"
    rank: int = Field(default=8, ge=1, le=1024)
    alpha: float = Field(default=16.0, gt=0.0)
    targets: Literal["attention", "mlp", "all"] = "attention"

    def build(self) -> Adaptation:
        """The adaptation: peft's LoRA layers, their factors the only weights of the backbone that train."""
        return Adaptation(
            families=frozenset({"parameter"}),
            fit_in=self._fit_in,
            travels=lambda name: ".lora_A." in name or ".lora_B." in name,
            receive=receive_residuals,
        )

    def explain(self) -> str:
        """What trains."""
        layers = "attention and MLP" if self.targets == "all" else self.targets
        return f"Low-rank factors of rank {self.rank} train in every {layers} layer; the backbone itself stays frozen."

    def pattern(self, model: nn.Module) -> str:
        """Regular expression for the full names of the layers that are adapted.

        Raises:
            StudyError: the backbone has no such layer.
        """
        pattern = rf"backbone\..*\.(?:{ROLES[self.targets]})"
        if not any(re.fullmatch(pattern, name) for name, _ in model.named_modules()):
            raise StudyError(
                f"this backbone has no {self.targets} layer that LoRA knows",
                where="adaptation.targets",
                remedy="choose other targets or another backbone",
            )
        return pattern

    def _fit_in(self, model: nn.Module, generator: torch.Generator) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        config = LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=self.pattern(model))
        with torch.random.fork_rng(devices=[]):  # peft draws from the global generator
            inject_adapter_in_model(config, model)
        for name, weight in model.named_parameters():
            if ".lora_A." in name:
                nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)


def lora_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """(name, peft layer) of every adapted layer."""
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def receive_residuals(model: nn.Module, extra: Mapping[str, Tensor]) -> frozenset[str]:
    """Adds FedEx-LoRA's residuals, scaled as the layer scales B·A, to the frozen weights; without any, undoes it.

    Raises:
        UpdateError: a residual has another shape than its layer's weight.
    """
    claimed = set()
    for name, layer in lora_layers(model):
        weight = layer.base_layer.weight
        frozen = getattr(layer, "frozen_weight", None)
        residual = extra.get(name + RESIDUAL)
        if residual is None and frozen is None:
            continue
        if residual is not None and residual.shape != weight.shape:
            raise UpdateError("is misshapen", where=name + RESIDUAL)
        if frozen is None:
            frozen = layer.frozen_weight = weight.detach().clone()
        with torch.no_grad():
            weight.copy_(frozen)
            if residual is not None:
                weight.add_(residual.to(weight), alpha=layer.scaling["default"])
                claimed.add(name + RESIDUAL)
    return frozenset(claimed)
