"""The laws of backbones."""

from __future__ import annotations

import torch

from polyclinic.core.errors import BackboneError
from polyclinic.core.laws import hold
from polyclinic.core.study import Study
from polyclinic.models import backbones
from polyclinic.models.laws.made_up import IMAGES, alike, seen
from polyclinic.models.network import plain


def check_backbone(study: Study, *, exact_hash: bool = True) -> None:
    """The study's backbone: frozen, the same each time, true to its shapes, and looking at each picture by itself.

    Args:
        study: with the backbone.
        exact_hash: whether another pinned hash must be refused.

    Raises:
        AssertionError: a law is broken.
    """
    network = plain(study)
    backbone, pixels = network.backbone, seen(study)
    hold(not any(weight.requires_grad for weight in backbone.parameters()), "a weight of the backbone is not frozen")
    hold(
        not any(module.training for module in backbone.encoder.modules()), "a part of the backbone is in training mode"
    )
    hold(len(backbone.sha256) == 64 and int(backbone.sha256, 16) >= 0, "sha256 is no SHA-256 in hex")
    with torch.no_grad():
        one, again = (backbone.encode(pixels, maps=bool(backbone.levels)) for _ in range(2))
        alone = torch.cat([backbone(picture[None]) for picture in pixels])
        colours = pixels.expand(-1, backbone.mean.shape[1], *pixels.shape[2:])
        hold(alike(backbone(colours), one.pooled), "a grey picture is not seen as one of equal channels")
    hold(one.pooled.shape == (IMAGES, backbone.width), f"pooled features are not of width {backbone.width}")
    hold(torch.equal(one.pooled, again.pooled), "the same pictures are seen otherwise the second time")
    hold(alike(alone, one.pooled), "a picture is seen otherwise beside others than alone")
    hold(len(one.maps) == len(backbone.levels), "there are not as many maps as levels")
    for found, level in zip(one.maps, backbone.levels, strict=True):
        side = study.data.image_size // level.stride
        fits = found.shape[1] == level.channels and tuple(found.shape[-2:]) == (side, side)
        hold(found.ndim == pixels.ndim, "a map has other dimensions than the pictures")
        hold(fits, f"a map is {tuple(found.shape[1:])}, its level says {level.channels} channels of {side} × {side}")
    if exact_hash:
        wrong = study.model_copy(update={"backbone": study.backbone.model_copy(update={"sha256": "0" * 64})})
        try:
            backbones.load(wrong)
        except BackboneError:
            return
        raise AssertionError("weights of another hash than the pinned one are taken")
