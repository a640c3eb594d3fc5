"""Low-rank factors beside frozen layers: LoRA, with rsLoRA's scale, or with DoRA's magnitude."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from polyclinic.core.errors import StudyError, UpdateError
from polyclinic.core.facts import Facts
from polyclinic.core.update import Tensors
from polyclinic.models.adaptation import Adaptation, PeftForm, receive_nothing
from polyclinic.models.adaptations.injected import Injected, plain_config, saved_name

RESIDUAL = ".residual"
A, B = ".lora_A.", ".lora_B."
_FACTORS = ("linear layers by a known name (transformers)", "the factors A and B of every adapted layer")


class LowRank(Injected):
    """Base of W + s·B·A; B = 0 at the start, s = alpha / rank unless a subclass says otherwise."""

    marks: ClassVar[tuple[str, ...]] = (A, B)
    low_rank: ClassVar[bool] = True

    rank: int = Field(default=8, ge=1, le=1024)
    alpha: float = Field(default=16.0, gt=0.0)

    def settings(self) -> dict[str, Any]:
        """What peft's LoRA is told beside rank and layers."""
        return {}

    def scale(self) -> float:
        """s."""
        return self.alpha / self.rank

    def config(self, layers: Sequence[str], **more: Any) -> Any:
        """peft's configuration."""
        from peft import LoraConfig

        return LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=list(layers), **self.settings(), **more)

    def build(self) -> Adaptation:
        """The adaptation: peft's LoRA layers, their factors the only weights of the backbone that train."""
        return Adaptation(
            families=frozenset({"parameter"}),
            fit_in=self.fit_in,
            travels=lambda name: any(mark in name for mark in self.marks),
            receive=receive_residuals if self.low_rank else receive_nothing,
            peft=(self.in_peft,),
        )

    def fit_in(self, model: nn.Module, generator: torch.Generator) -> None:
        """Wraps the layers; A is Kaiming's uniform with a = √5 from the generator, B is zero."""
        with torch.random.fork_rng(devices=[]):  # peft draws from the global generator
            self.inject(model)
        for name, weight in model.named_parameters():
            if A in name:
                nn.init.kaiming_uniform_(weight, a=math.sqrt(5), generator=generator)

    def in_peft(self, model: nn.Module, tensors: Tensors) -> PeftForm:
        """Factors as peft saves them; residuals of ``exact`` are folded in, which may raise a layer's rank.

        The folding is a singular value decomposition that cuts nothing but rounding.
        """
        own = {name: array for name, array in tensors.items() if self._is_own(name)}
        factors, ranks = folded(own)
        patterns: dict[str, Any] = {}
        if raised := {layer: rank for layer, rank in ranks.items() if rank != self.rank}:
            patterns = {"rank_pattern": raised, "alpha_pattern": {n: self._alpha(rank) for n, rank in raised.items()}}
        config = plain_config(self.config(sorted(ranks), **patterns))
        return PeftForm(config, {self.saved(name): array for name, array in factors.items()}, frozenset(own))

    def saved(self, name: str) -> str:
        """A weight's name in peft's file."""
        return saved_name(name)

    def _alpha(self, rank: int) -> float:
        """alpha that gives a layer of another rank the same scale."""
        return self.scale() * rank

    def _is_own(self, name: str) -> bool:
        return name.endswith(RESIDUAL) or any(mark in name for mark in self.marks)


class Lora(LowRank):
    """``method = "lora"`` (Hu et al. 2022, arXiv 2106.09685): W + (alpha / rank)·B·A with B = 0 at the start."""

    facts: ClassVar[Facts] = Facts(
        families=("parameter",),
        paper="Hu et al. 2022, arXiv 2106.09685",
        exact_private=True,
        because="the factors' gradients are plain linear layers'",
        travels=_FACTORS[1],
        backbones=_FACTORS[0],
    )

    method: Literal["lora"] = "lora"

    def explain(self) -> str:
        """What trains."""
        layers = "attention and MLP" if self.targets == "all" else self.targets
        return f"Low-rank factors of rank {self.rank} train in every {layers} layer; the backbone itself stays frozen."


