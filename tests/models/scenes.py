"""Random scenes of boxes: what is true, and what a mediocre detector finds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass
class Scenes:
    """Of each image: true boxes and detections as (class, left, top, right, bottom), and the detections' scores."""

    truths: list[list[tuple[Any, ...]]]
    found: list[list[tuple[Any, ...]]]
    scores: list[list[float]]

    def __add__(self, other: Scenes) -> Scenes:
        return Scenes(self.truths + other.truths, self.found + other.found, self.scores + other.scores)


def box(rng: np.random.Generator) -> np.ndarray:
    low, size = rng.uniform(0, 0.7, 2), rng.uniform(0.05, 0.3, 2)
    return np.concatenate([low, low + size])


def scenes(images: int, classes: int, seed: int, most: int = 12) -> Scenes:
    """Crowded enough that detections compete for boxes; some images are empty."""
    rng = np.random.default_rng(seed)
    made = Scenes([], [], [])
    for _ in range(images):
        truths = [(int(rng.integers(classes)), *box(rng)) for _ in range(rng.integers(0, most))]
        found: list[tuple[Any, ...]] = []
        scores: list[float] = []
        for kind, *place in truths:
            for _ in range(rng.integers(0, 3)):
                off = rng.normal(0, 0.02, 4)
                named = kind if rng.random() < 0.9 else int(rng.integers(classes))
                found.append((named, *(np.array(place) + off)))
                scores.append(float(np.clip(0.75 - 4 * np.abs(off).mean() + rng.normal(0, 0.2), 0.01, 0.999)))
        for _ in range(rng.integers(0, 5)):
            found.append((int(rng.integers(classes)), *box(rng)))
            scores.append(float(rng.uniform(0.01, 0.8)))
        made.truths.append(truths)
        made.found.append(found)
        made.scores.append(scores)
    return made


def findings(made: Scenes, classes: int, most: int = 64) -> dict[str, np.ndarray]:
    """What a detection task's ``examine`` would give for the scenes, had its head drawn just these boxes."""
    from polyclinic.models.tasks.boxes import matched

    n = len(made.truths)
    kinds, scores = np.full((n, most), -1), np.zeros((n, most))
    hits, truths = np.zeros((n, most, 10), bool), np.zeros((n, classes), np.int64)
    for i in range(n):
        order = np.argsort(-np.array(made.scores[i]), kind="stable")
        rows = np.array([made.found[i][j] for j in order]).reshape(-1, 5)
        true = np.array(made.truths[i]).reshape(-1, 5)
        kinds[i, : len(rows)], scores[i, : len(rows)] = rows[:, 0], np.array(made.scores[i])[order]
        for k in range(classes):
            own = np.flatnonzero(rows[:, 0] == k)
            hits[i, own] = matched(rows[own, 1:], true[true[:, 0] == k, 1:])
            truths[i, k] = (true[:, 0] == k).sum()
    return {"kinds": kinds, "scores": scores, "hits": hits, "truths": truths}
