"""Means of random Fourier features, and the kernel two-sample test that follows from them."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from typing import ClassVar, Self

import numpy as np

from polyclinic.core.statistics.features import check_triangle, covariance, demand_finite, triangle_sum
from polyclinic.core.statistics.monoid import Floats, Ints, Sums, demand, fixed

UNIT = 28
SECOND_UNIT = 20
"""Products are rounded to 2^-20: they serve the p-value only."""
BANDWIDTHS = (0.25, 0.5, 1.0, 2.0)
"""Of the Gaussian kernels whose mean is taken; standardised features lie between 0 and 2 apart, so no data is asked."""


@dataclass(frozen=True, eq=False)
class KernelMeans(Sums):
    """Sums of random Fourier features z of length 1 (Rahimi & Recht 2007), one row a patient.

    Entries are within ±1, so that sums of 2^34 stay within 2^62 units.

    Attributes:
        patients: n, the rows.
        seed: from which the features were drawn.
        first: [D] Σ z, in units of 2^-28.
        second: [D (D + 1) / 2] upper triangle of Σ z zᵀ, row by row, in units of 2^-20.
    """

    name: ClassVar[str] = "kernel"
    settings: ClassVar[tuple[str, ...]] = ("seed",)

    seed: int
    first: Ints
    second: Ints

    @classmethod
    def of(cls, rows: Floats, features: int, seed: int) -> Self:
        """Sums over ``rows`` [n, k], standardised and projected, of ``features`` (even) features drawn from ``seed``.

        Raises:
            DataError: rows are not finite.
        """
        demand_finite(rows)
        z = fourier(rows, features, seed)
        return cls(len(rows), seed, fixed(z, UNIT).sum(axis=0), triangle_sum(z, SECOND_UNIT))

    def check(self) -> None:
        """Raises UpdateError naming the field that cannot be."""
        super().check()
        demand(0 <= self.seed < 2**63, "seed", "is no seed")
        demand(self.first.ndim == 1 and len(self.first) > 0, "first", "has another shape")
        check_triangle(self.patients, self.first, self.second, 1.0, UNIT, SECOND_UNIT)

    def total(self) -> Floats:
        """[D] Σ z."""
        return np.asarray(self.first / 2.0**UNIT)


def fourier(rows: Floats, features: int, seed: int) -> Floats:
    """[n, features] cosines and sines of random frequencies, each row of length 1: z·z' is nearly the mean kernel."""
    angles = rows @ frequencies(rows.shape[1], features, seed).T
    return np.concatenate([np.cos(angles), np.sin(angles)], axis=1) / sqrt(features // 2)


def frequencies(width: int, features: int, seed: int) -> Floats:
    """[features / 2, width] random frequencies of the Gaussian kernels, bandwidths in turn."""
    half = features // 2
    widths = np.resize(BANDWIDTHS, half)[:, None]
    return np.asarray(np.random.Generator(np.random.PCG64(seed)).standard_normal((half, width)) / widths)


def discrepancy(a: KernelMeans, b: KernelMeans) -> float | None:
    """The unbiased squared maximum mean discrepancy of ``mmd2``, without its p-value, which costs a spectrum."""
    n, m, s_a, s_b = a.patients, b.patients, a.total(), b.total()
    demand(a.seed == b.seed and len(s_a) == len(s_b), "seed", "has another configuration in the statistic to compare")
    if min(n, m) < 2:
        return None
    within = (s_a @ s_a - n) / (n * (n - 1)) + (s_b @ s_b - m) / (m * (m - 1))
    return float(within - 2 * (s_a @ s_b) / (n * m))


def mmd2(a: KernelMeans, b: KernelMeans) -> tuple[float | None, float | None]:
    """(unbiased squared maximum mean discrepancy, its p-value); (None, None) for fewer than two rows on either side.

    Gretton et al. 2012 (JMLR 13:723-773), equation 3; since |z| = 1 it follows exactly from the sums, and may be
    negative. Where there is no shift it is a sum of λ_i (χ²_1 - 1), λ the eigenvalues of the covariance of z; its
    tail is that of the Pearson type III law with the same variance and skewness (Hall 1983, Buckley & Eagleson 1988).
    """
    n, m, value = a.patients, b.patients, discrepancy(a, b)
    if value is None:
        return None, None
    spectrum = _spectrum(a + b)
    variance = 2 * float((spectrum**2).sum()) * (1 / (n * (n - 1)) + 1 / (m * (m - 1)) + 2 / (n * m))
    if variance < 1e-18:
        return value, 1.0
    skewness = sqrt(8) * float((spectrum**3).sum()) / float((spectrum**2).sum()) ** 1.5
    return value, _tail(value / sqrt(variance), skewness)


def _spectrum(both: KernelMeans) -> Floats:
    """[D] eigenvalues of the covariance of z, drawn towards their mean until their squares add up without bias.

    Sample eigenvalues spread too far: their squares add up to about (tr C)²/n too much. Himeno & Yamada 2014
    (J Multivar Anal 130:27-38) give an unbiased sum, from fourth moments that |z| = 1 turns into second ones.
    """
    n, total = both.patients, both.total()
    c = covariance(n, total, both.second / 2.0**SECOND_UNIT)
    values: Floats = np.maximum(np.linalg.eigvalsh(c), 0.0)
    mean, trace, squares = total / n, float(values.sum()), float((values**2).sum())
    # |z - m|² = 1 - |m|² - 2 m·(z - m)
    fourth = n / (n - 1) * (1 - mean @ mean) ** 2 + 4 * mean @ c @ mean
    unbiased = (n - 1) / (n * (n - 2) * (n - 3)) * ((n - 1) * (n - 2) * squares + trace**2 - n * fourth)
    centre, flat = trace / len(values), trace**2 / len(values)
    if squares <= flat:
        return values
    spread = sqrt(np.clip((unbiased - flat) / (squares - flat), 0.0, 1.0))
    return np.asarray(centre + spread * (values - centre))


def _tail(x: float, skewness: float) -> float:
    """Chance that a Pearson type III variable of mean 0, variance 1 and positive ``skewness`` exceeds ``x``."""
    from scipy.special import gammaincc

    shape = 4 / skewness**2
    return float(gammaincc(shape, max(0.0, shape + x * sqrt(shape))))
