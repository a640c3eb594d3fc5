"""A backbone for volumes, for tests: two convolutions of random weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polyclinic.core.study import Study
from polyclinic.models.backbones import Encoder, Seen
from polyclinic.models.contracts import Level


def deep(study: Study) -> Encoder:
    """Maps of 6 and 8 channels at strides 2 and 4; its features are the mean of the second."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.ModuleList([nn.Conv3d(1, 6, 3, stride=2, padding=1), nn.Conv3d(6, 8, 3, stride=2, padding=1)])

    def see(module: nn.Module, pixels: Tensor, maps: bool) -> Seen:
        first = module[0](pixels).relu()
        second = module[1](first).relu()
        return Seen(second.mean(dim=(2, 3, 4)), None, (first, second) if maps else ())

    levels = (Level(6, 2), Level(8, 4))
    module.requires_grad_(False)
    return Encoder(module, see, 8, levels, 1, (0.3,), (0.3,), "0" * 64, has_cls=False, volumes=True)
