"""95 % confidence intervals that count patients, not images.

That is conservative where patients have several images each, as long as no few of them have most of the images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt
from typing import TypeAlias

import numpy as np

from polyclinic.core.statistics.monoid import Floats

Interval: TypeAlias = tuple[float, float]

Z = 1.959963984540054
"""97.5 % quantile of the standard normal distribution."""
DRAWS = 1000
"""Bootstrap replicates."""


def wilson(share: float, n: float) -> Interval:
    """Score interval of a proportion seen as ``share`` among ``n`` patients (Wilson 1927, JASA 22:209-212)."""
    if n <= 0:
        return 0.0, 1.0
    centre, spread = share + Z**2 / (2 * n), Z * sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    low, high = (centre - spread) / (1 + Z**2 / n), (centre + spread) / (1 + Z**2 / n)
    return min(share, max(0.0, low)), max(share, min(1.0, high))


def area(auroc: float, m: int, n: int) -> Interval:
    """Score interval of an area under the ROC curve seen among ``m`` patients with and ``n`` without the finding.

    Newcombe 2006 (Stat Med 25:559-573), method 5: all θ with |θ - auroc| <= z sqrt(V(θ)), where V is the variance of
    Hanley and McNeil (1982) with both m - 1 and n - 1 replaced by N* = (m + n)/2 - 1. It has width even at 0 and 1.
    """
    if m < 1 or n < 1:
        return 0.0, 1.0
    star = (m + n) / 2 - 1

    def outside(theta: float) -> bool:
        inflation = 1 + star * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return (theta - auroc) ** 2 > Z**2 * theta * (1 - theta) * inflation / (m * n)

    return _edge(outside, 0.0, auroc), _edge(outside, 1.0, auroc)


def _edge(outside: Callable[[float], bool], far: float, near: float) -> float:
    """Where, between ``far`` (outside) and ``near`` (inside), the interval ends; by bisection."""
    if far == near:
        return near
    for _ in range(60):
        middle = (far + near) / 2
        far, near = (middle, near) if outside(middle) else (far, middle)
    return near


def mean(total: float, total_squared: float, images: int, patients: int, most: float) -> Interval | None:
    """Student's t interval of a mean loss in [0, ``most``] from its sums over images; None for a single patient."""
    if patients < 2:
        return None
    from scipy.special import stdtrit

    centre = total / images
    variance = max(0.0, total_squared / images - centre**2) * images / (images - 1)
    half = float(stdtrit(patients - 1, 0.975)) * sqrt(variance / patients)
    return max(0.0, centre - half), min(max(most, centre), centre + half)


def average(values: Sequence[float], intervals: Sequence[Interval]) -> Interval:
    """Interval of the mean of independent figures: MOVER (Zou & Donner 2008, Stat Med 27:1693-1702)."""
    value, k = sum(values) / len(values), len(values)
    low = value - sqrt(sum((v - low) ** 2 for v, (low, _) in zip(values, intervals, strict=True))) / k
    high = value + sqrt(sum((high - v) ** 2 for v, (_, high) in zip(values, intervals, strict=True))) / k
    return low, high


def average_dependent(intervals: Sequence[Interval]) -> Interval:
    """Interval of the mean of figures that may depend on each other: the mean of limits, as if fully correlated."""
    return sum(low for low, _ in intervals) / len(intervals), sum(high for _, high in intervals) / len(intervals)


def calibration(
    count: Floats, confidence: Floats, correct: Floats, patients: int, rng: np.random.Generator
) -> Interval | None:
    """Bootstrap interval of an expected calibration error from its bins; None for a single patient.

    Each replicate draws multinomial counts of ``patients`` over the bins and binomial outcomes in each, at the bin's
    frequency (drawn towards its mean confidence by one observation, lest 0 and 1 look certain); a bin's mean
    confidence stays. By the triangle inequality the observed error exceeds the true one by at most the noise
    Σ |hits - expected hits|, whose 97.5 % quantile (the greater of those under these frequencies and under perfect
    calibration, since the observed ones vary too little in small bins) gives the lower limit.
    The upper limit is that quantile of the replicates' errors, less their mean excess over the observed one.

    Args:
        count, confidence, correct: [B] weight, Σ confidence, Σ correct of each bin.
        patients: how many count.
        rng: draws the replicates.
    """
    held = count > 0
    count, confidence, correct = count[held], confidence[held], correct[held]
    if patients < 2 or not held.any():
        return None
    share, trust = count / count.sum(), confidence / count
    frequency = np.clip((correct + trust) / (count + 1), 0.0, 1.0)
    observed = float(np.abs(confidence - correct).sum() / count.sum())
    drawn = rng.multinomial(patients, share, size=DRAWS)
    hits, calm = rng.binomial(drawn, frequency), rng.binomial(drawn, np.clip(trust, 0.0, 1.0))
    distances = (drawn * frequency - hits, drawn * trust - calm, drawn * trust - hits)
    noise, quiet, again = (np.abs(distance).sum(axis=1) / patients for distance in distances)
    excess = max(0.0, float(again.mean()) - observed)
    most = max(float(np.quantile(noise, 0.975)), float(np.quantile(quiet, 0.975)))
    return max(0.0, observed - most), float(np.quantile(again, 0.975)) - excess
