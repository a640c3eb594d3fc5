"""Windows: pictures and volumes that are larger than what the model sees at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from polyclinic.models.contracts import IGNORED, Views


def cropped(views: Views, size: tuple[int, ...], generator: torch.Generator) -> Views:
    """One window of ``size`` (along (D,) H, W) of each picture and its mask.

    Every other window on average is centred, as far as it fits, on a random pixel of any class, the rest lie anywhere:
    what is small would hardly ever be seen otherwise (MONAI's RandCropByPosNegLabel does the same).
    """
    whole = views.target.shape[1:]
    room = torch.tensor(whole) - torch.tensor(size)
    pixels, targets = [], []
    for picture, mask in zip(views.pixels, views.target, strict=True):
        coin, which, *at = torch.rand(2 + len(size), generator=generator, dtype=torch.float64).tolist()
        corner = (torch.tensor(at) * (room + 1)).long()
        labelled = ((mask > 0) & (mask != IGNORED)).nonzero() if coin < 0.5 else mask.new_zeros((0, len(size)))
        if len(labelled):
            centre = labelled[int(which * len(labelled))].cpu()
            corner = (centre - torch.tensor(size) // 2).clamp(min=torch.zeros_like(room), max=room)
        part = tuple(slice(a, a + length) for a, length in zip(corner.tolist(), size, strict=True))
        pixels.append(picture[(slice(None), *part)])
        targets.append(mask[part])
    return Views(torch.stack(pixels), torch.stack(targets))


def slid(model: Callable[[Tensor], Tensor], pixels: Tensor, size: tuple[int, ...], overlap: float) -> Tensor:
    """Outputs for whole pictures [N, C, (D,) S, S]: of overlapping windows, a window's middle counting most."""
    from monai.inferers import sliding_window_inference

    found: Tensor = sliding_window_inference(pixels, size, 4, model, overlap, mode="gaussian")
    return found
