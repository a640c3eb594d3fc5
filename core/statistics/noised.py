"""Statistics that leave a private study: sums of one vector a unit, no longer than 1, with Gaussian noise.

A unit (a patient or, where a study protects those, an image) changes such a sum by at most 1 in Euclidean length, so
that noise of standard deviation s is a Gaussian mechanism of noise multiplier s. Sums of noised sums are noised sums.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from math import sqrt
from typing import ClassVar, Self

import numpy as np

from polyclinic.core.statistics.figures import Figure, missing, within
from polyclinic.core.statistics.intervals import Interval, Z, wilson
from polyclinic.core.statistics.monoid import LIMIT, Floats, Ints, Sums, demand

UNIT = 20
"""Cells and variances are in units of 2^-20: noise is a thousand times as large."""
FURTHEST = 64
"""Standard deviations of noise beyond which no cell is believed."""


@dataclass(frozen=True, eq=False)
class Noised(Sums):
    """Base of what is told under privacy.

    Attributes:
        units: vectors behind the sums: patients, or images where these are protected.
        variance: of the noise in every cell, in units of 2^-20; it adds as the cells do.
        cells: the sums, noise included, in units of 2^-20; they may be negative.
    """

    units: int
    variance: int
    cells: Ints

    def check(self) -> None:
        """Raises UpdateError naming the field that cannot be."""
        super().check()
        demand(self.patients <= self.units <= LIMIT, "units", "are no possible count")
        demand((self.patients == 0) == (self.units == 0), "units", "do not fit the patients")
        demand(0 <= self.variance < 2**62, "variance", "is no possible one")
        most = (self.units + FURTHEST * sqrt(self.variance / 2**UNIT) + 1) * 2**UNIT
        demand(bool((np.abs(self.cells) <= most).all()), "cells", "are beyond what units and noise can make")

    @property
    def noise(self) -> float:
        """Standard deviation of the noise in a cell, in natural units."""
        return sqrt(self.variance / 2**UNIT)

    def generator(self) -> np.random.Generator:
        """One that follows from the cells: a figure under noise is never shown without its interval."""
        return np.random.default_rng(list(hashlib.sha256(self.cells.tobytes()).digest()))

    def sums(self) -> Floats:
        """The cells in natural units."""
        return np.asarray(self.cells / 2.0**UNIT)


@dataclass(frozen=True, eq=False)
class NoisedKernel(Noised):
    """Σ of random Fourier features of length 1: ``KernelMeans.first`` with noise. ``cells`` is [D]."""

    name: ClassVar[str] = "noised_kernel"
    settings: ClassVar[tuple[str, ...]] = ("seed",)

    seed: int

    def check(self) -> None:
        """Raises UpdateError naming the field that cannot be."""
        super().check()
        demand(0 <= self.seed < 2**63, "seed", "is no seed")
        demand(self.cells.ndim == 1 and len(self.cells) > 0, "cells", "have another shape")

    @classmethod
    def blank(cls, features: int, seed: int) -> Self:
        """That of nobody."""
        return cls(0, 0, 0, np.zeros(features, np.int64), seed)


def discrepancy(a: NoisedKernel, b: NoisedKernel) -> Figure:
    """The squared maximum mean discrepancy between two sites, without bias, and how far noise moves it.

    As ``kernel.discrepancy`` (Gretton et al. 2012, equation 3), each site's own length less what its noise adds to it
    on average: D·s². ``noise`` is the standard deviation that the noise alone has, by the variance of quadratic forms
    of Gaussian vectors; the interval is that of the noise and says nothing of sampling.
    """
    demand(a.seed == b.seed and a.cells.shape == b.cells.shape, "seed", "has another configuration")
    n, m = a.units, b.units
    if min(n, m) < 2:
        return missing("too few patients")
    one, two, d = a.sums(), b.sums(), a.cells.size
    s, t = a.noise**2, b.noise**2
    own = (one @ one - d * s - n) / (n * (n - 1)) + (two @ two - d * t - m) / (m * (m - 1))
    value = float(own - 2 * (one @ two) / (n * m))
    apart = max(0.0, value)
    spread = s / n**2 + t / m**2
    deviation = sqrt(4 * spread * apart + 2 * d * spread**2)
    return Figure(value, value - Z * deviation, value + Z * deviation, noise=deviation)


@dataclass(frozen=True, eq=False)
class NoisedLabels(Noised):
    """Σ over patients of the share of their images with each class; ``cells`` is [K].

    Attributes:
        exclusive: 1 if every image has exactly one class; 0 for a multi-label task, whose cells are Σ ÷ √K.
    """

    name: ClassVar[str] = "noised_labels"
    settings: ClassVar[tuple[str, ...]] = ("exclusive",)

    exclusive: int

    def check(self) -> None:
        """Raises UpdateError naming the field that cannot be."""
        super().check()
        demand(self.exclusive in (0, 1), "exclusive", "is neither 0 nor 1")
        demand(self.cells.ndim == 1 and len(self.cells) > 0, "cells", "have another shape")

    @classmethod
    def blank(cls, classes: int, exclusive: bool) -> Self:
        """That of nobody."""
        return cls(0, 0, 0, np.zeros(classes, np.int64), int(exclusive))

    @property
    def scale(self) -> float:
        """What a vector of shares was divided by to be no longer than 1."""
        return 1.0 if self.exclusive else sqrt(len(self.cells))


def prevalence(labels: NoisedLabels) -> tuple[Figure, ...]:
    """Share of each class, within [0, 1]; the interval adds noise and sampling (Wilson) as independent."""
    if not labels.units:
        return tuple(missing("no patients") for _ in labels.cells)
    shares = np.clip(labels.sums() * labels.scale / labels.units, 0.0, 1.0)
    deviation = labels.noise * labels.scale / labels.units
    return tuple(both_parts(share, wilson(share, labels.patients), deviation) for share in shares.tolist())


def both_parts(value: float, sampling: Interval, noise: float) -> Figure:
    """A figure in [0, 1] whose interval adds that of sampling and a ``noise`` of that deviation as independent.

    Zou & Donner 2008 (Stat Med 27:1693-1702), as for a sum; the noise's limits are ±1.96 deviations.
    """
    low = value - sqrt((value - sampling[0]) ** 2 + (Z * noise) ** 2)
    high = value + sqrt((sampling[1] - value) ** 2 + (Z * noise) ** 2)
    value, low, high = (float(np.clip(one, 0.0, 1.0)) for one in (value, low, high))
    return within(value, (low, high), noise=float(noise))


def nearest(cells: Floats, total: float) -> Floats:
    """[…, n] numbers of at least 0 that add up to ``total``, nearest to ``cells`` […, n] by squares.

    What noise made of counts is no count: this is what could have been counted. Duchi et al. 2008 (ICML), figure 1.
    """
    ordered = -np.sort(-cells, axis=-1)
    excess = (np.cumsum(ordered, axis=-1) - total) / np.arange(1, cells.shape[-1] + 1)
    last = (ordered > excess).sum(axis=-1, keepdims=True) - 1
    level = np.take_along_axis(excess, np.maximum(last, 0), axis=-1)
    return np.asarray(np.maximum(cells - level, 0.0))
