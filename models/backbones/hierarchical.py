"""Networks whose maps become coarser from stage to stage: Swin, ConvNeXt, and ConvNeXt as DINOv3 has it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyclinic.models.backbones.encoder import Seen, View
from polyclinic.models.contracts import Level


def swin(module: Any) -> View:
    """Swin: a stage's map before it is merged, the last one normalised; the mean is over its places."""
    config = module.config
    fit_windows(module)

    def see(model: nn.Module, pixels: Tensor, maps: bool) -> Seen:
        found = model(pixels, output_hidden_states=maps, output_hidden_states_before_downsampling=True)
        last = found.last_hidden_state
        if not maps:
            return Seen(last.mean(dim=1))
        stages = found.reshaped_hidden_states[1:]
        end = last.transpose(1, 2).reshape(stages[-1].shape)
        return Seen(last.mean(dim=1), maps=(*stages[:-1], end))

    levels = tuple(Level(config.embed_dim * 2**i, config.patch_size * 2**i) for i in range(len(config.depths)))
    return View(see, config.hidden_size, levels, has_cls=False)


def fit_windows(module: Any) -> None:
    """Windows no larger than the grid they lie on, as Swin's authors have it, in place.

    Where a stage's grid is not larger than the window, the window is the grid and is not shifted; the table of relative
    biases [(2·w - 1)², heads] is then interpolated, bicubic, as ``load_pretrained`` of the authors' code does it.
    """
    from transformers.models.swin.modeling_swin import SwinRelativePositionBias

    for stage in module.encoder.layers:
        for block in stage.blocks:
            side = min(block.input_resolution)
            if side > block.window_size:
                continue
            block.shift_size = 0
            if side == block.window_size:
                continue
            old, block.window_size = block.attention.relative_position_bias, side
            new = SwinRelativePositionBias(block.attention.num_attention_heads, (side, side))
            with torch.no_grad():
                new.relative_position_bias_table.copy_(resize_table(old.relative_position_bias_table, 2 * side - 1))
            block.attention.relative_position_bias = new


def resize_table(table: Tensor, side: int) -> Tensor:
    """Relative biases [before², heads] → [side², heads], bicubic."""
    before = round(len(table) ** 0.5)
    square = table.t().reshape(1, -1, before, before)
    return F.interpolate(square, size=(side, side), mode="bicubic").reshape(-1, side * side).t()


def convnext(module: Any) -> View:
    """ConvNeXt: every stage's map as it is; the mean over the last one's places, normalised as the network does it."""
    config = module.config

    def see(model: nn.Module, pixels: Tensor, maps: bool) -> Seen:
        found = model(pixels, output_hidden_states=maps)
        return Seen(found.pooler_output, maps=tuple(found.hidden_states[1:]) if maps else ())

    return View(see, config.hidden_sizes[-1], _halving(config.hidden_sizes, 4), has_cls=False)


def _halving(widths: list[int], finest: int) -> tuple[Level, ...]:
    return tuple(Level(width, finest * 2**i) for i, width in enumerate(widths))
