"""Normalisation kept at home: a scanner's contrast stays with the site whose scanner it is.

A site trains and is judged with its own; what is exported holds the pretrained ones. A site that took no part therefore
sees the federation's model through the pretrained normalisations, and should judge it on images of its own first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar, Literal

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from polyclinic.core.config import Method
from polyclinic.core.errors import StudyError
from polyclinic.core.facts import Facts
from polyclinic.models.adaptation import Adaptation

KINDS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, _NormBase)
"""The last is what batch and instance normalisation share."""


class FedBN(Method):
    """``method = "fedbn"`` (Li et al. 2021, arXiv 2102.07623): every normalisation of the backbone is a site's own.

    The paper speaks of batch normalisation: scale, shift and running statistics stay. Here so do those of layer, group
    and instance normalisation, which are all that transformers have. They train at the site, from the pretrained ones.
    """

    adapts: ClassVar[bool] = True
    keeps: ClassVar[frozenset[str]] = frozenset({"norms", "running statistics"})
    facts: ClassVar[Facts] = Facts(
        families=("representation",),
        paper="Li et al. 2021 (FedBN), arXiv 2102.07623",
        exact_private=False,
        because="batch normalisation, where the backbone has it, mixes the pictures of a batch",
        personal="scale and shift of every normalisation of the backbone, with the running statistics of those that "
        "have them; exported adapters hold the pretrained ones",
        backbones="normalisations of any kind",
    )

    method: Literal["fedbn"] = "fedbn"

    def build(self) -> Adaptation:
        """The adaptation."""
        return Adaptation(families=frozenset({"representation"}), personal=self._personal)

    def explain(self) -> str:
        """What trains and stays."""
        return "Every normalisation of the backbone trains at its site and stays there (FedBN): sites' models differ."

    def _personal(self, model: nn.Module) -> frozenset[str]:
        found = [*_parameters(model, KINDS), *_statistics(model)]
        return _demand(found, "normalisation")


class SiloBN(Method):
    """``method = "silobn"`` (Andreux et al. 2020, arXiv 2008.07424): running statistics stay, scale and shift travel.

    Of batch normalisation, and of instance normalisation that keeps running statistics: they are gathered at the site
    while it trains, from the pretrained ones on.
    """

    adapts: ClassVar[bool] = True
    keeps: ClassVar[frozenset[str]] = frozenset({"running statistics"})
    facts: ClassVar[Facts] = Facts(
        families=("representation",),
        paper="Andreux et al. 2020 (SiloBN), arXiv 2008.07424",
        exact_private=False,
        because="batch normalisation mixes the pictures of a batch",
        travels="scale and shift of every batch normalisation",
        personal="running statistics of every batch normalisation; exported adapters hold the pretrained ones",
        backbones="batch normalisations",
    )

    method: Literal["silobn"] = "silobn"

    def build(self) -> Adaptation:
        """The adaptation."""
        return Adaptation(families=frozenset({"representation"}), personal=self._personal, chosen=self._chosen)

    def explain(self) -> str:
        """What trains, travels and stays."""
        return (
            "Scale and shift of every batch normalisation train and travel; running statistics are gathered at each "
            "site and stay there (SiloBN)."
        )

    def _personal(self, model: nn.Module) -> frozenset[str]:
        return _demand(_statistics(model), "batch normalisation")

    def _chosen(self, model: nn.Module) -> frozenset[str]:
        return frozenset(_parameters(model, (_NormBase,), lambda norm: bool(norm.track_running_stats)))


def _norms(
    model: nn.Module, kinds: tuple[type[nn.Module], ...], such: Callable[[nn.Module], bool]
) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if name.startswith("backbone.") and isinstance(module, kinds) and such(module):
            yield name, module


def _parameters(
    model: nn.Module, kinds: tuple[type[nn.Module], ...], such: Callable[[nn.Module], bool] = lambda norm: True
) -> list[str]:
    found = _norms(model, kinds, such)
    return [f"{name}.{own}" for name, norm in found for own, _ in norm.named_parameters(recurse=False)]


def _statistics(model: nn.Module) -> list[str]:
    found = _norms(model, (_NormBase,), lambda norm: bool(norm.track_running_stats))
    named = ((name, own, b) for name, norm in found for own, b in norm.named_buffers(recurse=False))
    return [f"{name}.{own}" for name, own, buffer in named if buffer.is_floating_point()]


def _demand(found: list[str], what: str) -> frozenset[str]:
    if not found:
        raise StudyError(
            f"this backbone has no {what} to keep at home", where="adaptation", remedy="choose another method"
        )
    return frozenset(found)
