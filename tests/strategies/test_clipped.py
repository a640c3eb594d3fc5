"""The clipped sum: what one site can change of it, whatever it sends; and the laws of a fold."""

from __future__ import annotations

from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from polyclinic.core.errors import UpdateError
from polyclinic.core.update import LARGEST, Tensors, Update
from polyclinic.strategies.clipped import COUNT, ClippedSum

SHAPES = {"a": (3, 2), "b": (4,), "c": ()}
NUMBERS = st.floats(-LARGEST, LARGEST, width=32)
STATES = st.fixed_dictionaries({name: arrays(np.float32, shape, elements=NUMBERS) for name, shape in SHAPES.items()})
CLIPS = st.floats(1e-6, 1e4)


def folded(clip: float, reference: Tensors, updates: list[Tensors]) -> Tensors:
    strategy = ClippedSum(clip)
    state = strategy.init(reference)
    for i, tensors in enumerate(updates):
        state = strategy.add(state, Update(f"s{i}", 1 + i, tensors))
    return strategy.finish(state)


def apart(one: Tensors, other: Tensors) -> float:
    return float(np.sqrt(sum(np.square(one[name] - other[name]).sum() for name in SHAPES)))


@given(CLIPS, STATES, st.lists(STATES, min_size=1, max_size=4))
@settings(deadline=None, max_examples=300)
def test_leaving_one_site_out_changes_the_sum_by_at_most_the_clip_and_the_count_by_a_half(
    clip: float, reference: Tensors, updates: list[Tensors]
) -> None:
    whole = folded(clip, reference, updates)
    for out in range(len(updates)):
        without = folded(clip, reference, updates[:out] + updates[out + 1 :])
        assert apart(whole, without) <= clip
        assert abs(float(whole[COUNT][0] - without[COUNT][0])) == 0.5


@given(CLIPS, STATES, st.lists(STATES, max_size=3))
@settings(deadline=None)
def test_it_is_the_sum_of_shortened_changes_worked_out_by_hand(
    clip: float, reference: Tensors, updates: list[Tensors]
) -> None:
    by_hand = {name: np.zeros(shape) for name, shape in SHAPES.items()}
    for tensors in updates:
        change = np.concatenate([(tensors[n].astype(float) - reference[n].astype(float)).ravel() for n in SHAPES])
        norm = np.linalg.norm(change)
        shortened = change * (min(1.0, clip / norm) if norm else 1.0)
        for name, piece in zip(SHAPES, np.split(shortened, [6, 10]), strict=True):
            by_hand[name] += piece.reshape(SHAPES[name])
    assert apart(folded(clip, reference, updates), by_hand) <= clip * len(updates) * 2e-6


def test_order_and_grouping_change_no_bit_and_weights_do_not_count() -> None:
    rng, strategy = np.random.default_rng(0), ClippedSum(1.0)
    reference = {name: rng.normal(size=shape).astype(np.float32) for name, shape in SHAPES.items()}
    updates = [
        Update(str(i), i + 1, {n: (rng.normal(size=s) * 10**i).astype(np.float32) for n, s in SHAPES.items()})
        for i in range(-2, 2)
    ]
    results = []
    for order in permutations(updates):
        one, other = strategy.init(reference), strategy.init(reference)
        for update in order[:2]:
            one = strategy.add(one, update)
        for update in order[2:]:
            other = strategy.add(other, Update(update.site, 1, update.tensors))
        results.append(strategy.finish(strategy.merge(one, other)))
    assert all(np.array_equal(a[name], b[name]) for a, b in pairwise(results) for name in a)


def test_nobody_adds_nothing_and_what_is_not_finite_is_refused_before_anything_is_added() -> None:
    reference = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
    strategy = ClippedSum(1.0)
    state = strategy.init(reference)
    for bad in (np.nan, np.inf):
        with pytest.raises(UpdateError, match="no finite length"):
            strategy.add(state, Update("x", 1, reference | {"b": np.full(4, bad, np.float32)}))
    assert all(not array.any() for array in strategy.finish(state).values())
