"""Strategies against brute force in rational arithmetic, against Flower, and against their own equations."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyclinic.core.errors import UpdateError
from polyclinic.core.update import Tensors, Update, digest
from polyclinic.strategies.exact import ExactStrategy
from polyclinic.strategies.fixed_point import FixedSum
from polyclinic.strategies.mean import MeanStrategy

LAYER = "backbone.layers.0.q_proj"
A, B = f"{LAYER}.lora_A.default.weight", f"{LAYER}.lora_B.default.weight"


def tensors(rng: np.random.Generator) -> Tensors:
    return {
        A: rng.normal(size=(2, 5)).astype(np.float32),
        B: rng.normal(size=(4, 2)).astype(np.float32),
        "head.weight": rng.normal(size=(1, 4)).astype(np.float32),
    }


def updates(count: int, seed: int) -> list[Update]:
    rng = np.random.default_rng(seed)
    return [Update(f"site{i}", int(rng.integers(1, 1000)), tensors(rng)) for i in range(count)]


def fold(strategy: MeanStrategy | ExactStrategy, reference: Tensors, given_: list[Update]) -> Tensors:
    state = strategy.init(reference)
    for update in given_:
        state = strategy.add(state, update)  # type: ignore[arg-type]
    return strategy.finish(state)  # type: ignore[arg-type]


@given(
    st.lists(
        st.tuples(st.floats(-(2.0**20), 2.0**20, width=32), st.integers(1, 2**20)),
        min_size=1,
        max_size=20,
    )
)
def test_fixed_sum_is_the_rational_mean_rounded(pairs: list[tuple[float, int]]) -> None:
    total = FixedSum.zero(())
    for value, weight in pairs:
        total.add(np.float32(value), weight)
    exact = sum(Fraction(value) * weight for value, weight in pairs) / sum(weight for _, weight in pairs)
    assert abs(Fraction(float(total.mean())) - exact) <= Fraction(1, 2**58) + abs(exact) * Fraction(1, 2**50)


@given(st.floats(-(2.0**20), 2.0**20, width=32), st.lists(st.integers(1, 2**20), min_size=1, max_size=20))
def test_what_all_send_alike_is_its_own_mean_to_the_bit_unless_it_is_below_the_grid(
    value: float, weights: list[int]
) -> None:
    total = FixedSum.zero(())
    for weight in weights:
        total.add(np.float32(value), weight)
    found = float(total.mean().astype(np.float32))
    assert found == value or (abs(value) < 2.0**-35 and abs(found - value) < 2.0**-58)


@pytest.mark.parametrize("strategy", [MeanStrategy(), ExactStrategy()])
def test_any_order_and_any_partial_sums_give_the_same_bits(strategy: MeanStrategy | ExactStrategy) -> None:
    reference = tensors(np.random.default_rng(0))
    sent = updates(9, 1)
    expected = digest(fold(strategy, reference, sent))
    rng = np.random.default_rng(2)
    for _ in range(20):
        order = [sent[i] for i in rng.permutation(9)]
        assert digest(fold(strategy, reference, order)) == expected
        cut = int(rng.integers(0, 10))
        parts = []
        for some in (order[:cut], order[cut:]):
            state = strategy.init(reference)
            for update in some:
                state = strategy.add(state, update)  # type: ignore[arg-type]
            parts.append(state)
        assert digest(strategy.finish(strategy.merge(*parts))) == expected  # type: ignore[arg-type]


def test_mean_equals_flowers_fedavg() -> None:
    from flwr.server.strategy.aggregate import aggregate

    sent = updates(7, 3)
    ours = fold(MeanStrategy(), sent[0].tensors, sent)
    names = sorted(sent[0].tensors)
    theirs = aggregate([([u.tensors[name] for name in names], u.weight) for u in sent])
    for name, array in zip(names, theirs, strict=True):
        np.testing.assert_allclose(ours[name], array, rtol=0, atol=1e-6)


def test_exact_equals_the_average_of_the_products_over_rounds() -> None:
    state: Tensors = tensors(np.random.default_rng(4))
    truth = None
    for round_number in range(3):
        sent = updates(5, 10 + round_number)
        before = state.get(f"{LAYER}.residual", np.zeros((4, 5), np.float32)).astype(np.float64)
        weights = np.array([u.weight for u in sent], np.float64)
        products = np.stack([u.tensors[B].astype(np.float64) @ u.tensors[A].astype(np.float64) for u in sent])
        truth = before + np.tensordot(weights / weights.sum(), products, axes=1)
        state = fold(ExactStrategy(), state, sent)
        whole = state[B].astype(np.float64) @ state[A] + state[f"{LAYER}.residual"]
        np.testing.assert_allclose(whole, truth, rtol=0, atol=1e-6)
        plain = state[B].astype(np.float64) @ state[A]
        assert np.abs(plain + before - truth).max() > 1e-2  # what `mean` alone would have got wrong


def test_exact_wants_no_residual_from_sites_but_takes_it_from_the_global_state() -> None:
    state = fold(ExactStrategy(), tensors(np.random.default_rng(0)), updates(2, 5))
    assert f"{LAYER}.residual" in state
    assert set(ExactStrategy().expects(state).shapes) == {A, B, "head.weight"}


def test_no_update_is_an_error() -> None:
    with pytest.raises(UpdateError, match="no update"):
        fold(MeanStrategy(), tensors(np.random.default_rng(0)), [])
