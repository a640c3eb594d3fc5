"""How MONAI's networks are seen: those with a decoder by its last features, the others by their stages or blocks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from polyclinic.models.backbones.encoder import Seen, View
from polyclinic.models.backbones.tokens import LEVELS, depths, seen
from polyclinic.models.contracts import Level

Arguments = Mapping[str, Any]
"""What one of MONAI's classes is told, by MONAI's own words."""


def average(grid: Tensor) -> Tensor:
    """[N, C, …] → [N, C]: the mean over all places."""
    return grid.flatten(2).mean(dim=2)


def unet(net: Any, arguments: Arguments) -> View:
    """UNet: one map, of the decoder; the mean is of the bottleneck, for which no decoder need run.

    A network whose last block was left out shows what that block was given, at the stride of the first one.
    """
    channels, whole = arguments["channels"], len(net.model) == 3

    def see(model: Any, pixels: Tensor, maps: bool) -> Seen:
        decoded, deep = _down_and_up(model.model, pixels, decode=maps)
        return Seen(average(deep), maps=(decoded,) if maps else ())

    given = 2 * channels[0] if len(channels) > 2 else channels[0] + channels[1]
    level = Level(arguments["out_channels"], 1) if whole else Level(given, arguments["strides"][0])
    return View(see, channels[-1], (level,), has_cls=False)


def _down_and_up(block: Any, flow: Tensor, *, decode: bool) -> tuple[Tensor, Tensor]:
    """(what a level of the U gives, what lies at its bottom); without ``decode`` the former is of no use."""
    from monai.networks.layers import SkipConnection

    down, skip, *up = block
    flow = down(flow)
    inner = skip.submodule
    if isinstance(inner, nn.Sequential) and isinstance(inner[1], SkipConnection):
        below, deep = _down_and_up(inner, flow, decode=decode)
    else:
        below = deep = inner(flow)
    if not decode:
        return deep, deep
    both = torch.cat([flow, below], dim=1)
    return up[0](both) if up else both, deep


def unetr(net: Any, arguments: Arguments) -> View:
    """UNETR: one map, of the decoder before its last convolution; the mean is of the transformer's last tokens."""

    def see(model: Any, pixels: Tensor, maps: bool) -> Seen:
        last, hidden = model.vit(pixels)
        if not maps:
            return Seen(last.mean(dim=1))
        at = {3: model.encoder2, 6: model.encoder3, 9: model.encoder4}
        skips = [model.encoder1(pixels), *(step(model.proj_feat(hidden[i])) for i, step in at.items())]
        flow = model.proj_feat(last)
        for up in (model.decoder5, model.decoder4, model.decoder3, model.decoder2):
            flow = up(flow, skips.pop())
        return Seen(last.mean(dim=1), maps=(flow,))

    return View(see, arguments["hidden_size"], (Level(arguments["feature_size"], 1),), has_cls=False)


def swinunetr(net: Any, arguments: Arguments) -> View:
    """SwinUNETR: one map, of the decoder before its last convolution; the mean is of the bottleneck."""

    def see(model: Any, pixels: Tensor, maps: bool) -> Seen:
        hidden = model.swinViT(pixels, model.normalize)
        flow = deep = model.encoder10(hidden[4])
        if not maps:
            return Seen(average(deep))
        flow = model.decoder5(flow, hidden[3])
        flow = model.decoder4(flow, model.encoder4(hidden[2]))
        flow = model.decoder3(flow, model.encoder3(hidden[1]))
        flow = model.decoder2(flow, model.encoder2(hidden[0]))
        return Seen(average(deep), maps=(model.decoder1(flow, model.encoder1(pixels)),))

    width = arguments["feature_size"]
    return View(see, 16 * width, (Level(width, 1),), has_cls=False)


def densenet(net: Any, arguments: Arguments) -> View:
    """DenseNet: a map of every dense block, the last one normalised and rectified as the classifier was given it."""
    blocks, width, levels = arguments["block_config"], arguments["init_features"], []
    for i, count in enumerate(blocks):
        width = (width // 2 if i else width) + count * arguments["growth_rate"]
        levels.append(Level(width, 4 * 2**i))

    def see(model: Any, pixels: Tensor, maps: bool) -> Seen:
        flow, found = pixels, []
        for name, part in model.features.named_children():
            flow = part(flow)
            if name.startswith("denseblock") and name != f"denseblock{len(blocks)}":
                found.append(flow)
        last = torch.relu(flow)
        return Seen(average(last), maps=(*found, last) if maps else ())

    return View(see, width, tuple(levels), has_cls=False)


def vit(net: Any, arguments: Arguments) -> View:
    """ViT: maps at four depths, the last after the normalisation; a class token where it was made with one."""
    patch, leading = arguments["patch_size"], int(hasattr(net, "cls_token"))

    def see(model: Any, pixels: Tensor, maps: bool) -> Seen:
        last, hidden = model(pixels)
        others = [hidden[i - 1] for i in depths(len(hidden))[:-1]] if maps else []
        return seen(last, others, leading, [side // patch for side in pixels.shape[2:]], maps=maps)

    width = arguments["hidden_size"]
    return View(see, width, (Level(width, patch),) * LEVELS, has_cls=bool(leading), leading=leading)
