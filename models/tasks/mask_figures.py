"""What a segmentation is worth, case by case: overlap and distances through MONAI, the rest by counting."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch

from polyclinic.core.statistics.outcome import UNIT, equal_width_edges
from polyclinic.models.contracts import IGNORED, Findings

Floats = np.ndarray


def compared(output: np.ndarray, target: np.ndarray, spacing: np.ndarray, *, bins: int, tolerance: float) -> Findings:
    """Rows of ``core.statistics.segmented.tally``: logits [N, K + 1, (D,) H, W] against classes uint8 [N, (D,) H, W].

    What is predicted is the likeliest class. Ignored pixels are background in both. A class that is in truth and was
    not predicted has Dice 0, surface Dice 0 and the picture's diagonal as its Hausdorff distance; one that is not in
    truth has none of them (nan).

    Args:
        spacing: between neighbours, [N, 2 or 3] along (D,) H, W.
        bins: of the probability of any class.
        tolerance: of the surface Dice, in the unit of ``spacing``.
    """
    classes, counted = output.shape[1] - 1, target != IGNORED
    truth, guess = np.where(counted, target, 0), np.where(counted, output.argmax(axis=1), 0)
    rows = [_case(*case, classes, tolerance) for case in zip(guess, truth, spacing, strict=True)]
    columns = {name: np.array([row[name] for row in rows]) for name in rows[0]} if rows else _none(classes)
    return columns | {"size": spacing.prod(axis=1)} | _probabilities(output.astype(np.float64), target, counted, bins)


def _case(
    guess: np.ndarray, truth: np.ndarray, spacing: np.ndarray, classes: int, tolerance: float
) -> dict[str, list[object]]:
    found: dict[str, list[object]] = {name: [] for name in ("true", "found", "pixels", "dice", "surface", "hd95")}
    diagonal = float(np.linalg.norm(np.array(truth.shape) * spacing))
    for k in range(1, classes + 1):
        a, b = guess == k, truth == k
        hit = int((a & b).sum())
        extra, missed = int(a.sum()) - hit, int(b.sum()) - hit
        there, seen = hit + missed > 0, hit + extra > 0
        overlap, surface, distance = (0.0, 0.0, diagonal) if there else (np.nan, np.nan, np.nan)
        if there and seen:
            overlap, surface, distance = _surfaces(a, b, spacing.tolist(), tolerance)
        row = (there, seen, (hit, extra, missed), overlap, surface, distance)
        for name, value in zip(found, row, strict=True):
            found[name].append(value)
    return found


def _surfaces(a: np.ndarray, b: np.ndarray, spacing: Sequence[float], tolerance: float) -> tuple[float, float, float]:
    """(Dice, surface Dice, HD95) of two regions that are not empty, as MONAI has them."""
    from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice

    one, two = (torch.from_numpy(region)[None, None] for region in (a, b))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of MONAI's own calls
        overlap = compute_dice(one, two)
        surface = compute_surface_dice(one, two, [tolerance], include_background=True, spacing=spacing)
        distance = compute_hausdorff_distance(one, two, include_background=True, percentile=95.0, spacing=spacing)
    return float(overlap), float(surface), float(distance)


def _probabilities(output: Floats, target: np.ndarray, counted: np.ndarray, bins: int) -> dict[str, np.ndarray]:
    """Mean loss of a case's pixels, and its reliability bins of the probability of any class."""
    with np.errstate(invalid="ignore"):  # losses that are no numbers are refused by name when they are summed
        shifted = output - output.max(axis=1, keepdims=True)
        log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    right = np.take_along_axis(log_p, np.where(counted, target, 0)[:, None].astype(np.int64), axis=1)[:, 0]
    places = tuple(range(1, target.ndim))
    nll = np.where(counted, -right, 0.0).sum(axis=places) / np.maximum(1, counted.sum(axis=places))
    probability = np.nan_to_num(np.exp(log_p[:, 1:]).sum(axis=1).clip(0.0, 1.0))
    where = np.searchsorted(equal_width_edges(bins)[:-1], probability, side="right") - 1
    binned: dict[str, list[np.ndarray]] = {"count": [], "confidence": [], "correct": []}
    for place, chance, case, kept in zip(where, probability, target, counted, strict=True):
        at, weights = place[kept], np.rint(chance[kept] * 2.0**UNIT)
        # float64 sums of integers below 2^53 are exact: 2^25 pixels of a case
        for name, each in (("count", None), ("confidence", weights), ("correct", case[kept] > 0)):
            binned[name].append(np.bincount(at, each, bins + 1).astype(np.int64))
    empty = np.zeros((0, bins + 1), dtype=np.int64)
    return {"nll": nll} | {name: np.stack(rows) if rows else empty for name, rows in binned.items()}


def _none(classes: int) -> dict[str, np.ndarray]:
    """Columns of no case."""
    flat = {name: np.zeros((0, classes)) for name in ("dice", "surface", "hd95")}
    told = {name: np.zeros((0, classes), dtype=bool) for name in ("true", "found")}
    return flat | told | {"pixels": np.zeros((0, classes, 3), dtype=np.int64)}
