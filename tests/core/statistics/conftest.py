"""Random outcomes of every kind, and the statistics made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from polyclinic.core.statistics.detected import tally as tally_boxes
from polyclinic.core.statistics.monoid import Sums
from polyclinic.core.statistics.noised import Noised, NoisedKernel, NoisedLabels
from polyclinic.core.statistics.noised_outcome import NoisedOutcome
from polyclinic.core.statistics.noised_segmented import NoisedSegmented
from polyclinic.core.statistics.outcome import Kind, tally
from polyclinic.core.statistics.segmented import Segmented
from polyclinic.core.statistics.shift import (
    Acquisition,
    FeatureMoments,
    Intensities,
    KernelMeans,
    Labels,
    projection,
    standardise,
)
from polyclinic.models.tasks.segmentation import Segmentation

KINDS: tuple[Kind, ...] = ("binary", "multiclass", "multilabel")


def predictions(kind: Kind, n: int, seed: int, classes: int = 4) -> dict[str, Any]:
    """Arguments of ``tally``: two images a patient, some confidences tied, some exactly 0 and 1."""
    rng = np.random.default_rng(seed)
    if kind == "multiclass":
        targets = rng.integers(0, classes, n)
        logits = rng.normal(size=(n, classes)) * 2 + 1.5 * (targets[:, None] == np.arange(classes))
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        p[: n // 10] = np.eye(classes)[targets[: n // 10]]
        nll = -np.log(np.maximum(p[np.arange(n), targets], 1e-12))
    else:
        targets = rng.integers(0, 2, n if kind == "binary" else (n, classes))
        p = 1 / (1 + np.exp(-(rng.normal(size=targets.shape) * 2 + 2 * targets - 1)))
        p = np.where(rng.random(p.shape) < 0.2, np.round(p * 16) / 16, p)
        nll = -np.log(np.maximum(np.where(targets == 1, p, 1 - p), 1e-12)).reshape(n, -1).mean(axis=1) if n else p
        nll = np.zeros(0) if n == 0 else nll
    names = [f"{seed}-{i // 2}" for i in range(n)]
    return {"kind": kind, "probabilities": p, "targets": targets, "patients": names, "nll": nll}


def pooled(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """All predictions as if in one place."""
    arrays = {key: np.concatenate([part[key] for part in parts]) for key in ("probabilities", "targets", "nll")}
    return {"kind": parts[0]["kind"], **arrays, "patients": [p for part in parts for p in part["patients"]]}


@pytest.fixture(scope="session")
def draw() -> Callable[..., dict[str, Any]]:
    return predictions


@pytest.fixture(scope="session")
def pool() -> Callable[..., dict[str, Any]]:
    return pooled


@pytest.fixture(scope="session")
def statistics() -> Mapping[str, Callable[[int, int], Sums]]:
    """How to make a statistic of each kind from (number of patients, seed)."""

    def rows(n: int, seed: int) -> np.ndarray:
        return standardise(np.random.default_rng(seed).normal(size=(n, 24))) @ projection(24, 6, 1)

    def intensities(n: int, seed: int) -> Intensities:
        return Intensities.of(np.random.default_rng(seed).integers(0, 256, (n, 1, 7, 5)).astype(np.uint8), range(n))

    def labels(n: int, seed: int, *shape: int) -> Labels:
        classes = 2 if shape else 3
        targets = np.random.default_rng(seed).integers(0, classes, (n, *shape))
        return Labels.of(targets, [i // 2 for i in range(n)], "abc")

    def detected(n: int, seed: int) -> Sums:
        rng = np.random.default_rng(seed)
        kinds, scores = rng.integers(-1, 3, (n, 6)), rng.random((n, 6)).round(1)
        truths = np.stack([(kinds == k).sum(axis=1) for k in range(3)], axis=1).astype(np.int64)
        hits = (rng.random((n, 6, 10)) < 0.5) & (kinds >= 0)[..., None]
        return tally_boxes(kinds, scores, hits, truths, [i // 2 for i in range(n)], bins=5, score_bins=16)

    def segmented(n: int, seed: int) -> Segmented:
        task = Segmentation(classes=("one", "two"))
        rng = np.random.default_rng(seed)
        truth = rng.integers(0, 3, (n, 6, 5)).astype(np.uint8)
        truth[rng.random(truth.shape) < 0.1] = 255
        truth[: n // 3][truth[: n // 3] == 2] = 0
        logits = rng.normal(size=(n, 3, 6, 5)) + 2.0 * (truth[:, None] == np.arange(3)[:, None, None])
        found = task.examine(logits, truth, bins=5, spacing=np.ones((n, 2)))
        return task.tally(found, [f"{seed}-{i // 2}" for i in range(n)], bins=5, score_bins=16)

    def acquisition(n: int, seed: int) -> Acquisition:
        rng = np.random.default_rng(seed)
        makers, volts = rng.choice(["GE", "Philips", ""], n), rng.choice([80, 100, 120], n)
        return Acquisition.of([{"maker": m, "kVp": f"{kv}"} for m, kv in zip(makers, volts, strict=True)], range(n))

    def noised(blank: Noised) -> Callable[[int, int], Noised]:
        def made(n: int, seed: int) -> Noised:
            if not n:
                return blank
            cells = np.random.default_rng(seed).normal(n / 4, 3.0, blank.cells.shape) * 2**20
            cells = np.clip(np.rint(cells), -n * 2**20, n * 2**20).astype(np.int64)
            return replace(blank, patients=(n + 1) // 2, units=n, variance=9 * 2**20, cells=cells)

        return made

    made: dict[str, Callable[[int, int], Sums]] = {
        kind: lambda n, seed, kind=kind: tally(**predictions(kind, n, seed), bins=5, score_bins=16)  # type: ignore[misc]
        for kind in KINDS
    }
    return made | {
        "detected": detected,
        "features": lambda n, seed: FeatureMoments.of(rows(n, seed)),
        "kernel": lambda n, seed: KernelMeans.of(rows(n, seed), 8, 1),
        "intensities": intensities,
        "labels": labels,
        "segmented": segmented,
        "multilabels": lambda n, seed: labels(n, seed, 3),
        "acquisition": acquisition,
        "noised_outcome": noised(NoisedOutcome.blank("multiclass", 3)),
        "noised_segmented": noised(NoisedSegmented.blank(2)),
        "noised_kernel": noised(NoisedKernel.blank(8, 1)),
        "noised_labels": noised(NoisedLabels.blank(3, exclusive=True)),
    }
