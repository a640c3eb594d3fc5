"""PiSSA: the factors start as a layer's principal part, and the frozen weight is what that leaves of it."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
import torch
from torch import nn

from polyclinic.core.facts import Facts
from polyclinic.core.privacy.central import demand_untouched
from polyclinic.core.update import Tensors
from polyclinic.models.adaptation import Adaptation, PeftForm
from polyclinic.models.adaptations.injected import as_array
from polyclinic.models.adaptations.parameter import A, B, LowRank, demand_rank, lora_layers

if TYPE_CHECKING:
    from polyclinic.core.study import Study

FINGERPRINT = "pissa_start"
STEPS = 2**10
"""Numbers of a factor are whole multiples of its largest ÷ this: their products then add without rounding."""


class Pissa(LowRank):
    """``method = "pissa"`` (Meng et al. 2024, arXiv 2404.02948): s·B₀·A₀ is W's part of the largest singular values.

    W − s·B₀·A₀ stays frozen and must be the same at every site. The decomposition runs in float64 and its factors are
    rounded to a coarse grid, so that other processors give the same bits but in rare cases; a fingerprint of all
    factors travels, and a site whose own is another one refuses.
    """

    facts: ClassVar[Facts] = Facts(
        families=("parameter",),
        paper="Meng et al. 2024, arXiv 2404.02948",
        exact_private=True,
        because="the factors' gradients are plain linear layers'; the start depends on no patient",
        travels="the factors A and B of every adapted layer and a fingerprint of how they started",
        backbones="linear layers by a known name (transformers)",
    )

    method: Literal["pissa"] = "pissa"

    def check(self, study: Study) -> None:
        """Refuses noise on the fingerprint."""
        demand_untouched(study, self.method, "every site must find the very fingerprint that it worked out")

    def build(self) -> Adaptation:
        """The adaptation."""
        low_rank = super().build()
        return Adaptation(
            families=low_rank.families,
            fit_in=self.fit_in,
            travels=lambda name: low_rank.travels(name) or name.endswith(FINGERPRINT),
            constant=lambda name: name.endswith(FINGERPRINT),
            receive=low_rank.receive,
            peft=(self.in_peft,),
        )

    def fit_in(self, model: nn.Module, generator: torch.Generator) -> None:
        """Wraps the layers and splits their weights; nothing is drawn that stays."""
        with torch.random.fork_rng(devices=[]):
            self.inject(model)
        seen = hashlib.sha256()
        for name, layer in lora_layers(model):
            demand_rank(name, layer.base_layer.weight, self.rank)
            weight = as_array(layer.base_layer.weight).astype(np.float64)
            b, a = principal(weight / self.scale(), self.rank)
            rest = torch.from_numpy((weight - self.scale() * (b @ a)).astype(np.float32))
            with torch.no_grad():
                layer.base_layer.weight.copy_(rest)
                for factor, start in ((layer.lora_A, a), (layer.lora_B, b)):
                    factor["default"].weight.copy_(torch.from_numpy(start.astype(np.float32)))
                    seen.update(start.astype(np.float32).tobytes())
            layer.started_from = (b.astype(np.float32), a.astype(np.float32))
        fingerprint = torch.tensor(list(seen.digest()), dtype=torch.float32)
        model.get_submodule("backbone").register_parameter(FINGERPRINT, nn.Parameter(fingerprint))

    def in_peft(self, model: nn.Module, tensors: Tensors) -> PeftForm:
        """A plain LoRA on the plain backbone: its product is B·A − B₀·A₀, of twice the rank or what ``exact`` needs."""
        own = {name: array for name, array in tensors.items() if self._is_own(name)}
        fingerprints = {name for name in tensors if name.endswith(FINGERPRINT)}
        moved: dict[str, np.ndarray] = dict(own)
        for name, layer in lora_layers(model):
            b0, a0 = layer.started_from
            a, b = f"{name}{A}default.weight", f"{name}{B}default.weight"
            moved[a] = np.concatenate([own[a], a0])
            moved[b] = np.concatenate([own[b], -b0], axis=1)
        twice = self.model_copy(update={"rank": 2 * self.rank, "alpha": 2 * self.alpha})
        form = LowRank.in_peft(twice, model, moved)
        return PeftForm(form.config, form.tensors, frozenset(own) | fingerprints)

    def explain(self) -> str:
        """What trains."""
        layers = "attention and MLP" if self.targets == "all" else self.targets
        return (
            f"The {self.rank} largest singular directions of every {layers} layer train (PiSSA); what they leave of "
            "the backbone stays frozen."
        )


def principal(weight: np.ndarray, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """(B [out, r], A [r, in]) float64: the best approximation of rank r, up to rounding to a grid.

    The sign of each direction is such that A's largest number in it is positive. Numbers are whole multiples of a
    power of two, so few of them that B·A is exact in float64 in whatever order its sums are taken.
    """
    u, s, vt = np.linalg.svd(weight, full_matrices=False)
    u, s, vt = u[:, :rank], s[:rank], vt[:rank]
    signs = np.sign(vt[np.arange(rank), np.abs(vt).argmax(axis=1)])
    root = np.sqrt(s)
    return _on_grid(u * (root * signs)), _on_grid((root * signs)[:, None] * vt)


def _on_grid(factor: np.ndarray) -> np.ndarray:
    step = 2.0 ** np.ceil(np.log2(max(float(np.abs(factor).max()), 1e-30))) / STEPS
    gridded: np.ndarray = np.rint(factor / step) * step
    return gridded
