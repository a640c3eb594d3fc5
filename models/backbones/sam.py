"""The image encoder of Segment Anything, at sizes other than the one that it was trained at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from polyclinic.models.backbones.encoder import Seen, View
from polyclinic.models.backbones.tokens import LEVELS, depths
from polyclinic.models.contracts import Level

OWN = "vision_encoder."
"""What precedes the names of the encoder's weights; those of prompts and of the mask decoder are left out."""


def view(module: Any) -> View:
    """SAM: blocks' maps at three depths and the neck's output, over whose places the mean is."""
    config = module.config

    def see(model: nn.Module, pixels: Tensor, maps: bool) -> Seen:
        found = model(pixels, output_hidden_states=maps)
        last = found.last_hidden_state
        mean = last.mean(dim=(2, 3))
        if not maps:
            return Seen(mean)
        looked = depths(len(found.hidden_states) - 1)[:-1]
        return Seen(mean, maps=(*(found.hidden_states[i].permute(0, 3, 1, 2) for i in looked), last))

    patch = config.patch_size
    levels = (*(Level(config.hidden_size, patch),) * (LEVELS - 1), Level(config.output_channels, patch))
    return View(see, config.output_channels, levels, has_cls=False)


def fit(state: Mapping[str, Tensor], config: Any) -> dict[str, Tensor]:
    """The encoder's weights for pictures of ``config.image_size``, as SAM's users resize them.

    The absolute position embeddings are interpolated bilinearly and the relative ones of layers that look at the whole
    picture linearly (Zhang and Liu 2023, SAMed, arXiv 2304.13785; the encoder interpolates the latter so itself).
    Windows, and their relative embeddings, stay as they are.

    Raises:
        ValueError: a relative embedding is for another window than the configuration says.
    """
    own = {name: weight for name, weight in state.items() if name.startswith(OWN)}
    side, place = config.image_size // config.patch_size, f"{OWN}pos_embed"
    native = side
    if config.use_abs_pos and place in own:
        native = own[place].shape[1]
        square = own[place].permute(0, 3, 1, 2)
        if native != side:
            square = F.interpolate(square, size=(side, side), mode="bilinear", align_corners=False)
        own[place] = square.permute(0, 2, 3, 1)
    for name, weight in own.items():
        if ".rel_pos_" in name:
            everywhere = int(name.split(".")[2]) in config.global_attn_indexes
            if len(weight) != 2 * (native if everywhere else config.window_size) - 1:
                raise ValueError(f"{name} has {len(weight)} rows, which is for another window")
            if everywhere and native != side:
                own[name] = F.interpolate(weight.t()[None], size=2 * side - 1, mode="linear")[0].t()
    return own
