"""A small convolutional network with normalisations of every kind, for tests."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polyclinic.models.backbone import Backbone
from polyclinic.models.backbones import Encoder, Seen
from polyclinic.models.chain import chain
from polyclinic.models.network import Adapted, Network

WIDTH = 6


def adapted(*methods: object, norm: nn.Module | None = None, seed: int = 0) -> Adapted:
    """One output from [N, 1, 8, 8]; ``norm`` is over 6 channels, batch normalisation where none is given."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Conv2d(1, WIDTH, 3), norm or nn.BatchNorm2d(WIDTH), nn.ReLU(), nn.Conv2d(WIDTH, WIDTH, 3)]
        module, head = nn.Sequential(*layers), nn.Linear(WIDTH, 1)
    module.requires_grad_(False)

    def see(module: nn.Module, pixels: Tensor, maps: bool) -> Seen:
        return Seen(module(pixels).mean(dim=(2, 3)))

    encoder = Encoder(module.eval(), see, WIDTH, (), 1, (0.5,), (0.25,), "0" * 64, has_cls=False)
    network = Network(Backbone(encoder, (0.5,), (0.25,), "mean"), head, dense=False)
    chained = chain(*(method.build() for method in methods))  # type: ignore[attr-defined]
    chained.fit_in(network, torch.Generator().manual_seed(seed))
    return Adapted(network, chained, torch.device("cpu"))
