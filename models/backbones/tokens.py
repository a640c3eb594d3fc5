"""Plain vision transformers: a grid of patches' tokens, one stack of blocks, one normalisation after it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyclinic.models.backbones.encoder import Cut, Parts, See, Seen, View
from polyclinic.models.contracts import Level

LEVELS = 4
"""Depths of a plain transformer at which a decoder looks in."""


@dataclass(frozen=True)
class Plain:
    """Where transformers keeps the parts of one family.

    Attributes:
        stack: name of the list of blocks.
        norm: name of the normalisation after them.
        rotary: whether blocks are told the places of patches as angles.
    """

    stack: str
    norm: str
    rotary: bool = False


def view(plain: Plain, module: Any) -> View:
    """How a model of transformers' is seen; tokens that are appended after the patches' are left out."""
    config = module.config
    leading, width, patch = 1 + int(getattr(config, "num_register_tokens", 0)), config.hidden_size, config.patch_size
    return View(
        tokens(leading, patch),
        width,
        (Level(width, patch),) * LEVELS,
        leading=leading,
        cut=Cut(plain.stack, (plain.norm,), partial(_prefix, plain), partial(_suffix, plain, leading, patch)),
    )


def depths(blocks: int) -> list[int]:
    """After how many of ``blocks`` blocks a decoder looks in: evenly spaced, the last after all of them."""
    return [round(blocks * (i + 1) / LEVELS) for i in range(LEVELS)]


def grid(states: Tensor, leading: int, sides: Sequence[int]) -> Tensor:
    """Patches' tokens [N, leading + places + …, width] as a map [N, width, *sides]."""
    places = int(torch.Size(sides).numel())
    return states[:, leading : leading + places].transpose(1, 2).reshape(len(states), -1, *sides)


def seen(last: Tensor, others: Sequence[Tensor], leading: int, sides: Sequence[int], *, maps: bool) -> Seen:
    """What the tokens of the last block, normalised, and those of the blocks before that are looked at, show."""
    places = last[:, leading : leading + int(torch.Size(sides).numel())]
    found = tuple(grid(one, leading, sides) for one in (*others, last)) if maps else ()
    return Seen(places.mean(dim=1), last[:, 0] if leading else None, found)


def tokens(leading: int, patch: int, depth_patch: int | None = None) -> See:
    """How transformers' plain vision transformers are seen: maps at four depths, the last after the normalisation.

    ``depth_patch`` is how many slices of a volume a patch takes.
    """
    patches = (patch, patch) if depth_patch is None else (depth_patch, patch, patch)

    def see(module: nn.Module, pixels: Tensor, maps: bool) -> Seen:
        sides = [side // one for side, one in zip(pixels.shape[2:], patches, strict=True)]
        found = module(pixel_values=pixels, output_hidden_states=maps)
        states = found.hidden_states or ()
        others = [states[i] for i in depths(len(states) - 1)[:-1]] if maps else []
        return seen(found.last_hidden_state, others, leading, sides, maps=maps)

    return see


def _blocks(plain: Plain, module: nn.Module, states: Tensor, span: range, given: dict[str, Any]) -> list[Tensor]:
    """The tokens after each block of ``span``."""
    stack, after = module.get_submodule(plain.stack), []
    for i in span:
        states = stack.get_submodule(str(i))(states, **given)
        after.append(states)
    return after


def _angles(plain: Plain, module: Any, like: Tensor, sides: tuple[int, int]) -> dict[str, Any]:
    """What each block is told besides the tokens; only the size of the pictures matters for it."""
    return {"position_embeddings": module.rope_embeddings(like.new_empty((0, 0, *sides)))} if plain.rotary else {}


def _prefix(plain: Plain, module: Any, pixels: Tensor, k: int, maps: bool) -> Parts:
    """(tokens after block k - 1, then those of looked-at depths below k)."""
    first = module.embeddings(pixels)
    told = _angles(plain, module, pixels, (pixels.shape[-2], pixels.shape[-1]))
    after = [first, *_blocks(plain, module, first, range(k), told)]
    looked = depths(len(module.get_submodule(plain.stack)))[:-1] if maps else []
    return (after[-1], *(after[i] for i in looked if i <= k))


def _suffix(
    plain: Plain, leading: int, patch: int, module: Any, parts: Parts, k: int, sides: tuple[int, int], maps: bool
) -> Seen:
    """What follows from it."""
    states, *others = parts
    count = len(module.get_submodule(plain.stack))
    after = _blocks(plain, module, states, range(k, count), _angles(plain, module, states, sides))
    last = module.get_submodule(plain.norm)(after[-1] if after else states)
    looked = [after[i - k - 1] for i in depths(count)[:-1] if i > k] if maps else []
    return seen(last, [*others, *looked], leading, [side // patch for side in sides], maps=maps)


def resize_positions(positions: Tensor, patches: int, *, antialias: bool = False, leading: int = 1) -> Tensor:
    """Position embeddings [1, leading + old, width] for another number of patches, bicubic on the square grid.

    The families' own interpolation: with ``antialias`` as DINOv2 with registers does it, without as the others do.
    """
    old = positions.shape[1] - leading
    if old == patches:
        return positions
    before, after = round(old**0.5), round(patches**0.5)
    if before**2 != old:
        raise ValueError(f"{old} position embeddings are no square")
    square = positions[:, leading:].reshape(1, before, before, -1).permute(0, 3, 1, 2)
    square = F.interpolate(square, size=(after, after), mode="bicubic", align_corners=False, antialias=antialias)
    return torch.cat([positions[:, :leading], square.permute(0, 2, 3, 1).reshape(1, patches, -1)], dim=1)
