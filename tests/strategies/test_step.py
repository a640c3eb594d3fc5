"""Server steps against the equations of Reddi et al. 2021, written out scalar by scalar."""

from __future__ import annotations

import math

import numpy as np
import pytest

from polyclinic.core.update import Tensors
from polyclinic.strategies.step import Adagrad, Adam, Momentum, Sgd, Yogi

Step = Sgd | Momentum | Adam | Yogi | Adagrad


def scalar(step: Step, starts: float, targets: list[float]) -> list[float]:
    """x after each round, in plain Python floats."""
    x, m, v, path = starts, 0.0, getattr(step, "tau", 0.0) ** 2, []
    for target in targets:
        delta = target - x
        if isinstance(step, Sgd):
            x += step.learning_rate * delta
        elif isinstance(step, Momentum):
            m = step.momentum * m + delta
            x += step.learning_rate * m
        else:
            m = step.beta1 * m + (1 - step.beta1) * delta
            if isinstance(step, Adagrad):
                v = v + delta**2
            elif isinstance(step, Adam):
                v = step.beta2 * v + (1 - step.beta2) * delta**2
            else:
                v = v - (1 - step.beta2) * delta**2 * math.copysign(1.0, v - delta**2)
            x += step.learning_rate * m / (math.sqrt(v) + step.tau)
        path.append(x)
    return path


@pytest.mark.parametrize(
    "step", [Sgd(learning_rate=0.3), Sgd(), Momentum(learning_rate=0.5), Adam(), Yogi(), Adagrad(beta1=0.2)], ids=repr
)
def test_follows_its_equation(step: Step) -> None:
    rng = np.random.default_rng(0)
    targets = rng.normal(size=(6, 3))
    old: Tensors = {"w": rng.normal(size=3).astype(np.float32)}
    truth = [scalar(step, float(old["w"][i]), [float(t) for t in targets[:, i].astype(np.float32)]) for i in range(3)]
    memory = step.start(old)
    for number, target in enumerate(targets):
        memory, old = step.apply(memory, old, {"w": target.astype(np.float32)})
        np.testing.assert_allclose(old["w"], [path[number] for path in truth], rtol=2e-6, atol=1e-6)
        assert old["w"].dtype == np.float32
        assert all(array.dtype == np.float32 for array in memory.values())


def test_plain_sgd_takes_the_aggregate_to_the_bit() -> None:
    aggregate = {"w": np.array([0.1, 1e-30, 7.0], np.float32)}
    assert Sgd().apply({}, {"w": np.zeros(3, np.float32)}, aggregate)[1]["w"].tobytes() == aggregate["w"].tobytes()
