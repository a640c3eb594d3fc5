"""An anchor-free head on a backbone's maps: for every cell of one fine grid classes, a centre, and a box.

FCOS (Tian et al. 2019, arXiv 1904.01355) on a single level. Maps of a plain transformer, all of one stride, are added
up and made finer by transposed convolutions, as ViTDet's simple pyramid (Li et al. 2022, arXiv 2203.16527); those of a
pyramid are brought to its finest level first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyclinic.core.errors import StudyError
from polyclinic.models.contracts import Level, Shape

PRIOR = 0.01
"""How likely any cell is to be a class before training (Lin et al. 2017, arXiv 1708.02002, section 4.1)."""
GROUPS = 8
SPREAD = 16
"""Before training a box is as wide as the picture over this."""
FINEST = 8
"""Into how many cells a place of the finest map is divided at most along each side."""


class Fcos(nn.Module):
    """Maps [N, C, H, W] of every level → [N, K + 5, H', W']: K logits of classes, one of the centre, and the logarithms
    of the distances, in cells, to a box's left, top, right and bottom edge.

    Normalised by groups of channels, so that no picture's output depends on another's.

    Args:
        levels: the backbone's, the finest first.
        classes: K.
        finer: how often the finest map is doubled along each side.
        side: of the grid that results, in cells.
        width: channels inside, a multiple of 8.
        depth: convolutions before the outputs.
    """

    def __init__(self, levels: Sequence[Level], classes: int, finer: int, side: int, width: int, depth: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(_normed(nn.Conv2d(level.channels, width, 1, bias=False)) for level in levels)
        rising = [nn.ConvTranspose2d(width, width, 2, stride=2, bias=False) for _ in range(finer)]
        self.rising = nn.Sequential(*(_active(layer) for layer in rising))
        self.naming, self.placing = (
            nn.Sequential(*(_active(nn.Conv2d(width, width, 3, padding=1, bias=False)) for _ in range(depth)))
            for _ in range(2)
        )
        self.classes = nn.Conv2d(width, classes, 3, padding=1)
        self.centre = nn.Conv2d(width, 1, 3, padding=1)
        self.box = nn.Conv2d(width, 4, 3, padding=1)
        self.start = math.log(side / SPREAD / 2)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """See the class."""
        size = maps[0].shape[-2:]
        lateral = [layer(grid) for layer, grid in zip(self.lateral, maps, strict=True)]
        same = [grid if grid.shape[-2:] == size else F.interpolate(grid, size, mode="bilinear") for grid in lateral]
        fused = self.rising(F.gelu(torch.stack(same).sum(dim=0)))
        named, placed = self.naming(fused), self.placing(fused)
        return torch.cat([self.classes(named), self.centre(placed), self.box(placed) + self.start], dim=1)


def _normed(layer: nn.Conv2d | nn.ConvTranspose2d) -> nn.Sequential:
    return nn.Sequential(layer, nn.GroupNorm(GROUPS, layer.out_channels))


def _active(layer: nn.Conv2d | nn.ConvTranspose2d) -> nn.Sequential:
    return nn.Sequential(layer, nn.GroupNorm(GROUPS, layer.out_channels), nn.GELU())


def fcos(shape: Shape, classes: int, stride: int, width: int, depth: int, generator: torch.Generator) -> Fcos:
    """A head as training begins, drawn from the generator alone; a cell stands for at most ``stride`` pixels.

    Raises:
        StudyError: volumes, a backbone without maps, or one too coarse.
    """
    if shape.depth is not None:
        raise StudyError("detection is for flat pictures", where="data.depth", remedy='write data.volume = "middle"')
    if not shape.levels:
        raise StudyError("this backbone gives no maps for boxes", where="backbone.reference", remedy="take another")
    finest = shape.levels[0].stride
    finer = max(0, math.ceil(math.log2(finest / stride)))
    if 2**finer > FINEST:
        problem = f"cells of {stride} pixels are too fine for a backbone whose finest map has a stride of {finest}"
        raise StudyError(problem, where="task.stride", remedy=f"take {math.ceil(finest / FINEST)} or more")
    with torch.random.fork_rng(devices=[]):  # torch's layers draw from the global generator
        head = Fcos(shape.levels, classes, finer, shape.side // finest * 2**finer, width, depth)
    for module in head.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(module.weight, generator=generator)
    for output in (head.classes, head.centre, head.box):
        nn.init.normal_(output.weight, std=0.01, generator=generator)
        assert output.bias is not None
        nn.init.zeros_(output.bias)
    assert head.classes.bias is not None
    nn.init.constant_(head.classes.bias, -math.log((1 - PRIOR) / PRIOR))
    return head


@dataclass(frozen=True)
class Aims:
    """What a head should give, cell by cell.

    Attributes:
        classes: [N, K, H, W] 1 for the class of the cell's box, else 0.
        positive: [N, H, W] 1 where the cell has a box, else 0.
        centre: [N, H, W] how near the middle of its box the cell lies: 1 in the middle, 0 at an edge and without one.
        boxes: [N, H, W, 4] its box, in shares of the picture.
    """

    classes: Tensor
    positive: Tensor
    centre: Tensor
    boxes: Tensor


def aims(target: Tensor, classes: int, height: int, width: int, radius: float) -> Aims:
    """What targets [N, M, 5] (class or -1, then left, top, right, bottom in shares of the picture) ask of each cell.

    A cell belongs to the box in which its middle lies at most ``radius`` cells from the box's own (FCOS's centre
    sampling); of several to the smallest. The cell that holds a box's middle belongs to it however small it is.
    """
    kind, boxes = target[..., 0], target[..., 1:]
    across, down = places(height, width, target)
    near_x = _near(across, boxes[..., 0], boxes[..., 2], radius / width, 0.5 / width)  # [N, M, W]
    near_y = _near(down, boxes[..., 1], boxes[..., 3], radius / height, 0.5 / height)  # [N, M, H]
    own = near_y[..., :, None] & near_x[..., None, :] & (kind >= 0)[..., None, None]  # [N, M, H, W]
    area = (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1)[..., None, None]
    smallest, which = torch.where(own, area, torch.inf).min(dim=1)
    positive = torch.isfinite(smallest)
    flat = which.flatten(1)
    chosen = boxes.gather(1, flat[..., None].expand(-1, -1, 4)).unflatten(1, (height, width))
    named = torch.where(positive, kind.gather(1, flat).unflatten(1, (height, width)), -1.0)
    each = torch.arange(classes, device=target.device, dtype=target.dtype).view(1, -1, 1, 1)
    return Aims((named[:, None] == each).to(target.dtype), positive.to(target.dtype),
                _centred(chosen, across, down) * positive, chosen)  # fmt: skip


def places(height: int, width: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Middles of cells along x [W] and y [H], in shares of the picture."""
    across = (torch.arange(width, device=like.device, dtype=like.dtype) + 0.5) / width
    down = (torch.arange(height, device=like.device, dtype=like.dtype) + 0.5) / height
    return across, down


