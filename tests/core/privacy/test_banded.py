"""Banded noise: against dense matrices, by brute force over who answers when, and what it is worth."""

from __future__ import annotations

import math
from itertools import product

import numpy as np
import pytest
from scipy.linalg import toeplitz
from scipy.special import binom

from polyclinic.core.privacy import accounting
from polyclinic.core.privacy.banded import coefficients, correlated, length
from polyclinic.core.privacy.central import Central


def dense(rounds: int, bands: int) -> np.ndarray:
    """C, written out."""
    column = np.zeros(rounds)
    column[: min(bands, rounds)] = coefficients(bands)[:rounds]
    return np.tril(toeplitz(column))


def test_the_coefficients_are_those_of_one_over_the_root_of_one_minus_x() -> None:
    assert coefficients(5) == pytest.approx([(-1) ** k * binom(-0.5, k) for k in range(5)])
    whole = dense(40, 40)
    assert whole @ whole == pytest.approx(np.tril(np.ones((40, 40))))  # unbanded it is the root of prefix sums


@pytest.mark.parametrize("bands", [1, 2, 5])
def test_noise_solves_the_matrix(bands: int) -> None:
    rng, rounds = np.random.default_rng(0), 12
    z = rng.normal(size=(rounds, 3))
    w: list[np.ndarray] = []
    for fresh in z:
        w.append(correlated(fresh, w[::-1], bands))
    assert dense(rounds, bands) @ np.array(w) == pytest.approx(z)


@pytest.mark.parametrize(("rounds", "bands"), [(7, 2), (8, 3), (9, 4)])
def test_no_site_moves_the_encoded_sums_further_than_its_answers_are_charged(rounds: int, bands: int) -> None:
    """Over every way of answering in one's turn, with changes at whatever angle to one another."""
    gram = dense(rounds, bands).T @ dense(rounds, bands)
    for turn, answers in product(range(bands), product((0, 1), repeat=rounds)):
        times = [t for t in range(rounds) if answers[t] and t % bands == turn]
        if len(times) == sum(answers):
            # changes u_t of norm 1: |C u|² = Σ G_st u_s·u_t, at most Σ |G_st|
            worst = np.abs(gram[np.ix_(times, times)]).sum()
            assert worst <= len(times) * length(bands) ** 2 * (1 + 1e-12)


def error(rounds: int, bands: int, epsilon: float, delta: float) -> float:
    """Root mean square, over rounds, of the noise on a prefix sum of clipped changes."""
    noise = accounting.noise_for(epsilon, delta, 1.0, math.ceil(rounds / bands))
    summed = np.tril(np.ones((rounds, rounds))) @ np.linalg.inv(dense(rounds, bands))
    return noise * length(bands) * float(np.sqrt(np.square(summed).sum() / rounds))


@pytest.mark.parametrize("bands", [4, 8])
def test_the_error_is_the_closed_form_and_below_that_of_plain_noise_at_the_same_epsilon(bands: int) -> None:
    rounds, times = 32, 4000
    terms = Central(sites=100, epsilon=4.0, mechanism="banded", bands=bands)
    deviation = terms.multiplier(rounds) * length(bands)
    rng = np.random.default_rng(1)
    past: list[np.ndarray] = []
    for _ in range(rounds):
        past.insert(0, correlated(deviation * rng.normal(size=times), past, bands))
    prefix = np.cumsum(past[::-1], axis=0)
    expected = error(rounds, bands, 4.0, terms.delta)
    # 4000 independent runs: the mean square is known to 1 / √(2·4000) at worst, where all rounds say the same
    assert math.sqrt(np.square(prefix).mean()) == pytest.approx(expected, rel=6 / math.sqrt(2 * times))
    # the same groups in turn, each answer with noise of its own
    plain = accounting.noise_for(4.0, terms.delta, 1.0, math.ceil(rounds / bands)) * math.sqrt((rounds + 1) / 2)
    assert expected < plain
