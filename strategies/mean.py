"""The weighted average of every tensor (FedAvg, McMahan et al. 2017, algorithm 1), to the last bit in any order."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from polyclinic.core.config import Method
from polyclinic.core.update import Manifest, Tensors, Update
from polyclinic.strategies.fixed_point import FixedSum

Sums = dict[str, FixedSum]


class Mean(Method):
    """``method = "mean"``: factors, heads and whatever else travels are averaged one by one.

    Averaging LoRA's factors is not averaging the adapters (mean(B)·mean(A) ≠ mean(B·A)); ``exact`` mends that.
    """

    sums: ClassVar[bool] = True

    method: Literal["mean"] = "mean"

    def averages(self) -> bool:
        """It does."""
        return True

    def build(self) -> MeanStrategy:
        """The strategy."""
        return MeanStrategy()

    def explain(self) -> str:
        """What the server does."""
        return "The server averages what the sites send, tensor by tensor, weighted as the study says."


class MeanStrategy:
    """A fold over fixed-point sums; its state is a few times the size of one update, however many sites there are."""

    streams = True

    def expects(self, reference: Tensors) -> Manifest:
        """Every tensor of the global state comes back."""
        return Manifest.of(reference)

    def init(self, reference: Tensors) -> Sums:
        """Empty sums."""
        return {name: FixedSum.zero(array.shape) for name, array in reference.items()}

    def add(self, state: Sums, update: Update) -> Sums:
        """One more update."""
        for name, total in state.items():
            total.add(update.tensors[name], update.weight)
        return state

    def merge(self, one: Sums, other: Sums) -> Sums:
        """Both."""
        for name, total in one.items():
            total.merge(other[name])
        return one

    def finish(self, state: Sums) -> Tensors:
        """The averages, float32."""
        return {name: total.mean().astype(np.float32) for name, total in state.items()}
