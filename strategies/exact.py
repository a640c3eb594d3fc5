"""FedEx-LoRA (Singhal et al. 2025, arXiv 2410.09432): what averaging A and B apart gets wrong is added back exactly.

Per layer the sites' factors give mean(B·A); the averaged factors give mean(B)·mean(A). The difference, the residual,
is kept at the server in full, sent down with the factors and added to the frozen weight at every site. It is dense:
the way down grows by one matrix per adapted layer; the way up does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from polyclinic.core.config import Method
from polyclinic.core.errors import StudyError, UpdateError
from polyclinic.core.update import LARGEST, Manifest, Tensors, Update
from polyclinic.strategies.fixed_point import FixedSum
from polyclinic.strategies.mean import MeanStrategy, Sums

if TYPE_CHECKING:
    from polyclinic.core.study import Study

A, B = ".lora_A.", ".lora_B."
RESIDUAL = ".residual"


class Exact(Method):
    """``method = "exact"``: the average of the products B·A, for chains that train low-rank factors."""

    method: Literal["exact"] = "exact"

    def averages(self) -> bool:
        """It does; products of factors, too."""
        return True

    def check(self, study: Study) -> None:
        """Refuses chains without factors, and server steps after which the average would no longer be exact."""
        if not any(method.low_rank for method in study.adaptation):
            raise StudyError(
                "'exact' averages products of low-rank factors, and nothing in the chain trains both at once",
                where="strategy.method",
                remedy="use 'mean', or an [[adaptation]] that does (polyclinic methods --json: low_rank)",
            )
        if not study.server_step.averages():
            raise StudyError(
                "'exact' is exact only if the server takes the average as it is",
                where="server_step",
                remedy="use method 'sgd' with learning_rate 1.0",
            )

    def build(self) -> ExactStrategy:
        """The strategy."""
        return ExactStrategy()

    def explain(self) -> str:
        """What the server does."""
        return (
            "The server averages what the sites send and adds back exactly what averaging LoRA's factors apart gets "
            "wrong, as one dense matrix per adapted layer on the way down."
        )


@dataclass
class Fold:
    """Sums of what travels, sums of the products by layer, and the residuals that the round started from."""

    sums: Sums
    products: Mapping[str, FixedSum]
    residuals: Tensors


class ExactStrategy:
    """A fold over fixed-point sums of the factors and of their products; memory does not grow with the sites."""

    streams = True
    _mean = MeanStrategy()

    def expects(self, reference: Tensors) -> Manifest:
        """Everything but the residuals comes back."""
        return Manifest.of({name: array for name, array in reference.items() if not name.endswith(RESIDUAL)})

    def init(self, reference: Tensors) -> Fold:
        """Empty sums."""
        residuals = {name: array for name, array in reference.items() if name.endswith(RESIDUAL)}
        travelling = {name: array for name, array in reference.items() if name not in residuals}
        products = {
            _layer(name): FixedSum.zero((reference[name.replace(A, B)].shape[0], array.shape[1]))
            for name, array in travelling.items()
            if A in name
        }
        return Fold(self._mean.init(travelling), products, residuals)

    def add(self, state: Fold, update: Update) -> Fold:
        """One more update; UpdateError, before anything is added, if a product is too large for the sums."""
        products = {_layer(name): _product(update.tensors, name) for name in state.sums if A in name}
        for layer, product in products.items():
            if np.abs(product).max() > LARGEST:
                raise UpdateError(f"its product B·A holds a number above {LARGEST:g}", where=layer)
        self._mean.add(state.sums, update)
        for layer, product in products.items():
            state.products[layer].add(product, update.weight)
        return state

    def merge(self, one: Fold, other: Fold) -> Fold:
        """Both."""
        self._mean.merge(one.sums, other.sums)
        for layer, total in one.products.items():
            total.merge(other.products[layer])
        return one

    def finish(self, state: Fold) -> Tensors:
        """Averaged factors and, per layer, the residual to date: before + mean(B·A) − mean(B)·mean(A)."""
        averages = dict(self._mean.finish(state.sums))
        for name in state.sums:
            if A in name:
                layer = _layer(name)
                lost = state.products[layer].mean() - _product(averages, name)
                before = state.residuals.get(layer + RESIDUAL, np.float32(0.0))
                averages[layer + RESIDUAL] = (before + lost).astype(np.float32)
        return averages


def _layer(name: str) -> str:
    return name.split(A, maxsplit=1)[0]


def _product(tensors: Tensors, name: str) -> np.ndarray:
    """B·A in float64, [out, in]."""
    product: np.ndarray = tensors[name.replace(A, B)].astype(np.float64) @ tensors[name].astype(np.float64)
    return product