class RsLora(LowRank):
    """``method = "rslora"`` (Kalajdzievski 2023, arXiv 2312.03732): s = alpha / √rank, stable at high ranks."""

    facts: ClassVar[Facts] = Facts(
        families=("parameter",),
        paper="Kalajdzievski 2023, arXiv 2312.03732",
        exact_private=True,
        because="the factors' gradients are plain linear layers'",
        travels=_FACTORS[1],
        backbones=_FACTORS[0],
    )

    method: Literal["rslora"] = "rslora"

    def settings(self) -> dict[str, Any]:
        """peft's switch."""
        return {"use_rslora": True}

    def scale(self) -> float:
        """alpha / √rank."""
        return self.alpha / math.sqrt(self.rank)

    def _alpha(self, rank: int) -> float:
        return self.scale() * math.sqrt(rank)

    def explain(self) -> str:
        """What trains."""
        layers = "attention and MLP" if self.targets == "all" else self.targets
        return f"Low-rank factors of rank {self.rank}, scaled by its root, train in every {layers} layer (rsLoRA)."


class Dora(LowRank):
    """``method = "dora"`` (Liu et al. 2024, arXiv 2402.09353): m · (W + s·B·A) / ‖W + s·B·A‖ by rows; m trains, too.

    ``exact`` does not take it: the layer is no linear function of B·A, so averaging products is not averaging layers.
    """

    marks: ClassVar[tuple[str, ...]] = (A, B, ".lora_magnitude_vector.")
    low_rank: ClassVar[bool] = False
    facts: ClassVar[Facts] = Facts(
        families=("parameter",),
        paper="Liu et al. 2024, arXiv 2402.09353",
        exact_private=True,
        because="exact by torch.func, one gradient a patient; hooks on layers miss the magnitude",
        travels=f"{_FACTORS[1]} and its magnitudes",
        backbones=_FACTORS[0],
    )

    method: Literal["dora"] = "dora"

    def settings(self) -> dict[str, Any]:
        """peft's switch."""
        return {"use_dora": True}

    def saved(self, name: str) -> str:
        """peft's files keep the magnitude's name of old."""
        return saved_name(name).replace("_vector.weight", "_vector")

    def explain(self) -> str:
        """What trains."""
        layers = "attention and MLP" if self.targets == "all" else self.targets
        return f"Low-rank factors of rank {self.rank} and the length of every row train in every {layers} layer (DoRA)."


def lora_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """(name, peft layer) of every adapted layer."""
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def demand_rank(name: str, weight: Tensor, rank: int) -> None:
    """Nothing, if a layer's weight has as many singular directions as ``rank``; else StudyError."""
    if rank > min(weight.shape):
        raise StudyError(
            f"{name} has {min(weight.shape)} singular directions, not {rank}",
            where="adaptation.rank",
            remedy=f"at most {min(weight.shape)}",
        )


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


def folded(tensors: Tensors) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """(tensors without residuals, rank by layer): each residual is added to its layer's product and factored anew."""
    a, b = f"{A}default.weight", f"{B}default.weight"
    factors = {name: array for name, array in tensors.items() if not name.endswith(RESIDUAL)}
    ranks = {name.removesuffix(a): array.shape[0] for name, array in factors.items() if name.endswith(a)}
    for name, residual in tensors.items():
        if name.endswith(RESIDUAL):
            layer = name.removesuffix(RESIDUAL)
            product = residual.astype(np.float64) + factors[layer + b].astype(np.float64) @ factors[layer + a]
            factors[layer + b], factors[layer + a] = factorise(product)
            ranks[layer] = len(factors[layer + a])
    return factors, ranks


def factorise(product: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(B [out, r], A [r, in]) float32 with B·A = ``product`` up to rounding, r as small as that allows (at least 1)."""
    u, s, vt = np.linalg.svd(product, full_matrices=False)
    rank = max(1, int((s > s[0] * 1e-8).sum()))
    root = np.sqrt(s[:rank])
    return (u[:, :rank] * root).astype(np.float32), (root[:, None] * vt[:rank]).astype(np.float32)
