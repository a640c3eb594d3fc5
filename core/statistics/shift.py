"""Domain shift between one site and the others: what is told of its data, and how to compare it."""

from __future__ import annotations

from polyclinic.core.statistics.acquisition import Acquisition, difference
from polyclinic.core.statistics.contents import Intensities, Labels, label_shift, prevalence, psi
from polyclinic.core.statistics.features import FeatureMoments, frechet, projection, standardise
from polyclinic.core.statistics.kernel import KernelMeans, discrepancy, mmd2
from polyclinic.core.statistics.monoid import rest
from polyclinic.core.statistics.pairwise import classical_mds

SHIFT_SEED = 20
"""Projection and kernel are drawn from one seed everywhere: sites' statistics only merge if they are the same."""

__all__ = [
    "SHIFT_SEED",
    "Acquisition",
    "FeatureMoments",
    "Intensities",
    "KernelMeans",
    "Labels",
    "classical_mds",
    "difference",
    "discrepancy",
    "frechet",
    "label_shift",
    "mmd2",
    "prevalence",
    "projection",
    "psi",
    "rest",
    "standardise",
]
