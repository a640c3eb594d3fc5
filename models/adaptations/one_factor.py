"""LoRA of which one factor is the same at all sites in a round: FFA-LoRA, RoLoRA and FedSVD.

With a common A the mean of the sites' products is mean(B)·A, and with a common B it is B·mean(A): plain averaging is
exact, and ``exact`` has nothing to mend. Under privacy a round's noise falls on one factor alone, where that on LoRA's
two multiplies: (B + E)(A + F) holds E·F, which grows with the square of the noise and helps nobody's privacy.

After n rounds of noise τ a number, from B = 0, the expected squared error of a product [out, in] of rank r is
nτ²·out·‖A‖² + n²τ⁴·out·in·r under LoRA. RoLoRA leaves a half of the first and a quarter of the second term, FFA-LoRA
the first, and FedSVD nτ²·out·r: its A always has length √r.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from polyclinic.core.errors import StudyError
from polyclinic.core.facts import Facts
from polyclinic.core.update import Tensors
from polyclinic.models.adaptation import Adaptation, PeftForm
from polyclinic.models.adaptations.injected import as_array, exact_draw
from polyclinic.models.adaptations.parameter import A, B, LowRank, demand_rank, lora_layers
from polyclinic.models.adaptations.pooled import demand_mean

if TYPE_CHECKING:
    from polyclinic.core.study import Study

_LINEAR = "linear layers by a known name (transformers)"


class OneFactor(LowRank):
    """Base of methods under which one factor of every layer is common to all sites in a round."""

    low_rank: ClassVar[bool] = False

    def check(self, study: Study) -> None:
        """Refuses a second method whose factors have LoRA's names: which of them train would be decided twice."""
        for other in study.adaptation:
            if other is not self and {A, B} & set(getattr(other, "marks", ())):
                raise StudyError(
                    f"'{self.method}' says which of LoRA's factors train, and '{other.method}' has factors, too",
                    where="adaptation",
                    remedy="keep one of them",
                )


class FfaLora(OneFactor):
    """``method = "ffa_lora"`` (Sun et al. 2024, arXiv 2403.12313): W + (alpha / rank)·B·A; B trains from zero, A never.

    A is drawn as LoRA draws it, uniform within ±1/√in. It does not travel: every site draws the same bits from the
    study's seed (whole numbers, scaled once).
    """

    marks: ClassVar[tuple[str, ...]] = (B,)
    facts: ClassVar[Facts] = Facts(
        families=("parameter",),
        paper="Sun et al. 2024 (FFA-LoRA), arXiv 2403.12313",
        exact_private=True,
        because="B's gradients are plain linear layers', and A, from the seed, gets neither a gradient nor noise",
        travels="the factor B of every adapted layer; A follows from the study's seed",
        backbones=_LINEAR,
    )

    method: Literal["ffa_lora"] = "ffa_lora"

    def fit_in(self, model: nn.Module, generator: torch.Generator) -> None:
        """Wraps the layers and draws A."""
        with torch.random.fork_rng(devices=[]):  # peft draws from the global generator
            self.inject(model)
        for _, layer in lora_layers(model):
            weight = layer.lora_A["default"].weight
            with torch.no_grad():
                weight.copy_(exact_draw(tuple(weight.shape), 1 / math.sqrt(weight.shape[1]), generator))

    def in_peft(self, model: nn.Module, tensors: Tensors) -> PeftForm:
        """With A, which the state has not."""
        drawn = {name: as_array(weight) for name, weight in model.named_parameters() if A in name}
        return super().in_peft(model, {**tensors, **drawn})

    def explain(self) -> str:
        """What trains."""
        layers = "attention and MLP" if self.targets == "all" else self.targets
        return (
            f"The factor B of low-rank products of rank {self.rank} trains in every {layers} layer (FFA-LoRA); A stays "
            "as it was drawn from the seed, and so does the backbone."
        )

    def _is_own(self, name: str) -> bool:
        return A in name or B in name


