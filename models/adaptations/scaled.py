"""Rotations, rescalings and normalisations: OFT, IA3 and LayerNorm tuning, all peft's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field
from torch import nn

from polyclinic.core.errors import StudyError
from polyclinic.core.facts import Facts
from polyclinic.models.adaptations.injected import Injected
from polyclinic.models.adaptations.layers import ROLES, named, norms

_LINEAR = "linear layers by a known name (transformers)"
_FUNC = "exact by torch.func, one gradient a patient; hooks on layers refuse or miss its weights"


class Oft(Injected):
    """``method = "oft"`` (Qiu et al. 2023, arXiv 2306.07280): W·R, R orthogonal by blocks through Cayley's transform.

    ``neumann_terms = 0`` inverts the matrix of each block; above that, as peft has it by default, so many terms of a
    series stand for the inverse and R is orthogonal only while it is near the identity.
    """

    marks: ClassVar[tuple[str, ...]] = (".oft_R.",)
    facts: ClassVar[Facts] = Facts(
        families=("parameter",),
        paper="Qiu et al. 2023, arXiv 2306.07280",
        exact_private=True,
        because=_FUNC,
        travels="a skew matrix for every block of every adapted layer",
        backbones=f"{_LINEAR} whose width is a multiple of block_size",
    )

    method: Literal["oft"] = "oft"
    block_size: int = Field(default=16, ge=2, le=1024)
    neumann_terms: int = Field(default=0, ge=0, le=20)

    def layers(self, model: nn.Module) -> list[str]:
        """Full names of the layers.

        Raises:
            StudyError: a layer's width is no multiple of the block.
        """
        found = super().layers(model)
        for name in found:
            width = model.get_submodule(name).in_features
            if isinstance(width, int) and width % self.block_size:
                raise StudyError(
                    f"the width {width} of {name} is no multiple of block_size {self.block_size}",
                    where="adaptation.block_size",
                    remedy="choose a divisor of the width",
                )
        return found

    def config(self, layers: Sequence[str]) -> Any:
        """peft's configuration."""
        from peft import OFTConfig

        return OFTConfig(
            r=0,
            oft_block_size=self.block_size,
            use_cayley_neumann=self.neumann_terms > 0,
            num_cayley_neumann_terms=max(1, self.neumann_terms),
            target_modules=list(layers),
        )

    def explain(self) -> str:
        """What trains."""
        return f"Rotations in blocks of {self.block_size} train before every {self.targets} layer (OFT)."


class Ia3(Injected):
    """``method = "ia3"`` (Liu et al. 2022, arXiv 2205.05638): keys, values and the MLP's inner activations, rescaled.

    ``targets = "attention"`` rescales keys and values, ``"mlp"`` the inner activations, ``"all"`` both, as the paper.
    """

    marks: ClassVar[tuple[str, ...]] = (".ia3_l.",)
    facts: ClassVar[Facts] = Facts(
        families=("parameter",),
        paper="Liu et al. 2022 (T-Few), arXiv 2205.05638",
        exact_private=True,
        because=_FUNC,
        travels="one vector of every adapted layer",
        backbones="keys, values and MLP layers apart and by a known name (transformers)",
    )

    method: Literal["ia3"] = "ia3"
    targets: Literal["attention", "mlp", "all"] = "all"

    def layers(self, model: nn.Module) -> list[str]:
        """Full names of the layers."""
        roles = {"attention": ("key", "value"), "mlp": ("widened",), "all": ("key", "value", "widened")}[self.targets]
        return [name for role in roles for name in named(model, role)]

    def config(self, layers: Sequence[str]) -> Any:
        """peft's configuration: a layer of the MLP is rescaled at its input."""
        from peft import IA3Config

        inner = [name for name in layers if re.fullmatch(ROLES["widened"], name.rpartition(".")[2])]
        return IA3Config(target_modules=list(layers), feedforward_modules=inner)

    def explain(self) -> str:
        """What trains."""
        what = {"attention": "Keys and values", "mlp": "The MLP's inner activations"}
        return f"{what.get(self.targets, 'Keys, values and inner activations')} are rescaled by trained vectors (IA3)."


class LayerNorms(Injected):
    """``method = "layernorm"`` (Zhao et al. 2024, arXiv 2312.11420): scale and shift of every layer normalisation."""

    changes: ClassVar[frozenset[str]] = frozenset({"norms"})
    marks: ClassVar[tuple[str, ...]] = (".ln_tuning_layers.",)
    facts: ClassVar[Facts] = Facts(
        families=("parameter",),
        paper="Zhao et al. 2024, arXiv 2312.11420",
        exact_private=True,
        because="each picture is normalised by itself",
        travels="scale and shift of every layer normalisation",
        backbones="layer normalisations",
    )

    method: Literal["layernorm"] = "layernorm"
    targets: Literal["all"] = "all"

    def layers(self, model: nn.Module) -> list[str]:
        """Full names of the normalisations."""
        return norms(model)

    def config(self, layers: Sequence[str]) -> Any:
        """peft's configuration."""
        from peft import LNTuningConfig

        return LNTuningConfig(target_modules=list(layers))

    def explain(self) -> str:
        """What trains."""
        return "Scale and shift of every layer normalisation train; the rest of the backbone stays frozen."
