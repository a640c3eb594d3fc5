"""Looking through a site's pictures in batches, as a method does between the steps of training."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from polyclinic.models.adaptation import Start

BATCH = 64


def shown(start: Start, places: Tensor, size: int = BATCH) -> Iterator[tuple[Tensor, Tensor]]:
    """(indices, pixels [n, C, (D,) S, S] in [0, 1] on the model's device) of the pool's images at ``places``."""
    device = next((tensor.device for tensor in start.anchor.values()), torch.device("cpu"))
    for some in places.split(size):
        yield some, start.pool.pixels[some].to(device).float().div_(255.0)


def looked(start: Start, places: Tensor, through: Callable[[Tensor], Tensor]) -> Tensor:
    """What ``through`` makes of the pool's images at ``places``: [len(places), …] on the CPU."""
    return torch.cat([through(pixels).cpu() for _, pixels in shown(start, places)])
