"""Coverage of the 95 % intervals by simulation, and closed forms where there are any."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest
from scipy import stats

from polyclinic.core.statistics import intervals


@pytest.fixture
def rng():
    return np.random.default_rng(11)


@pytest.mark.parametrize(("hits", "n"), [(0, 1), (0, 10), (3, 10), (10, 10), (250, 400)])
def test_wilson_is_scipys(hits, n):
    expected = stats.binomtest(hits, n).proportion_ci(0.95, method="wilson")
    assert intervals.wilson(hits / n, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_nobody_tells_nothing():
    assert intervals.wilson(0.0, 0) == intervals.area(0.5, 0, 3) == (0.0, 1.0)
    one = np.ones(1)
    assert intervals.mean(1.0, 1.0, 1, 1, 2.0) is None
    assert intervals.calibration(one, one, one, 1, np.random.default_rng(0)) is None
    assert intervals.calibration(0 * one, 0 * one, 0 * one, 5, np.random.default_rng(0)) is None


@pytest.mark.parametrize("auroc", [0.0, 0.3, 0.5, 0.9, 1.0])
@pytest.mark.parametrize(("m", "n"), [(1, 1), (5, 40), (300, 300)])
def test_area_limits_solve_the_score_equation(auroc, m, n):
    low, high = intervals.area(auroc, m, n)
    assert 0 <= low <= auroc <= high <= 1
    for limit in (low, high):
        if limit in (0.0, 1.0):
            continue
        q1, q2 = limit / (2 - limit), 2 * limit**2 / (1 + limit)
        star = (m + n) / 2 - 1
        variance = (limit * (1 - limit) + star * (q1 - limit**2) + star * (q2 - limit**2)) / (m * n)
        assert abs(limit - auroc) == pytest.approx(stats.norm.ppf(0.975) * sqrt(variance), rel=1e-6)
    mirrored = intervals.area(1 - auroc, n, m)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-9)


@pytest.mark.parametrize("truth", [0.6, 0.8, 0.95])
def test_area_intervals_cover(rng, truth):
    shift = stats.norm.ppf(truth) * sqrt(2)
    covered = 0
    for _ in range(400):
        positives, negatives = rng.normal(size=30) + shift, rng.normal(size=30)
        low, high = intervals.area(float((positives[:, None] > negatives).mean()), 30, 30)
        covered += low <= truth <= high
    assert 0.92 <= covered / 400 <= 0.99


def test_averages_of_shares_cover(rng):
    a, b = rng.binomial(30, 0.9, 2000) / 30, rng.binomial(50, 0.6, 2000) / 50
    covered = 0
    for x, y in zip(a.tolist(), b.tolist(), strict=True):
        low, high = intervals.average([x, y], [intervals.wilson(x, 30), intervals.wilson(y, 50)])
        covered += low <= 0.75 <= high
    assert 0.93 <= covered / 2000 <= 0.98


def test_dependent_averages_are_wider():
    limits = [intervals.wilson(0.9, 30), intervals.wilson(0.6, 50)]
    inner, outer = intervals.average([0.9, 0.6], limits), intervals.average_dependent(limits)
    assert outer[0] < inner[0] < inner[1] < outer[1]


def test_a_mean_has_students_interval(rng):
    x = rng.exponential(size=40)
    expected = stats.t.interval(0.95, 39, loc=x.mean(), scale=stats.sem(x))
    assert intervals.mean(x.sum(), (x**2).sum(), 40, 40, 100.0) == pytest.approx(expected)
    low, high = intervals.mean(x.sum(), (x**2).sum(), 40, 10, 100.0)
    assert low < expected[0] < expected[1] < high
    assert intervals.mean(2.0, 2.0, 2, 2, 1.0) == (1.0, 1.0)


@pytest.mark.parametrize("n", [50, 400])
@pytest.mark.parametrize("tilt", [0.0, 0.15, 0.4])
def test_calibration_intervals_cover(rng, n, tilt):
    confidence = rng.beta(2, 2, 50_000)
    chance = np.clip(confidence + tilt * np.sin(4 * confidence), 0, 1)
    where = (confidence * 15).astype(int)
    truth = np.abs(np.bincount(where, confidence - chance)).sum() / len(where)
    covered = 0
    for _ in range(100):
        i = rng.integers(0, len(where), n)
        hits = (rng.random(n) < chance[i]).astype(float)
        columns = [np.bincount(where[i], weights, 15) for weights in (np.ones(n), confidence[i], hits)]
        low, high = intervals.calibration(*columns, n, rng)
        covered += low <= truth <= high
    assert covered >= 90


def test_calibration_intervals_depend_on_the_generator_alone():
    columns = np.array([10.0, 20.0]), np.array([3.0, 16.0]), np.array([4.0, 12.0])
    first, again = (intervals.calibration(*columns, 30, np.random.default_rng(5)) for _ in range(2))
    assert first == again
