"""Moments of a frozen backbone's features, and the Fréchet distance between two sites' features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from polyclinic.core.errors import DataError
from polyclinic.core.statistics.monoid import Floats, Ints, Sums, demand, fixed

UNIT = 24
"""Sums are in units of 2^-24: rounding moves a mean by at most 2^-25 = 3e-8."""
CUT = 4.0
"""Coordinates are cut off at ±4, where those of standardised and projected features are about 0.2."""


def standardise(features: Floats) -> Floats:
    """[N, d] each row less its mean and brought to length 1: layer normalisation over √d, of no data but its own."""
    centred = features - features.mean(axis=1, keepdims=True)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.asarray(np.divide(centred, length, out=np.zeros_like(centred), where=length > 0))


def projection(d: int, k: int, seed: int) -> Floats:
    """[d, min(k, d)] random orthogonal columns of length √(d/k), so that lengths are kept on average."""
    k = min(k, d)
    q, r = np.linalg.qr(np.random.Generator(np.random.PCG64(seed)).standard_normal((d, k)))
    return np.asarray(q * np.sign(np.diag(r)) * np.sqrt(d / k))


@dataclass(frozen=True, eq=False)
class FeatureMoments(Sums):
    """First and second moments of features, one row a patient.

    Sums of at most 2^34 numbers below 2^4 stay within 2^62 units of 2^-24.

    Attributes:
        patients: n, the rows.
        first: [k] Σ x.
        second: [k (k + 1) / 2] upper triangle of Σ x xᵀ, row by row.
    """

    name: ClassVar[str] = "features"

    first: Ints
    second: Ints

    @classmethod
    def of(cls, rows: Floats) -> Self:
        """Moments of ``rows`` [n, k], standardised and projected. Raises DataError if they are not finite."""
        demand_finite(rows)
        cut = np.clip(rows, -CUT, CUT)
        return cls(len(rows), fixed(cut, UNIT).sum(axis=0), triangle_sum(cut, UNIT))

    def check(self) -> None:
        """Raises UpdateError naming the field that cannot be."""
        super().check()
        demand(self.first.ndim == 1 and len(self.first) > 0, "first", "has another shape")
        check_triangle(self.patients, self.first, self.second, CUT, UNIT, UNIT)

    def mean(self) -> Floats:
        """[k] mean row."""
        return np.asarray(self.first / 2.0**UNIT / self.patients)

    def covariance(self) -> Floats:
        """[k, k] unbiased covariance of at least two rows."""
        return covariance(self.patients, self.first / 2.0**UNIT, self.second / 2.0**UNIT)


def frechet(a: FeatureMoments, b: FeatureMoments) -> float | None:
    """Squared Fréchet distance between Gaussians of the moments of ``a`` and ``b``, less its bias from few rows.

    |m_a - m_b|² + tr(C_a + C_b - 2 (C_a^½ C_b C_a^½)^½) (Dowson & Landau 1982, J Multivar Anal 12:450-455). Of the
    first term tr C_a / n_a + tr C_b / n_b is taken off, which leaves it unbiased; of the second ``_noise``, which
    leaves nearly nothing where there is no shift. Hence it may be slightly negative. In units of squared length of
    standardised features, whose own is 1.

    Returns None where ``_noise`` is no small correction: k' (1/n_a + 1/n_b) > 0.7, k' the number of directions in
    which features really spread, (tr C)² / tr C². In simulation what remains up to there is within one standard
    deviation of the distance between samples of one Gaussian.
    """
    if min(a.patients, b.patients) < 2:
        return None
    c_a, c_b = a.covariance(), b.covariance()
    pooled = ((a.patients - 1) * c_a + (b.patients - 1) * c_b) / (a.patients + b.patients - 2)
    noise = _noise(pooled, a.patients, b.patients)
    apart = float(((a.mean() - b.mean()) ** 2).sum()) - np.trace(c_a) / a.patients - np.trace(c_b) / b.patients
    return None if noise is None else float(apart + bures(c_a, c_b) - noise)


def bures(c_a: Floats, c_b: Floats) -> float:
    """tr(A + B - 2 (A^½ B A^½)^½) of two covariances [k, k]."""
    values, vectors = np.linalg.eigh(c_a)
    root = vectors * np.sqrt(np.maximum(values, 0.0)) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ c_b @ root), 0.0)).sum()
    return float(np.trace(c_a) + np.trace(c_b) - 2 * cross)


def _noise(c: Floats, n_a: int, n_b: int) -> float | None:
    """What ``bures`` comes to on average between samples of one Gaussian of covariance ``c``; None if not small.

    Near A = B it is ½ Σ_ij E_ij² / (λ_i + λ_j) with E = A - B in the eigenbasis of the truth, where the mean of
    E_ij² is λ_i λ_j (1 + δ_ij) (1/n_a + 1/n_b). The next term of the expansion adds the share y/8,
    y = k' (1/n_a + 1/n_b), as the third and fourth moments of the Marchenko-Pastur law of that y give it.
    """
    values = np.maximum(np.linalg.eigvalsh(c), 1e-12)
    y = values.sum() ** 2 / (values**2).sum() * (1 / n_a + 1 / n_b)
    pairs = np.outer(values, values) / np.add.outer(values, values)
    first = 0.5 * (pairs.sum() + np.trace(pairs)) * (1 / (n_a - 1) + 1 / (n_b - 1))
    return float(first * (1 + y / 8)) if y <= 0.7 else None


def demand_finite(rows: Floats) -> None:
    """Raises DataError unless ``rows`` [n, k] are finite."""
    if rows.ndim != 2 or not np.isfinite(rows).all():
        raise DataError("features are not finite numbers [N, d]", where="features")


def triangle_sum(rows: Floats, unit: int) -> Ints:
    """[k (k + 1) / 2] upper triangle of Σ x xᵀ over rows [n, k], each product rounded to 2^-``unit``."""
    i, j = np.triu_indices(rows.shape[1])
    total = np.zeros(len(i), dtype=np.int64)
    step = max(1, 2**18 // max(1, len(i)))  # a few megabytes at a time
    for start in range(0, len(rows), step):
        some = rows[start : start + step]
        total += fixed(some[:, i] * some[:, j], unit).sum(axis=0)
    return total


def check_triangle(n: int, first: Ints, second: Ints, cut: float, unit: int, unit_second: int) -> None:
    """Raises UpdateError unless ``first`` and ``second`` can be moments of n rows of numbers within ±``cut``."""
    k = len(first)
    demand(second.shape == (k * (k + 1) // 2,), "second", "has another shape")
    demand(bool((np.abs(first) <= n * int(cut * 2**unit)).all()), "first", "is beyond bounds")
    demand(bool((np.abs(second) <= n * int(cut**2 * 2**unit_second)).all()), "second", "is beyond bounds")
    if n == 0:
        return
    rows, columns = np.triu_indices(k)
    mean_square = second[rows == columns] / 2.0**unit_second / n
    least = (first / 2.0**unit / n) ** 2 - 2 * cut * 2.0**-unit_second
    demand(bool((mean_square >= least).all()), "second", "is less than the first moment allows")


def covariance(n: int, first: Floats, second: Floats) -> Floats:
    """[k, k] unbiased covariance from n, Σ x and the upper triangle of Σ x xᵀ."""
    full = np.zeros((len(first), len(first)))
    full[np.triu_indices(len(first))] = second
    full = full + np.triu(full, 1).T
    return np.asarray((full - np.outer(first, first) / n) / (n - 1))
