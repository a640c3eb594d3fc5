"""Augmentation policies of MONAI's intensity transforms: what a scanner or a technician might have done otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from polyclinic.core.config import Method
from polyclinic.core.facts import Facts
from polyclinic.models.adaptation import Adaptation
from polyclinic.models.contracts import Task, Views

Policy = Literal["light", "strong", "ct", "mri", "photo"]


class MonaiAugment(Method):
    """``method = "augment_monai"``: each training picture goes through a named policy of MONAI's random transforms.

    - "light": noise, blur, brightness and contrast, each now and then and little.
    - "strong": more of the same, a shifted histogram, and holes (Cutout).
    - "ct": noise as of a low dose, a softer kernel, another window.
    - "mri": a bias field, Rician noise, ringing (Gibbs), a spike in k-space, contrast.
    - "photo": channels scaled apart (white balance), blur, noise, gamma.

    They change values and never places, so that targets stay true; for shifts, turns and flips put ``augment`` before.
    Pictures and volumes alike; what leaves [0, 1] is cut off. ``share`` of the pictures are changed at all.
    """

    facts: ClassVar[Facts] = Facts(
        families=("data",),
        paper="Cardoso et al. 2022 (MONAI), arXiv 2211.02701",
        exact_private=True,
        because="each picture is changed by itself",
    )

    method: Literal["augment_monai"] = "augment_monai"
    policy: Policy = "light"
    share: float = Field(default=1.0, gt=0.0, le=1.0)

    def build(self) -> Adaptation:
        """The adaptation."""
        return Adaptation(families=frozenset({"data"}), batch=self._batch)

    def explain(self) -> str:
        """What it does."""
        return f"Training pictures go through MONAI's random transforms of the policy '{self.policy}'."

    def _batch(self, model: nn.Module, task: Task, views: Views, generator: torch.Generator) -> Views:
        return Views(changed(views.pixels, self.policy, generator, self.share), views.target)


def changed(pixels: Tensor, policy: str, generator: torch.Generator, share: float = 1.0) -> Tensor:
    """Pictures [N, C, (D,) S, S] in [0, 1], each through the policy by itself with a seed from the generator."""
    from monai.transforms import Compose
    from monai.utils import convert_to_tensor

    transform = Compose(POLICIES[policy](pixels.shape[-1]))
    seeds = torch.randint(2**31 - 1, (len(pixels),), generator=generator).tolist()
    wanted = (torch.rand(len(pixels), generator=generator) < share).tolist()
    seen = [
        # a copy: some of the transforms write into what they are given
        convert_to_tensor(transform.set_random_state(seed=seed)(picture.clone())) if chosen else picture
        for picture, seed, chosen in zip(pixels, seeds, wanted, strict=True)
    ]
    return torch.stack(seen).to(pixels).clamp(0.0, 1.0)


def _light(side: int) -> list[Any]:
    from monai.transforms import RandAdjustContrast, RandGaussianNoise, RandGaussianSmooth, RandScaleIntensity

    return [
        RandScaleIntensity(factors=0.1, prob=0.5),
        RandAdjustContrast(prob=0.3, gamma=(0.8, 1.25)),
        RandGaussianSmooth(prob=0.2, **_blur(0.25, 0.75)),
        RandGaussianNoise(prob=0.2, std=0.02),
    ]


def _strong(side: int) -> list[Any]:
    from monai.transforms import (
        RandAdjustContrast,
        RandCoarseDropout,
        RandGaussianNoise,
        RandGaussianSmooth,
        RandHistogramShift,
        RandScaleIntensity,
        RandShiftIntensity,
    )

    return [
        RandScaleIntensity(factors=0.4, prob=0.8),
        RandShiftIntensity(offsets=0.2, prob=0.5),
        RandAdjustContrast(prob=0.5, gamma=(0.5, 2.0)),
        RandHistogramShift(num_control_points=(4, 8), prob=0.3),
        RandGaussianSmooth(prob=0.3, **_blur(0.5, 1.5)),
        RandGaussianNoise(prob=0.5, std=0.08),
        RandCoarseDropout(
            holes=1, max_holes=3, spatial_size=max(1, side // 16), max_spatial_size=side // 4, fill_value=0.5, prob=0.8
        ),
    ]


def _ct(side: int) -> list[Any]:
    from monai.transforms import RandGaussianNoise, RandGaussianSmooth, RandScaleIntensity, RandShiftIntensity

    return [
        RandGaussianSmooth(prob=0.3, **_blur(0.4, 1.0)),
        RandGaussianNoise(prob=0.5, std=0.05),
        RandScaleIntensity(factors=0.15, prob=0.5),
        RandShiftIntensity(offsets=0.1, prob=0.5),
    ]


def _mri(side: int) -> list[Any]:
    from monai.transforms import (
        RandAdjustContrast,
        RandBiasField,
        RandGibbsNoise,
        RandKSpaceSpikeNoise,
        RandRicianNoise,
    )

    return [
        RandBiasField(degree=3, coeff_range=(0.0, 0.15), prob=0.5),
        RandAdjustContrast(prob=0.4, gamma=(0.7, 1.5)),
        RandGibbsNoise(prob=0.2, alpha=(0.2, 0.6)),
        RandKSpaceSpikeNoise(prob=0.05, channel_wise=False),
        RandRicianNoise(prob=0.3, mean=0.0, std=0.04),
    ]


def _photo(side: int) -> list[Any]:
    from monai.transforms import RandAdjustContrast, RandGaussianNoise, RandGaussianSmooth, RandScaleIntensity

    return [
        RandScaleIntensity(factors=0.15, prob=0.7, channel_wise=True),
        RandAdjustContrast(prob=0.5, gamma=(0.7, 1.4)),
        RandGaussianSmooth(prob=0.2, **_blur(0.25, 1.0)),
        RandGaussianNoise(prob=0.3, std=0.03),
    ]


def _blur(low: float, high: float) -> dict[str, tuple[float, float]]:
    return dict.fromkeys(("sigma_x", "sigma_y", "sigma_z"), (low, high))


POLICIES: Mapping[str, Callable[[int], list[Any]]] = {
    "light": _light, "strong": _strong, "ct": _ct, "mri": _mri, "photo": _photo,
}  # fmt: skip
"""Policy → its transforms for pictures of a side."""
