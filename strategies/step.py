"""Server steps: how the global state moves towards the aggregate.

With Δ = aggregate − old: SGD x + η·Δ; momentum (Hsu et al. 2019) m ← β·m + Δ, x + η·m; and FedAdagrad, FedAdam, FedYogi
(Reddi et al. 2021, algorithm 2) m ← β1·m + (1 − β1)·Δ, x + η·m / (√v + τ), where only v differs. No bias correction, as
in the paper, and v starts at τ² as it asks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from pydantic import Field

from polyclinic.core.config import Method
from polyclinic.core.update import Tensors


class Sgd(Method):
    """``method = "sgd"``: x + η·Δ; at η = 1 the aggregate as it is, to the bit."""

    method: Literal["sgd"] = "sgd"
    learning_rate: float = Field(default=1.0, gt=0.0)

    def averages(self) -> bool:
        """At η = 1."""
        return self.learning_rate == 1.0

    def build(self) -> Sgd:
        """A step without memory."""
        return self

    def start(self, reference: Tensors) -> Tensors:
        """Nothing to remember."""
        return {}

    def apply(self, memory: Tensors, old: Tensors, aggregate: Tensors) -> tuple[Tensors, Tensors]:
        """See the module."""
        if self.learning_rate == 1.0:
            return memory, aggregate
        moved = {name: _wide(old[name]) + self.learning_rate * delta for name, delta in _deltas(old, aggregate).items()}
        return memory, _narrow(moved)


class Momentum(Method):
    """``method = "momentum"``: FedAvgM."""

    method: Literal["momentum"] = "momentum"
    learning_rate: float = Field(default=1.0, gt=0.0)
    momentum: float = Field(default=0.9, ge=0.0, lt=1.0)

    def build(self) -> Momentum:
        """The step; its memory is m."""
        return self

    def start(self, reference: Tensors) -> Tensors:
        """m = 0."""
        return {f"m/{name}": np.zeros_like(array) for name, array in reference.items()}

    def apply(self, memory: Tensors, old: Tensors, aggregate: Tensors) -> tuple[Tensors, Tensors]:
        """See the module."""
        m = _narrow({n: self.momentum * memory[f"m/{n}"] + delta for n, delta in _deltas(old, aggregate).items()})
        moved = _narrow({name: _wide(old[name]) + self.learning_rate * m[name] for name in m})
        return {f"m/{name}": array for name, array in m.items()}, moved


class Adaptive(Method):
    """What FedAdagrad, FedAdam and FedYogi share."""

    learning_rate: float = Field(default=1e-2, gt=0.0)
    beta1: float = Field(default=0.9, ge=0.0, lt=1.0)
    tau: float = Field(default=1e-3, gt=0.0)

    def start(self, reference: Tensors) -> Tensors:
        """m = 0, v = τ²."""
        m = {f"m/{name}": np.zeros_like(array) for name, array in reference.items()}
        return m | {f"v/{name}": np.full_like(array, self.tau**2) for name, array in reference.items()}

    def _apply(
        self, memory: Tensors, old: Tensors, aggregate: Tensors, second: Callable[[np.ndarray, np.ndarray], np.ndarray]
    ) -> tuple[Tensors, Tensors]:
        deltas = _deltas(old, aggregate)
        m = _narrow({n: self.beta1 * memory[f"m/{n}"] + (1 - self.beta1) * delta for n, delta in deltas.items()})
        v = _narrow({n: second(_wide(memory[f"v/{n}"]), delta**2) for n, delta in deltas.items()})
        moved = {n: old[n] + self.learning_rate * _wide(m[n]) / (np.sqrt(_wide(v[n])) + self.tau) for n in deltas}
        return {f"m/{n}": a for n, a in m.items()} | {f"v/{n}": a for n, a in v.items()}, _narrow(moved)


class Adagrad(Adaptive):
    """``method = "adagrad"``: v ← v + Δ²."""

    method: Literal["adagrad"] = "adagrad"
    beta1: float = Field(default=0.0, ge=0.0, lt=1.0)

    def build(self) -> Adagrad:
        """The step; its memory is m and v."""
        return self

    def apply(self, memory: Tensors, old: Tensors, aggregate: Tensors) -> tuple[Tensors, Tensors]:
        """See the module."""
        return self._apply(memory, old, aggregate, lambda v, square: v + square)


class Adam(Adaptive):
    """``method = "adam"``: v ← β2·v + (1 − β2)·Δ²."""

    method: Literal["adam"] = "adam"
    beta2: float = Field(default=0.99, ge=0.0, lt=1.0)

    def build(self) -> Adam:
        """The step; its memory is m and v."""
        return self

    def apply(self, memory: Tensors, old: Tensors, aggregate: Tensors) -> tuple[Tensors, Tensors]:
        """See the module."""
        return self._apply(memory, old, aggregate, lambda v, square: self.beta2 * v + (1 - self.beta2) * square)


class Yogi(Adaptive):
    """``method = "yogi"``: v ← v − (1 − β2)·Δ²·sign(v − Δ²)."""

    method: Literal["yogi"] = "yogi"
    beta2: float = Field(default=0.99, ge=0.0, lt=1.0)

    def build(self) -> Yogi:
        """The step; its memory is m and v."""
        return self

    def apply(self, memory: Tensors, old: Tensors, aggregate: Tensors) -> tuple[Tensors, Tensors]:
        """See the module."""
        return self._apply(memory, old, aggregate, self._second)

    def _second(self, v: np.ndarray, square: np.ndarray) -> np.ndarray:
        return np.asarray(v - (1 - self.beta2) * square * np.sign(v - square))


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64)


def _narrow(tensors: Tensors) -> dict[str, np.ndarray]:
    return {name: array.astype(np.float32) for name, array in tensors.items()}


def _deltas(old: Tensors, aggregate: Tensors) -> dict[str, np.ndarray]:
    return {name: _wide(aggregate[name]) - _wide(old[name]) for name in sorted(aggregate)}
