"""Boxes as arrays [N, 4] of left, top, right, bottom: how far they overlap, which to keep, which are found."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyclinic.core.statistics.detected import IOUS
from polyclinic.core.statistics.monoid import Floats, Ints

LEAST_LEFT = 0.1
"""Share of a box's area that must still be in the picture; what is left of a smaller rest shows nothing."""


def overlaps(one: NDArray[np.floating], other: NDArray[np.floating]) -> Floats:
    """Intersection over union of each of [N, 4] with each of [M, 4]: float64 [N, M]."""
    a, b = one.astype(np.float64), other.astype(np.float64)
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.clip(high - low, 0.0, None).prod(axis=2)
    areas = [(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]) for boxes in (a, b)]
    together = areas[0][:, None] + areas[1] - shared
    return np.asarray(np.divide(shared, together, out=np.zeros_like(shared), where=together > 0))


def kept(boxes: NDArray[np.floating], scores: NDArray[np.floating], most: float) -> Ints:
    """Greedy non-maximum suppression: indices, by falling score, of boxes that overlap no better one by over ``most``.

    Of equal scores the earlier comes first.
    """
    order = np.argsort(-scores, kind="stable")
    over = overlaps(boxes[order], boxes[order]) > most
    alive = np.ones(len(order), bool)
    for i in range(len(order)):
        if alive[i]:
            alive[i + 1 :] &= ~over[i, i + 1 :]
    return np.asarray(order[alive])


def matched(found: NDArray[np.floating], truths: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Which detections [D, 4], by falling score, hit one of the true boxes [G, 4] at each of ``IOUS``: [D, 10].

    As COCO's ``evaluateImg``: each in turn takes the box, among those not yet taken, that it overlaps most, the last
    of several equal ones; there are no crowds.
    """
    hits = np.zeros((len(found), len(IOUS)), bool)
    if not len(truths):
        return hits
    free, every = np.ones((len(IOUS), len(truths)), bool), np.arange(len(IOUS))
    for i, row in enumerate(overlaps(found, truths)):
        open_ones = np.where(free, row, -1.0)
        best = len(truths) - 1 - open_ones[:, ::-1].argmax(axis=1)
        hits[i] = open_ones[every, best] >= IOUS
        free[every[hits[i]], best[hits[i]]] = False
    return hits


def giou(one: Tensor, other: Tensor) -> Tensor:
    """Generalised intersection over union (Rezatofighi et al. 2019, arXiv 1902.09630) of boxes [..., 4] pair by pair.

    In (-1, 1]; differentiable, and of the same operations whatever the values, so that a gradient can be had for each
    picture by itself.
    """
    low, high = torch.maximum(one[..., :2], other[..., :2]), torch.minimum(one[..., 2:], other[..., 2:])
    shared = (high - low).clamp(min=0).prod(dim=-1)
    areas = [(boxes[..., 2:] - boxes[..., :2]).prod(dim=-1) for boxes in (one, other)]
    union = areas[0] + areas[1] - shared
    low, high = torch.minimum(one[..., :2], other[..., :2]), torch.maximum(one[..., 2:], other[..., 2:])
    hull = (high - low).prod(dim=-1)
    tiny = torch.finfo(one.dtype).tiny
    return shared / union.clamp(min=tiny) - (hull - union) / hull.clamp(min=tiny)


def carried(boxes: Tensor, inverse: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes [N, M, 4] in shares of a picture that moved, and whether enough of each is left [N, M].

    A box goes to the hull of its moved corners, cut at the picture's edges. ``inverse`` [N, 2, 3] maps places after
    the move to those before it, both in [-1, 1].
    """
    left, top, right, bottom = (2 * boxes - 1).unbind(dim=-1)
    corners = torch.stack([left, top, right, top, left, bottom, right, bottom], dim=-1).unflatten(-1, (4, 2))
    turn, shift = inverse[:, None, None, :, :2], inverse[:, None, None, :, 2]
    moved = torch.linalg.solve(turn, (corners - shift).unsqueeze(-1)).squeeze(-1)
    hull = (torch.cat([moved.amin(dim=2), moved.amax(dim=2)], dim=-1) + 1) / 2
    cut = hull.clamp(0.0, 1.0)
    before, after = ((b[..., 2:] - b[..., :2]).prod(dim=-1) for b in (hull, cut))
    return cut, (after > 0) & (after >= LEAST_LEFT * before)