def _near(middles: Tensor, low: Tensor, high: Tensor, reach: float, half: float) -> Tensor:
    """[N, M, cells] whether a cell may belong to a box [N, M], as far as one axis tells."""
    low, high = low[..., None], high[..., None]
    distance = (middles - (low + high) / 2).abs()
    return ((distance <= reach) & (middles > low) & (middles < high)) | (distance <= half)


def _centred(boxes: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """FCOS's centre-ness (equation 3) of each cell in its box [N, H, W, 4]."""
    left, right = across - boxes[..., 0], boxes[..., 2] - across
    top, bottom = down[:, None] - boxes[..., 1], boxes[..., 3] - down[:, None]
    shares = [torch.minimum(a, b).clamp(min=0) / torch.maximum(a, b).clamp(min=1e-9) for a, b in
              ((left, right), (top, bottom))]  # fmt: skip
    return (shares[0] * shares[1]).sqrt()


def drawn(distances: Tensor) -> Tensor:
    """Boxes [N, H, W, 4], in shares of the picture, from logarithms [N, 4, H, W] of distances in cells."""
    height, width = distances.shape[-2:]
    across, down = places(height, width, distances)
    # no box reaches further than the whole picture, however wild the numbers
    left, top, right, bottom = distances.clamp(max=math.log(max(height, width))).exp().unbind(dim=1)
    rows = down[:, None]
    return torch.stack(
        [across - left / width, rows - top / height, across + right / width, rows + bottom / height], dim=-1
    )
