"""Noise that is correlated over rounds: the banded square-root factorisation of prefix sums.

What a model is after t rounds is a sum over rounds 1 … t. A = B·C (A: lower triangle of ones) with noise z on C·x gives
B(C·x + z) = A(x + w), C·w = z: each round's sum gets noise w that partly takes back that of the rounds before. C is
lower triangular Toeplitz with the first b coefficients of (1 − x)^(−1/2) (Kalinin & Lampert 2024, arXiv 2405.13763;
BandMF: Choquette-Choo et al. 2023, arXiv 2306.08153).

A site that answers in rounds b apart or more meets columns of C that share no row, so its answers move C·x at right
angles, each by at most |c| × its clip: noise of σ × |c| × clip makes each answer one Gaussian sum of noise σ. As C is
lower triangular, this holds though later answers depend on earlier releases (Denisov et al. 2022, arXiv 2202.08312).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from polyclinic.core.privacy.noise import Floats


def coefficients(bands: int) -> Floats:
    """[bands] first column of C: 1, 1/2, 3/8, 5/16 …"""
    k = np.arange(1, bands)
    found: Floats = np.concatenate([np.ones(1), np.cumprod((2 * k - 1) / (2 * k))])
    return found


def length(bands: int) -> float:
    """|c|: L2 norm of a column of C."""
    return math.sqrt(float(np.square(coefficients(bands)).sum()))


def correlated(fresh: Floats, past: Sequence[np.ndarray], bands: int) -> Floats:
    """w of this round, with C·w = z.

    Args:
        fresh: z of this round.
        past: w of the rounds before, the latest first; those of more than ``bands`` − 1 rounds ago take no part.
    """
    c = coefficients(bands)
    w: Floats = fresh.copy()
    for weight, before in zip(c[1:], past, strict=False):
        w -= weight * before
    return w
