"""How a picture's tokens become fewer: each picture by itself, and the same bits on every run (no atomic sums)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


class Track:
    """Within one forward pass: where each first token went, and how many went into each that is left.

    Attributes:
        places: [N, T₀] index of the token that holds each first one; None before the first merging.
        sizes: [N, T]; None before the first merging.
    """

    def __init__(self) -> None:
        self.places: Tensor | None = None
        self.sizes: Tensor | None = None

    def begin(self) -> None:
        """Forgets the last pass."""
        self.places = self.sizes = None

    def end(self, tokens: Tensor) -> Tensor:
        """[N, T₀, width]: for each first token the one that holds it; and forgets."""
        places = self.places
        self.begin()
        return tokens if places is None else _chosen(places, tokens.shape[1], tokens) @ tokens


def merged(tokens: Tensor, metric: Tensor, track: Track, r: int, leading: int) -> Tensor:
    """Bipartite soft matching (Bolya et al. 2023, section 3): tokens of even index A are matched with those of odd B.

    Each of A finds its most alike in B by the cosine of ``metric`` [N, T, d]; the ``r`` best matches are merged, by
    averages weighted by size. The first ``leading`` tokens take no part; at most half of the others are merged.

    Returns:
        [N, T - r, width]: the leading tokens, what is left of A in its order, then B.
    """
    r = min(r, (tokens.shape[1] - leading) // 2)
    if r <= 0:
        return tokens
    index = torch.arange(tokens.shape[1], device=tokens.device)
    a, b = index[leading + leading % 2 :: 2], index[leading + 1 - leading % 2 :: 2]
    unit = F.normalize(metric, dim=-1)
    best = (unit[:, a] @ unit[:, b].transpose(1, 2)).max(dim=-1)
    order = best.values.argsort(dim=-1, descending=True, stable=True)
    gone, left = order[:, :r], order[:, r:].sort(dim=-1).values
    onto = best.indices.gather(1, gone)
    sizes = torch.ones_like(tokens[..., 0]) if track.sizes is None else track.sizes
    weighed = torch.cat([tokens * sizes[..., None], sizes[..., None]], dim=-1)
    added = _chosen(onto, len(b), tokens).transpose(1, 2) @ _rows(weighed[:, a], gone)
    whole = torch.cat([weighed[:, :leading], _rows(weighed[:, a], left), weighed[:, b] + added], dim=1)
    track.sizes = whole[..., -1].detach()
    there = leading + left.shape[1]
    moved = torch.cat([leading + index[: left.shape[1]].expand_as(left), there + onto], dim=1)
    parts = [index[:leading].expand(len(gone), -1), moved.gather(1, torch.cat([left, gone], dim=1).argsort(dim=1))]
    parts.append((there + index[: len(b)]).expand(len(gone), -1))
    moved = torch.cat(parts, dim=1)[:, torch.cat([index[:leading], a, b]).argsort()]
    track.places = moved if track.places is None else moved.gather(1, track.places)
    return whole[..., :-1] / whole[..., -1:]


def attentive(tokens: Tensor, attention: Tensor, keep: float, leading: int) -> Tensor:
    """Tokens that matter (Liang et al. 2022, section 3.2): the share ``keep`` with most ``attention`` [N, patches].

    Returns:
        [N, leading + kept + 1, width]: the leading tokens, those kept in their order, and Σ aᵢxᵢ of the others.
    """
    kept = math.ceil(keep * attention.shape[1])
    if kept == attention.shape[1]:
        return tokens
    order = attention.detach().argsort(dim=-1, descending=True, stable=True)
    best, rest = order[:, :kept].sort(dim=-1).values, order[:, kept:]
    places = tokens[:, leading:]
    fused = (attention.gather(1, rest)[:, None] @ _rows(places, rest)).to(tokens.dtype)
    return torch.cat([tokens[:, :leading], _rows(places, best), fused], dim=1)


def _rows(tokens: Tensor, index: Tensor) -> Tensor:
    """[N, k, width] of tokens [N, T, width], by index [N, k]."""
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))


def _chosen(index: Tensor, count: int, like: Tensor) -> Tensor:
    """[N, k, count]: 1 at the index of each row, else 0."""
    return (index[..., None] == torch.arange(count, device=index.device)).to(like.dtype)
