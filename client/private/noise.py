"""Noise on tensors, wherever they lie: see ``polyclinic.core.privacy.noise``."""

from __future__ import annotations

import torch
from torch import Tensor

from polyclinic.core.privacy.noise import Chance, gaussian, spacing


def released(total: Tensor, deviation: float, chance: Chance) -> Tensor:
    """A sum (float64) with noise of standard ``deviation`` on every number, rounded to the grid.

    ``deviation`` 0 releases the sum as it is: no privacy, for tests alone.
    """
    if deviation == 0.0:
        return total
    noise = torch.from_numpy(gaussian(chance, total.numel())).view(total.shape).to(total.device)
    step = spacing(deviation)
    return torch.round((total + deviation * noise) / step) * step
