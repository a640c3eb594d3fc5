"""Losses of segmentation: the mean over pictures, each by itself; pixels that are ignored count nowhere."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from polyclinic.models.contracts import IGNORED


def cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Mean over pictures of the mean over a picture's pixels; output [N, C, …], target uint8 [N, …]."""
    each = F.cross_entropy(output, target.long(), ignore_index=IGNORED, reduction="none").flatten(1)
    counted = (target != IGNORED).flatten(1).sum(dim=1).clamp_min(1)
    return (each.sum(dim=1) / counted).mean()


def dice(output: Tensor, target: Tensor) -> Tensor:
    """MONAI's soft Dice loss over foreground classes, mean over pictures and classes."""
    from monai.losses import DiceLoss

    loss = DiceLoss(include_background=False, softmax=True, to_onehot_y=True, ignore_index=IGNORED)
    found: Tensor = loss(output, target.long()[:, None])
    return found


def boundary(output: Tensor, target: Tensor) -> Tensor:
    """The boundary loss of Kervadec et al. 2019 (arXiv 1812.07032), equation 5, in pixels.

    Mean over pixels and foreground classes of probability times signed distance to the true boundary, which is
    negative within; a class that is absent from a picture, or fills it, has no boundary and adds nothing.
    """
    counted = (target != IGNORED)[:, None]
    distances = signed_distances(target, output.shape[1]).to(output.device)
    each = (output.softmax(dim=1)[:, 1:] * distances * counted).flatten(1).sum(dim=1)
    pixels = counted.flatten(1).sum(dim=1).clamp_min(1) * (output.shape[1] - 1)
    return (each / pixels).mean()


def signed_distances(target: Tensor, options: int) -> Tensor:
    """float32 [N, options - 1, …]: how far each pixel lies from every foreground class, below 0 within it.

    Within, it is one pixel less than the distance to the outside, so that a boundary's own pixels have 0, as in the
    authors' code.
    """
    from scipy.ndimage import distance_transform_edt

    masks = target.cpu().numpy()
    found = np.zeros((len(masks), options - 1, *masks.shape[1:]), dtype=np.float32)
    for i, mask in enumerate(masks):
        for k in range(1, options):
            inside = mask == k
            if inside.any() and not inside.all():
                outward, inward = distance_transform_edt(~inside), distance_transform_edt(inside)
                found[i, k - 1] = np.where(inside, 1.0 - inward, outward)
    return torch.from_numpy(found)
