"""Parts of the backbone itself that train: its biases, its last blocks, all of it, or nothing but the head."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field
from torch import nn

from polyclinic.core.config import Method
from polyclinic.core.errors import StudyError
from polyclinic.core.facts import Facts
from polyclinic.models.adaptation import Adaptation
from polyclinic.models.adaptations.layers import block_of, depth

if TYPE_CHECKING:
    from polyclinic.core.study import Study

ENCODER = "backbone.encoder."
_EVERYTHING = frozenset({"linear layers", "convolutions", "norms", "biases", "embeddings"})
_BY_ITSELF = "no layer mixes pictures"


class Probe(Method):
    """``method = "probe"``: only the linear head trains, on the features of the frozen backbone."""

    adapts: ClassVar[bool] = True
    facts: ClassVar[Facts] = Facts(
        families=("representation",),
        paper="Alain and Bengio 2017, arXiv 1610.01644",
        exact_private=True,
        because="the gradient of a linear head",
        travels="the head",
    )

    method: Literal["probe"] = "probe"

    def check(self, study: Study) -> None:
        """Refuses chains in which something else says what trains: then it would be no probe."""
        others = [method.method for method in study.adaptation if method.adapts and method is not self]
        if others:
            raise StudyError(
                f"'probe' means that nothing but the head trains, and '{others[0]}' trains more",
                where="adaptation",
                remedy=f"leave out 'probe' or '{others[0]}'",
            )

    def build(self) -> Adaptation:
        """The adaptation: the head trains in any case."""
        return Adaptation(families=frozenset({"representation"}))

    def explain(self) -> str:
        """What trains."""
        return "Nothing in the backbone trains: a linear probe."


class Biases(Method):
    """``method = "bitfit"`` (Ben Zaken et al. 2022, arXiv 2106.10199): every bias of the backbone, nothing else."""

    adapts: ClassVar[bool] = True
    changes: ClassVar[frozenset[str]] = frozenset({"biases", "norms"})
    facts: ClassVar[Facts] = Facts(
        families=("parameter",),
        paper="Ben Zaken et al. 2022 (BitFit), arXiv 2106.10199",
        exact_private=True,
        because=_BY_ITSELF,
        travels="every bias of the backbone",
        backbones="layers with biases",
    )

    method: Literal["bitfit"] = "bitfit"

    def build(self) -> Adaptation:
        """The adaptation."""
        return Adaptation(families=frozenset({"parameter"}), chosen=self._chosen)

    def explain(self) -> str:
        """What trains."""
        return "Every bias of the backbone trains (BitFit); its other weights stay frozen."

    def _chosen(self, model: nn.Module) -> frozenset[str]:
        return demand(
            name for name, _ in model.named_parameters() if re.fullmatch(rf"{re.escape(ENCODER)}.*\.bias", name)
        )


class LastBlocks(Method):
    """``method = "last_blocks"``: the last ``count`` transformer blocks and what comes after them."""

    adapts: ClassVar[bool] = True
    changes: ClassVar[frozenset[str]] = _EVERYTHING
    facts: ClassVar[Facts] = Facts(
        families=("parameter",),
        paper="Yosinski et al. 2014, arXiv 1411.1792",
        exact_private=True,
        because=_BY_ITSELF,
        travels="all weights of the last blocks",
        backbones="one stack of blocks (transformers)",
    )

    method: Literal["last_blocks"] = "last_blocks"
    count: int = Field(default=1, ge=1)

    def build(self) -> Adaptation:
        """The adaptation."""
        return Adaptation(families=frozenset({"parameter"}), chosen=self._chosen)

    def explain(self) -> str:
        """What trains."""
        return f"The last {self.count} block(s) of the backbone and the normalisation after them train in full."

    def _chosen(self, model: nn.Module) -> frozenset[str]:
        blocks = depth(model)
        if self.count > blocks:
            raise StudyError(
                f"the backbone has {blocks} blocks, not {self.count}",
                where="adaptation.count",
                remedy=f"at most {blocks}",
            )
        names = [name for name, _ in model.named_parameters() if name.startswith(ENCODER)]
        last = max(i for i, name in enumerate(names) if block_of(name))
        return demand(
            name
            for i, name in enumerate(names)
            if ((block := block_of(name)) and block[1] >= blocks - self.count) or i > last
        )


class Full(Method):
    """``method = "full"``: every weight of the backbone trains and travels."""

    adapts: ClassVar[bool] = True
    changes: ClassVar[frozenset[str]] = _EVERYTHING
    facts: ClassVar[Facts] = Facts(
        families=("parameter",),
        paper="McMahan et al. 2017 (FedAvg), arXiv 1602.05629",
        exact_private=True,
        because=_BY_ITSELF,
        travels="the whole backbone",
    )

    method: Literal["full"] = "full"

    def build(self) -> Adaptation:
        """The adaptation."""
        return Adaptation(families=frozenset({"parameter"}), travels=lambda name: name.startswith(ENCODER))

    def explain(self) -> str:
        """What trains."""
        return "The whole backbone trains and travels: nothing of it stays frozen."


def demand(names: Iterable[str]) -> frozenset[str]:
    """The names.

    Raises:
        StudyError: there is none.
    """
    found = frozenset(names)
    if not found:
        raise StudyError(
            "this backbone has no weight that this method trains", where="adaptation", remedy="choose another method"
        )
    return found
