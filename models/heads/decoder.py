"""A light decoder: a backbone's maps, of one level or several, to one logit a class and pixel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyclinic.core.errors import StudyError
from polyclinic.models.contracts import Detailed, Shape

WIDTH, GROUPS = 64, 8
DETAIL = (16, 32, 64)
"""Channels of the picture's own maps, at strides 1, 2 and 4."""


def decoder(shape: Shape, outputs: int, generator: torch.Generator) -> nn.Module:
    """maps, the finest first → logits [N, outputs, (D,) S, S]; drawn from the generator alone.

    A single map as fine as the picture (a U-Net's) gets one 1 × 1 convolution, everything else a ``Decoder``.

    Raises:
        StudyError: the backbone has no maps.
    """
    if not shape.levels:
        raise StudyError("this backbone gives no maps", where="backbone.reference", remedy="take one with a grid")
    with torch.random.fork_rng(devices=[]):  # modules draw from the global generator as they are made
        pointwise = len(shape.levels) == 1 and shape.levels[0].stride == 1
        made = Pointwise(shape, outputs) if pointwise else Decoder(shape, outputs)
    for name, weight in sorted(made.named_parameters()):
        if weight.dim() > 1:
            gain = 0.02 if name.startswith("paint.") else (2.0 / weight[0].numel()) ** 0.5
            nn.init.normal_(weight, std=gain, generator=generator)
        elif name.endswith("bias"):
            nn.init.zeros_(weight)
    return made


class Pointwise(nn.Module):
    """One 1 × 1 convolution on a map as fine as the picture."""

    def __init__(self, shape: Shape, outputs: int) -> None:
        super().__init__()
        self.paint = _convolution(shape)(shape.levels[0].channels, outputs, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Logits [N, outputs, (D,) S, S]."""
        painted: Tensor = self.paint(maps[0])
        return painted


class Decoder(Detailed):
    """What the backbone knows of each place, brought together, and led up to the picture beside its own fine detail.

    All levels are brought to one width and to the finest of them, and summed (SegFormer, Xie et al. 2021, arXiv
    2105.15203). A patch of 16 pixels does not know where in it a vessel lies, so the picture itself comes in through
    three small convolutions at strides 1, 2 and 4, and the two are joined from coarse to fine, as in UNETR (Hatamizadeh
    et al. 2022, arXiv 2103.10504) and ViTMatte (Yao et al. 2024, arXiv 2305.15272). Group instead of batch
    normalisation, so that every picture stands alone.
    """

    def __init__(self, shape: Shape, outputs: int) -> None:
        super().__init__()
        convolution, widths = _convolution(shape), (shape.channels, *DETAIL)
        self.level = nn.ModuleList(convolution(level.channels, WIDTH, 1) for level in shape.levels)
        self.detail = nn.ModuleList(_block(shape, widths[i], widths[i + 1], stride=min(i + 1, 2)) for i in range(3))
        joined = (WIDTH, *DETAIL[:0:-1])
        self.join = nn.ModuleList(_block(shape, joined[i] + DETAIL[2 - i], DETAIL[2 - i]) for i in range(3))
        self.paint = convolution(DETAIL[0], outputs, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Logits [N, outputs, (D,) S, S] of the picture, maps[0], and the backbone's maps."""
        fine = [maps[0]]
        for block in self.detail:
            fine.append(block(fine[-1]))
        levels = [convolution(one) for convolution, one in zip(self.level, maps[1:], strict=True)]
        finest = max((one.shape[2:] for one in levels), key=lambda size: size.numel())
        seen = torch.stack([_sized(one, finest) for one in levels]).sum(dim=0)
        for block, own in zip(self.join, reversed(fine[1:]), strict=True):
            seen = block(torch.cat([_sized(seen, own.shape[2:]), own], dim=1))
        painted: Tensor = self.paint(seen)
        return painted


def _block(shape: Shape, into: int, out: int, stride: int = 1) -> nn.Sequential:
    convolution = _convolution(shape)(into, out, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.GroupNorm(GROUPS, out), nn.GELU())


def _sized(one: Tensor, size: torch.Size) -> Tensor:
    if one.shape[2:] == size:
        return one
    return F.interpolate(one, size=size, mode="bilinear" if len(size) == 2 else "trilinear", align_corners=False)


def _convolution(shape: Shape) -> type[nn.Conv2d] | type[nn.Conv3d]:
    return nn.Conv2d if shape.depth is None else nn.Conv3d
