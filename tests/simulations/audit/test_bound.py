"""The bound against closed forms, published numbers, and mechanisms whose epsilon is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm

from polyclinic.simulations.audit.bound import Guesses, accuracy, best, promise, separation


@pytest.mark.parametrize(("guesses", "epsilon"), [(100, 3.5), (300, 4.6), (1000, 5.8)])
def test_the_ceiling_of_one_run(guesses: int, epsilon: float) -> None:
    found = Guesses(guesses, guesses, guesses).bound(0.0)
    share = 0.05 ** (1 / guesses)  # P[all right] = share^guesses = 0.05
    assert found == pytest.approx(math.log(share / (1 - share)), abs=1e-4)
    assert found == pytest.approx(epsilon, abs=0.05)


def test_the_number_that_the_paper_prints() -> None:
    assert Guesses(1000, 100, 75).bound(1e-4) == pytest.approx(0.673, abs=5e-4)  # appendix D


def test_randomised_response_is_what_the_bound_without_delta_is_exact_for() -> None:
    rng, epsilon, count = np.random.default_rng(0), 1.2, 60
    share = 1 / (1 + math.exp(-epsilon))
    right = (rng.random((200_000, count)) < share).sum(axis=1)
    for least in (40, 46, 52):
        assert Guesses(count, count, least).p_value(epsilon, 0.0) == pytest.approx((right >= least).mean(), abs=4e-3)


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 200), st.floats(0.05, 4.0), st.floats(1e-6, 0.02), st.floats(0.0, 1.0))
def test_no_mechanism_that_keeps_its_promise_does_better(count: int, epsilon: float, delta: float, at: float) -> None:
    right, share = round(at * count), 1 / (1 + math.exp(-epsilon))
    allowed = Guesses(count, count, right).p_value(epsilon, delta)
    each_by_itself = binom.sf(right - 1, count, delta + (1 - delta) * share)  # each coin is told with chance delta
    all_at_once = delta + (1 - delta) * binom.sf(right - 1, count, share)  # all are, with chance delta
    assert allowed >= min(1.0, max(each_by_itself, all_at_once)) - 1e-9


@pytest.mark.parametrize("epsilon", [0.3, 1.0, 3.0])
def test_a_true_claim_is_exceeded_in_one_run_of_twenty_at_most(epsilon: float) -> None:
    share = 1 / (1 + math.exp(-epsilon))
    exceeding = [v for v in range(201) if Guesses(200, 200, v).bound(0.0) > epsilon]
    assert 0.02 < sum(binom.pmf(exceeding, 200, share)) <= 0.05


@given(st.integers(1, 300), st.floats(0.0, 1.0), st.floats(0.0, 1e-3))
@settings(max_examples=40, deadline=None)
def test_the_bound_grows_with_right_guesses_and_shrinks_with_delta(made: int, at: float, delta: float) -> None:
    right = round(at * made)
    found = Guesses(300, made, right).bound(delta)
    assert found <= Guesses(300, made, min(made, right + 1)).bound(delta) + 1e-5
    assert found <= Guesses(300, made, right).bound(0.0) + 1e-5
    if found:
        assert Guesses(300, made, right).p_value(found, delta) == pytest.approx(0.05, abs=1e-3)


@pytest.mark.parametrize(("noise", "rate", "steps"), [(1.0, 1.0, 1), (0.5, 0.3, 8)])
def test_scores_are_as_far_apart_and_guesses_as_right_as_they_come(noise: float, rate: float, steps: int) -> None:
    rng, count, apart = np.random.default_rng(1), 200_000, separation(noise, rate, steps)
    inside = rng.random(count) < 0.5
    scores = inside * rng.binomial(steps, rate, count) + noise * math.sqrt(steps) * rng.normal(size=count)
    gap = scores[inside].mean() - scores[~inside].mean()
    assert gap / scores[inside].std() == pytest.approx(apart, rel=0.02)
    plain = np.where(inside, apart / 2, -apart / 2) + rng.normal(size=count)
    for share in (0.1, 0.5, 1.0):
        cut = np.quantile(np.abs(plain), 1 - share)
        out = np.abs(plain) >= cut
        assert accuracy(apart, share) == pytest.approx(((plain > 0) == inside)[out].mean(), abs=5e-3)
    assert accuracy(apart, 1.0) == pytest.approx(norm.cdf(apart / 2))


def test_how_many_guesses_are_made_is_settled_by_what_they_promise() -> None:
    for apart in (0.5, 2.0, 4.0):
        chosen = best(400, apart, 1e-5)
        assert chosen % 2 == 0
        assert promise(400, chosen, apart, 1e-5, 0.1) >= promise(400, 400, apart, 1e-5, 0.1)
    assert best(400, 6.0, 1e-5) > best(400, 1.0, 1e-5)
