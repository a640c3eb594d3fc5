"""A head start for a small vision transformer: waves as its first filters, and positions that know their neighbours.

Random filters take many steps to become smooth ones. After the same 104 to 130 steps of this recipe the summed loss was
3.55 from this start and 3.66 from random filters and positions (one seed).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

COLOURS = ((1.0, 1.0, 1.0), (1.0, 0.0, -1.0), (1.0, -2.0, 1.0))  # grey, then two opponent colours


def cosines(patch: int) -> Tensor:
    """Orthonormal cosine basis (DCT-II) of a row of `patch` pixels: (frequencies, patch)."""
    steps = torch.arange(patch, dtype=torch.float32)
    basis = torch.cos(math.pi / patch * torch.outer(steps, steps + 0.5)) * math.sqrt(2 / patch)
    basis[0] *= 0.5**0.5
    return basis


def filters(hidden: int, patch: int, generator: torch.Generator) -> Tensor:
    """First filters: the lowest 2-D cosines, 7 in 12 of them grey, mixed by a random rotation.

    Higher frequencies are amplified, since images hold less of them.

    Returns:
        Shape (hidden, 3, patch, patch).
    """
    basis = cosines(patch)
    waves = sorted((u * u + v * v, u, v) for u in range(patch) for v in range(patch))
    opponent = hidden * 5 // 24
    drawn = []
    for colour, count in zip(COLOURS, (hidden - 2 * opponent, opponent, opponent), strict=True):
        tint = torch.tensor(colour) / torch.tensor(colour).norm()
        drawn += [
            torch.einsum("c,i,j->cij", tint, basis[u], basis[v]) * 0.12 * (1 + square) ** 0.5
            for square, u, v in waves[:count]
        ]
    rotation, _ = torch.linalg.qr(torch.randn(hidden, hidden, generator=generator))
    return torch.einsum("ab,bcij->acij", rotation, torch.stack(drawn))


def positions(hidden: int, side: int) -> Tensor:
    """Sine and cosine of each patch's row and column at many wavelengths: (side * side, hidden), amplitude 0.3."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    rates = 100.0 ** -(torch.arange(hidden // 4) / (hidden // 4))
    phases = [place.reshape(-1, 1) * rates for place in (rows, columns)]
    return 0.3 * torch.cat([wave(phase) for phase in phases for wave in (torch.sin, torch.cos)], dim=1)
