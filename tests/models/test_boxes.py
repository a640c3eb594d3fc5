"""Boxes against MONAI, pycocotools and brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import box_utils

from polyclinic.core.statistics.detected import IOUS
from polyclinic.models.tasks.boxes import carried, giou, kept, matched, overlaps
from tests.models.coco import coco
from tests.models.scenes import scenes

SEEDS = st.integers(0, 10**6)


def some(n: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 0.6, (n, 2))
    return np.concatenate([low, low + rng.uniform(0.02, 0.4, (n, 2))], axis=1)


def test_overlaps_are_monais() -> None:
    one, other = some(20, 1), some(30, 2)
    expected = box_utils.box_iou(torch.from_numpy(one), torch.from_numpy(other)).numpy()
    np.testing.assert_allclose(overlaps(one, other), expected, atol=1e-5)


def test_overlaps_of_what_is_empty_are_none() -> None:
    assert overlaps(np.zeros((1, 4)), np.zeros((1, 4)))[0, 0] == 0.0
    assert overlaps(some(3, 1), np.zeros((0, 4))).shape == (3, 0)


def brute(boxes: np.ndarray, scores: np.ndarray, most: float) -> list[int]:
    """One after another, each against all that were kept before."""
    left: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        if all(overlaps(boxes[[i]], boxes[[j]])[0, 0] <= most for j in left):
            left.append(i)
    return left


@settings(max_examples=40, deadline=None)
@given(n=st.integers(0, 40), seed=SEEDS, most=st.sampled_from([0.1, 0.3, 0.6, 1.0]))
def test_suppression_is_greedy(n: int, seed: int, most: float) -> None:
    boxes, scores = some(n, seed), np.random.default_rng(seed).integers(0, 8, n) / 8
    found = kept(boxes, scores, most).tolist()
    assert found == brute(boxes, scores, most)
    assert found == box_utils.non_max_suppression(torch.from_numpy(boxes), torch.from_numpy(scores), most).tolist()


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS)
def test_each_detection_is_matched_as_pycocotools_matches_it(seed: int) -> None:
    made = scenes(1, 1, seed, most=15)
    judge = coco(made.truths, made.found, made.scores, 1)
    order = np.argsort(-np.array(made.scores[0]), kind="stable")
    found = np.array(made.found[0]).reshape(-1, 5)[order, 1:]
    expected = judge.evalImgs[0]["dtMatches"].T > 0 if judge.evalImgs[0] else np.zeros((0, len(IOUS)))
    assert np.array_equal(matched(found, np.array(made.truths[0]).reshape(-1, 5)[:, 1:]), expected)


def test_a_detection_takes_the_best_box_that_is_left() -> None:
    truths = np.array([[0, 0, 10, 10], [0, 0, 10, 8]])
    found = np.array([[0, 0, 10, 8.5], [0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]])
    hits = matched(found, truths)
    assert hits[:, 0].tolist() == [True, True, False, False]
    assert hits[:, -1].tolist() == [False, True, False, False]
    assert not matched(found, truths[:0]).any()


def test_giou_is_monais_pair_by_pair() -> None:
    one, other = torch.from_numpy(some(50, 3)), torch.from_numpy(some(50, 4))
    expected = box_utils.box_giou(one, other).diagonal()
    torch.testing.assert_close(giou(one, other), expected, atol=1e-5, rtol=0)
    assert giou(one[:1], one[:1]).item() == pytest.approx(1.0)


def moves(*rows: list[list[float]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_boxes_go_where_their_picture_goes() -> None:
    box = torch.tensor([[[0.1, 0.2, 0.3, 0.6]]], dtype=torch.float64)
    same, right, flip = [[1, 0, 0], [0, 1, 0]], [[1, 0, -0.5], [0, 1, 0]], [[-1, 0, 0], [0, 1, 0]]
    turned, half = [[0, 1, 0], [-1, 0, 0]], [[2, 0, 0], [0, 2, 0]]
    for inverse, expected in (
        (same, [0.1, 0.2, 0.3, 0.6]),
        (right, [0.35, 0.2, 0.55, 0.6]),
        (flip, [0.7, 0.2, 0.9, 0.6]),
        (turned, [0.4, 0.1, 0.8, 0.3]),
        (half, [0.3, 0.35, 0.4, 0.55]),
    ):
        found, left = carried(box, moves(inverse))
        assert left.item()
        assert found[0, 0].tolist() == pytest.approx(expected), inverse


def test_boxes_that_leave_the_picture_are_cut_and_then_vanish() -> None:
    box = torch.tensor([[[0.6, 0.2, 0.8, 0.4]]], dtype=torch.float64)
    for shift, there, edge in ((0.3, True, 0.95), (0.6, True, 1.0), (0.79, False, 1.0), (0.9, False, 1.0)):
        found, left = carried(box, moves([[1, 0, -shift], [0, 1, 0]]))
        assert left.item() is there
        assert found[0, 0, 2].item() == pytest.approx(edge)
