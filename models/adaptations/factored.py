"""Other ways to write a small change of a frozen layer: Hadamard and Kronecker products, shared random projections."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import nn

from polyclinic.core.facts import Facts
from polyclinic.core.update import Tensors
from polyclinic.models.adaptation import PeftForm
from polyclinic.models.adaptations.injected import Injected, as_array, exact_draw, wrapped

_LINEAR = "linear layers by a known name (transformers)"
_CUSTOM = "peft computes it by an autograd function of its own, through which no patient's gradient can be had alone"


class Loha(Injected):
    """``method = "loha"`` (FedPara, Hyeon-Woo et al. 2022, arXiv 2108.06098): W + (alpha / rank)·(B₁A₁) ∘ (B₂A₂)."""

    marks: ClassVar[tuple[str, ...]] = (".hada_",)
    facts: ClassVar[Facts] = Facts(
        families=("parameter",),
        paper="Hyeon-Woo et al. 2022 (FedPara), arXiv 2108.06098",
        exact_private=False,
        because=_CUSTOM,
        travels="four factors of every adapted layer",
        backbones=_LINEAR,
    )

    method: Literal["loha"] = "loha"
    rank: int = Field(default=4, ge=1, le=1024)
    alpha: float = Field(default=8.0, gt=0.0)

    def config(self, layers: Sequence[str]) -> Any:
        """peft's configuration."""
        from peft import LoHaConfig

        return LoHaConfig(r=self.rank, alpha=self.alpha, target_modules=list(layers))

    def explain(self) -> str:
        """What trains."""
        return f"Products by entry of two factor pairs of rank {self.rank} train in every {self.targets} layer (LoHa)."


class Lokr(Injected):
    """``method = "lokr"`` (Yeh et al. 2024, LyCORIS, arXiv 2309.14859): W + (alpha / rank)·C ⊗ (B·A)."""

    marks: ClassVar[tuple[str, ...]] = (".lokr_",)
    facts: ClassVar[Facts] = Facts(
        families=("parameter",),
        paper="Yeh et al. 2024 (LyCORIS), arXiv 2309.14859",
        exact_private=False,
        because=_CUSTOM,
        travels="the factors of the Kronecker product of every adapted layer",
        backbones=_LINEAR,
    )

    method: Literal["lokr"] = "lokr"
    rank: int = Field(default=4, ge=1, le=1024)
    alpha: float = Field(default=8.0, gt=0.0)

    def config(self, layers: Sequence[str]) -> Any:
        """peft's configuration."""
        from peft import LoKrConfig

        return LoKrConfig(r=self.rank, alpha=self.alpha, target_modules=list(layers))

    def explain(self) -> str:
        """What trains."""
        return f"Kronecker products of small factors (rank {self.rank}) train in every {self.targets} layer."


class Vera(Injected):
    """``method = "vera"`` (Kopiczko et al. 2024, arXiv 2310.11454): W + diag(b)·B·diag(d)·A; b and d train.

    A and B are random, frozen and shared by all layers. They do not travel: every site draws the same bits from the
    study's seed (whole numbers, scaled once), within ±√(6 / fan-in) as peft draws them.
    """

    marks: ClassVar[tuple[str, ...]] = (".vera_lambda_b.", ".vera_lambda_d.")
    facts: ClassVar[Facts] = Facts(
        families=("parameter",),
        paper="Kopiczko et al. 2024, arXiv 2310.11454",
        exact_private=True,
        because="exact by torch.func, one gradient a patient; hooks on layers miss the vectors",
        travels="two vectors of every adapted layer; the projections follow from the study's seed",
        backbones=_LINEAR,
    )

    method: Literal["vera"] = "vera"
    rank: int = Field(default=64, ge=1, le=4096)

    def config(self, layers: Sequence[str]) -> Any:
        """peft's configuration."""
        from peft import VeraConfig

        return VeraConfig(r=self.rank, target_modules=list(layers), save_projection=True)

    def fit_in(self, model: nn.Module, generator: torch.Generator) -> None:
        """Wraps the layers and draws the projections."""
        super().fit_in(model, generator)
        _, layer = next(wrapped(model))  # every layer holds the same two
        for shared in (layer.vera_A, layer.vera_B):
            shape = tuple(shared["default"].shape)
            with torch.no_grad():
                shared["default"].copy_(exact_draw(shape, math.sqrt(6.0 / shape[1]), generator))

    def in_peft(self, model: nn.Module, tensors: Tensors) -> PeftForm:
        """With the projections, so that peft need not draw them."""
        form = super().in_peft(model, tensors)
        _, layer = next(wrapped(model))
        shared = {f"base_model.vera_{name}": as_array(getattr(layer, f"vera_{name}")["default"]) for name in "AB"}
        return PeftForm(form.config, dict(form.tensors) | shared, form.covers)

    def explain(self) -> str:
        """What trains."""
        return f"Two vectors around shared random projections (rank {self.rank}) train in every {self.targets} layer."
