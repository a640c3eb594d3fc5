"""What a site's images are: their brightness and their labels."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import erfc, sqrt
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from polyclinic.core.errors import DataError
from polyclinic.core.statistics.figures import Figure, missing
from polyclinic.core.statistics.intervals import wilson
from polyclinic.core.statistics.monoid import LIMIT, Ints, Sums, demand, fixed

BINS = 16
UNIT = 28
FLOOR = 1e-4
"""Added to each bin's share before two histograms are compared, so that empty bins have a logarithm."""


@dataclass(frozen=True, eq=False)
class Intensities(Sums):
    """Histogram of 8-bit intensities in 16 bins of equal width, in which every image weighs 1.

    Attributes:
        images: how many.
        mass: [16] Σ of images' shares, in units of 2^-28; at most 2^34 · 2^28 = 2^62.
    """

    name: ClassVar[str] = "intensities"

    images: int
    mass: Ints

    @classmethod
    def of(cls, pixels: NDArray[np.uint8], patients: Sequence[Hashable]) -> Self:
        """Histogram of ``pixels`` uint8 [N, …] of images of ``patients`` [N]. Raises DataError for other numbers."""
        if pixels.dtype != np.uint8 or len(pixels) != len(patients):
            raise DataError("pixels are not 8-bit, or not of as many images as patients", where="intensities")
        counts = [np.bincount(image.reshape(-1) // (256 // BINS), minlength=BINS) for image in pixels]
        shares = np.array(counts, dtype=np.float64).reshape(-1, BINS) / max(1, pixels[:1].size)
        return cls(len(set(patients)), len(pixels), fixed(shares, UNIT).sum(axis=0))

    def check(self) -> None:
        """Raises UpdateError naming the field that cannot be."""
        super().check()
        check_counts(self.patients, self.images)
        demand(self.mass.shape == (BINS,), "mass", "has another shape")
        demand(bool((self.mass >= 0).all() and (self.mass <= self.images << UNIT).all()), "mass", "is beyond bounds")
        total = sum(self.mass.tolist())
        demand(abs(total - (self.images << UNIT)) <= BINS * self.images, "mass", "does not add up to the images")


def psi(a: Intensities, b: Intensities) -> float | None:
    """Population stability index Σ (p - q) ln(p / q), after ``FLOOR``; None where either has no images.

    Customary reading: below 0.1 stable, above 0.25 shifted.
    """
    if not a.images or not b.images:
        return None
    p, q = ((s.mass / s.mass.sum() + FLOOR) / (1 + BINS * FLOOR) for s in (a, b))
    return float(((p - q) * np.log(p / q)).sum())


@dataclass(frozen=True, eq=False)
class Labels(Sums):
    """How many images and patients have each class.

    Attributes:
        exclusive: 1 if every image has exactly one class, 0 for a multi-label task.
        images: how many.
        class_patients: [K] patients with an image of each class.
        class_images: [K] images of each class.
    """

    name: ClassVar[str] = "labels"
    settings: ClassVar[tuple[str, ...]] = ("exclusive",)

    exclusive: int
    images: int
    class_patients: Ints
    class_images: Ints

    @classmethod
    def of(cls, targets: Ints, patients: Sequence[Hashable], classes: Sequence[str]) -> Self:
        """Counts ``targets``: [N] class indices, or [N, K] of 0 and 1. Raises DataError for others."""
        exclusive, k = targets.ndim == 1, len(classes)
        shape, top = ((len(patients),), k) if exclusive else ((len(patients), k), 2)
        if targets.shape != shape or not ((targets >= 0) & (targets < top)).all():
            raise DataError("targets are no classes of as many images as patients", where="labels")
        member = targets[:, None] == np.arange(k) if exclusive else targets == 1
        by_class = [len({p for p, has in zip(patients, column, strict=True) if has}) for column in member.T]
        images = member.sum(axis=0).astype(np.int64)
        return cls(len(set(patients)), int(exclusive), len(patients), np.array(by_class, dtype=np.int64), images)

    def check(self) -> None:
        """Raises UpdateError naming the field that cannot be."""
        super().check()
        check_counts(self.patients, self.images)
        demand(self.exclusive in (0, 1), "exclusive", "is neither 0 nor 1")
        demand(self.class_images.ndim == 1, "class_images", "has another shape")
        demand(self.class_patients.shape == self.class_images.shape, "class_patients", "has another shape")
        possible = bool((self.class_images >= 0).all() and (self.class_images <= self.images).all())
        demand(possible, "class_images", "are no possible counts")
        most = np.minimum(self.class_images, self.patients)
        fits = (self.class_patients <= most) & ((self.class_patients > 0) == (self.class_images > 0))
        demand(bool(fits.all() and (self.class_patients >= 0).all()), "class_patients", "do not fit the images")
        if self.exclusive:
            demand(int(self.class_images.sum()) == self.images, "class_images", "do not add up to the images")
            demand(int(self.class_patients.sum()) >= self.patients, "class_patients", "leave patients out")


def prevalence(labels: Labels) -> tuple[Figure, ...]:
    """Share of patients with an image of each class, with Wilson intervals."""
    if not labels.patients:
        return tuple(missing("no patients") for _ in labels.class_patients)
    shares = [int(count) / labels.patients for count in labels.class_patients]
    return tuple(Figure(share, *wilson(share, labels.patients)) for share in shares)


def label_shift(a: Labels, b: Labels) -> float | None:
    """p-value of equal prevalences: the least of two-proportion z tests over classes, times their number (Bonferroni).

    None where either has no patients.
    """
    (a + b).check()
    if not a.patients or not b.patients:
        return None
    # of two exclusive classes one tells all
    columns = slice(1, None) if a.exclusive and len(a.class_patients) == 2 else slice(None)
    pairs = list(zip(a.class_patients[columns].tolist(), b.class_patients[columns].tolist(), strict=True))
    return min(1.0, len(pairs) * min(_same_share(x, a.patients, y, b.patients) for x, y in pairs))


def _same_share(x: int, n: int, y: int, m: int) -> float:
    share = (x + y) / (n + m)
    error = sqrt(share * (1 - share) * (1 / n + 1 / m))
    return erfc(abs(x / n - y / m) / error / sqrt(2)) if error else 1.0


def check_counts(patients: int, images: int) -> None:
    """Raises UpdateError unless that many patients can have that many images."""
    demand(0 <= images <= LIMIT, "images", "is no possible count")
    demand(patients <= images and (patients == 0) == (images == 0), "patients", "do not fit the images")
