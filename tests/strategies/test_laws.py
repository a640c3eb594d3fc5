"""The shipped laws hold of every strategy and server step, and find faults in others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from polyclinic.core import laws, registry
from polyclinic.core.update import Tensors, Update
from polyclinic.strategies.mean import MeanStrategy
from polyclinic.strategies.step import Momentum
from tests.strategies.test_strategies import tensors, updates

REFERENCE = tensors(np.random.default_rng(0))


@pytest.mark.parametrize("name", registry.names("strategies"))
def test_every_strategy_keeps_the_laws(name: str) -> None:
    strategy: Any = registry.load("strategies", name)(method=name).build()  # type: ignore[attr-defined]
    asked = strategy.expects(REFERENCE).shapes
    sent = [Update(u.site, u.weight, {name: u.tensors[name] for name in asked}) for u in updates(5, 1)]
    laws.check_strategy(strategy, REFERENCE, sent)


@pytest.mark.parametrize("name", registry.names("server_steps"))
def test_every_server_step_keeps_the_laws(name: str) -> None:
    aggregates = [tensors(np.random.default_rng(seed)) for seed in (1, 2, 3)]
    laws.check_step(registry.load("server_steps", name)(method=name).build(), REFERENCE, aggregates)


class Floats:
    """A plain average in float32: sums whose order matters."""

    streams = True

    def expects(self, reference: Tensors) -> Any:
        return MeanStrategy().expects(reference)

    def init(self, reference: Tensors) -> Any:
        return {name: np.zeros_like(array) for name, array in reference.items()}, 0

    def add(self, state: Any, update: Update) -> Any:
        return self.merge(state, (update.tensors, 1))

    def merge(self, one: Any, other: Any) -> Any:
        return {name: array + other[0][name] for name, array in one[0].items()}, one[1] + other[1]

    def finish(self, state: Any) -> Tensors:
        return {name: array / np.float32(max(1, state[1])) for name, array in state[0].items()}


class Eager(MeanStrategy):
    """Changes the update that it is given."""

    def add(self, state: Any, update: Update) -> Any:
        update.tensors["head.weight"][...] = 0.0
        return super().add(state, update)


class Drifting(Momentum):
    """Changes the state that it is given."""

    def apply(self, memory: Tensors, old: Tensors, aggregate: Tensors) -> tuple[Tensors, Tensors]:
        old["head.weight"][...] += np.float32(1.0)
        return super().apply(memory, old, aggregate)


def test_faults_are_named() -> None:
    with pytest.raises(AssertionError, match="depends on the order of updates"):
        laws.check_strategy(Floats(), REFERENCE, updates(5, 1))
    with pytest.raises(AssertionError, match="an update was changed"):
        laws.check_strategy(Eager(), REFERENCE, updates(5, 1))
    with pytest.raises(AssertionError, match=r"apply\(\) changes what it is given"):
        laws.check_step(Drifting(), tensors(np.random.default_rng(0)), [REFERENCE])