class RoLora(OneFactor):
    """``method = "rolora"`` (RoLoRA, Chen et al. 2024, arXiv 2409.02346): B trains in odd rounds, A in even ones.

    B first, for it starts at zero, and as long as it is zero A has no gradient. DEeR (Zhu et al. 2024, arXiv
    2410.12926) alternates likewise under privacy. The factor that rests is sent back as it came; its mean is itself to
    the bit, but for numbers below 2^-35, which lie off the grid of the server's sums by less than 2^-58. The head
    always trains.
    """

    alternates: ClassVar[bool] = True
    facts: ClassVar[Facts] = Facts(
        families=("parameter",),
        paper="Chen et al. 2024 (RoLoRA), arXiv 2409.02346; Zhu et al. 2024 (DEeR), arXiv 2410.12926",
        exact_private=True,
        because="the gradients of the factor that trains are plain linear layers'; the other gets no noise",
        travels="the factors A and B of every adapted layer, one of which the round trained",
        backbones=_LINEAR,
    )

    method: Literal["rolora"] = "rolora"

    def check(self, study: Study) -> None:
        """Refuses what would move the factor that rests, such as a server step with a memory."""
        super().check(study)
        demand_mean(study, self)

    def build(self) -> Adaptation:
        """The adaptation."""
        return replace(super().build(), rests=lambda name, round_number: (A if round_number % 2 else B) in name)

    def explain(self) -> str:
        """What trains."""
        layers = "attention and MLP" if self.targets == "all" else self.targets
        return (
            f"Low-rank factors of rank {self.rank} train in turn in every {layers} layer (RoLoRA): B in odd rounds, A "
            "in even ones; the backbone itself stays frozen."
        )


class FedSvd(OneFactor):
    """``method = "fedsvd"`` (Lee et al. 2025, arXiv 2505.12805): B trains, A's rows are orthonormal and the server's.

    After every round strategy ``fedsvd`` makes A the right singular vectors of mean(B)·A and B the rest. That is worked
    out from what the sites sent, so it costs no privacy. A travels to the sites and not back: what a site's own linear
    algebra makes of the seed does not matter, the server's does.
    """

    refactors: ClassVar[bool] = True
    demands: ClassVar[Mapping[str, Mapping[str, Any]]] = {"strategy": {"method": "fedsvd"}}
    facts: ClassVar[Facts] = Facts(
        families=("parameter",),
        paper="Lee et al. 2025 (FedSVD), arXiv 2505.12805",
        exact_private=True,
        because="B's gradients are plain linear layers'; A is worked out from noised updates and gets no noise",
        travels="the factor B of every adapted layer; A comes from the server and does not go back",
        backbones=_LINEAR,
    )

    method: Literal["fedsvd"] = "fedsvd"

    def check(self, study: Study) -> None:
        """Refuses other strategies: A would stay as it was drawn, which is ``ffa_lora`` at more traffic."""
        super().check(study)
        if not study.strategy.refactors:
            raise StudyError(
                f"'{self.method}' lives by an A that the server makes anew, and '{study.strategy.method}' makes none",
                where="strategy.method",
                remedy="use strategy 'fedsvd'; for an A that never changes, method 'ffa_lora'",
            )

    def build(self) -> Adaptation:
        """The adaptation."""
        return replace(super().build(), given=lambda name: A in name)

    def fit_in(self, model: nn.Module, generator: torch.Generator) -> None:
        """Wraps the layers and draws orthonormal rows for A. Raises StudyError if a layer has fewer than ``rank``."""
        with torch.random.fork_rng(devices=[]):  # peft draws from the global generator
            self.inject(model)
        for name, layer in lora_layers(model):
            demand_rank(name, layer.base_layer.weight, self.rank)
            weight = layer.lora_A["default"].weight
            with torch.no_grad():
                weight.copy_(orthonormal(exact_draw(tuple(weight.shape), 1.0, generator)))

    def explain(self) -> str:
        """What trains."""
        layers = "attention and MLP" if self.targets == "all" else self.targets
        return (
            f"The factor B of low-rank products of rank {self.rank} trains in every {layers} layer (FedSVD); A comes "
            "from the server, which makes it anew after every round; the backbone itself stays frozen."
        )


def orthonormal(rows: Tensor) -> Tensor:
    """float32 [r, n] of the same span, r ≤ n: its rows by Gram and Schmidt, the first along the first."""
    q, r = np.linalg.qr(rows.double().numpy().T)
    return torch.from_numpy((q * np.sign(np.diag(r))).T.astype(np.float32))
