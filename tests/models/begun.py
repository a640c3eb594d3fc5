"""What a round begins with, for tests: everything that they do not give is empty."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from polyclinic.models.adaptation import Memory, Pool, Start
from polyclinic.models.contracts import Anchor
from polyclinic.models.tasks.classification import Classification


def begun(
    task: Any = None,
    targets: Tensor | None = None,
    *,
    anchor: Anchor | None = None,
    forward: Callable[[Tensor], Tensor] = lambda pixels: pixels,
    features: Callable[[Tensor], Tensor] = lambda pixels: pixels.flatten(1),
    frozen: Callable[[Tensor], Tensor] = lambda pixels: pixels.flatten(1),
    pixels: Tensor | None = None,
    patients: tuple[str, ...] | None = None,
    memory: Memory | None = None,
    seed: int = 0,
    round_number: int = 1,
) -> Start:
    """A start over ``targets`` [N, …], all of them labelled; pixels are black and patients their numbers."""
    found = torch.zeros(1, dtype=torch.int64) if targets is None else targets
    seen = torch.zeros((len(found), 1, 4, 4), dtype=torch.uint8) if pixels is None else pixels
    return Start(
        anchor=anchor or {},
        forward=forward,
        features=features,
        frozen=frozen,
        task=task or Classification(),
        pool=Pool(seen, found, patients or tuple(map(str, range(len(found))))),
        labelled=torch.arange(len(found)),
        memory=memory or {},
        generator=torch.Generator().manual_seed(seed),
        round=round_number,
        seed=seed,
    )
