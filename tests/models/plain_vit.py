"""The tiny ViT in plain torch, from its weights alone: what the adapted networks are held to."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyclinic.core import study as studies
from polyclinic.core.study import Study

ROOT, HEADS, EPS = "backbone.encoder.", 2, 1e-12
Weights = Mapping[str, Tensor]


def study_of(reference: str, *tables: str, more: str = "", size: int = 32, data: str = "") -> Study:
    """A study with a chain of these tables."""
    chain = "".join(f"[[adaptation]]\n{table}\n" for table in tables)
    return studies.loads(
        f'[study]\nname = "tiny"\nseed = 3\n[data]\nimage_size = {size}\n{data}\n'
        f'[backbone]\nreference = "{reference}"\n{chain}{more}'
    )


def on(vit: Path, *tables: str, more: str = "", size: int = 32, data: str = "") -> Study:
    """The same on the tiny ViT."""
    return study_of(f"file:{vit}", *tables, more=more, size=size, data=data)


def pixels(count: int = 2, size: int = 32) -> Tensor:
    return torch.rand((count, 3, size, size), generator=torch.Generator().manual_seed(1))


def outputs(model: nn.Module, given: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(pixels() if given is None else given)
    return result


def shaken(adapted: Any, seed: int = 2, by: float = 0.1) -> None:
    """Nothing that travels is where it started."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in adapted.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator) * by)


@dataclass(frozen=True)
class Attended:
    """What an attention gave, and the queries, keys [N, heads, T, d] and weights [N, heads, T, T] behind it."""

    output: Tensor
    queries: Tensor
    keys: Tensor
    weights: Tensor


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def norm(w: Weights, name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.pow(2).mean(-1, keepdim=True) + EPS).sqrt()
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def embed(w: Weights, given: Tensor) -> Tensor:
    """Tokens [N, 1 + patches, width] of pictures in [0, 1], the normalisation of the tiny ViT before."""
    kernel = w[f"{ROOT}embeddings.patch_embeddings.projection.weight"]
    patches = F.conv2d((given - 0.5) / 0.25, kernel, stride=kernel.shape[-1]).flatten(2).transpose(1, 2)
    patches = patches + w[f"{ROOT}embeddings.patch_embeddings.projection.bias"]
    cls = w[f"{ROOT}embeddings.cls_token"].expand(len(given), -1, -1)
    return torch.cat([cls, patches], 1) + w[f"{ROOT}embeddings.position_embeddings"]


def attention(w: Weights, i: int, x: Tensor, bias: Tensor | float = 0.0) -> Attended:
    """Attention of block ``i`` over normalised tokens; ``bias`` is added before softmax."""
    name = f"{ROOT}layers.{i}.attention."

    def split(x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:2], HEADS, -1).transpose(1, 2)

    q, k, v = (split(linear(w, name + part, x)) for part in ("q_proj", "k_proj", "v_proj"))
    weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias).softmax(-1)
    return Attended(linear(w, f"{name}o_proj", (weights @ v).transpose(1, 2).flatten(2)), q, k, weights)


def mlp(w: Weights, i: int, x: Tensor) -> Tensor:
    name = f"{ROOT}layers.{i}.mlp."
    return linear(w, f"{name}fc2", F.gelu(linear(w, f"{name}fc1", x)))


def block(
    w: Weights,
    i: int,
    x: Tensor,
    *,
    bias: Tensor | float = 0.0,
    after_attention: Callable[[Tensor], Tensor] = lambda branch: branch,
    between: Callable[[Tensor, Attended], Tensor] = lambda tokens, attended: tokens,
    after_mlp: Callable[[Tensor, Tensor], Tensor] = lambda branch, given: branch,
) -> Tensor:
    """Block ``i``, with what the papers put into it."""
    name = f"{ROOT}layers.{i}."
    attended = attention(w, i, norm(w, f"{name}layernorm_before", x), bias)
    x = between(x + after_attention(attended.output), attended)
    given = norm(w, f"{name}layernorm_after", x)
    return x + after_mlp(mlp(w, i, given), given)


def decide(w: Weights, x: Tensor, patches: int = 16) -> Tensor:
    """Outputs of the head over tokens after the last block, pooled as "cls+mean"."""
    last = norm(w, f"{ROOT}layernorm", x)
    return linear(w, "head", torch.cat([last[:, 0], last[:, 1 : 1 + patches].mean(1)], 1))
