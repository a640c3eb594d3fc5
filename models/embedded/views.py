"""From images to training views: the i-th picture of a seed, bundled photographs, and random views of a batch.

Besides procedural images, views are cut from photographs that travel inside two packages: scikit-learn's two (CC BY
2.0, credited in NOTICE) and, where scikit-image is installed, ten of its own (CC0 or public domain). No patient's image
is used.
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from polyclinic.models.embedded import anatomy, images

Pixels = NDArray[np.uint8]

MAKERS: tuple[tuple[images.Maker, float], ...] = (
    (images.texture, 2.0),
    (images.surface, 2.5),
    (images.leaves, 2.5),
    (images.fractal, 1.0),
    (images.strokes, 1.0),
    (anatomy.chest, 2.0),
    (anatomy.section, 1.0),
    (anatomy.lesion, 3.0),
    (anatomy.fundus, 1.0),
    (anatomy.cells, 1.5),
    (anatomy.ultrasound, 0.5),
)
"""Who draws, and how often."""

SKIMAGE = (
    "brick.png", "camera.png", "cell.png", "chelsea.png", "clock_motion.png", "coffee.png", "grass.png", "gravel.png",
    "hubble_deep_field.jpg", "rocket.jpg",
)  # fmt: skip
"""scikit-image's files that are CC0 or in the public domain by its own notes, and show no patient."""


def procedural(seed: int, index: int, size: int) -> Pixels:
    """The `index`-th procedural image of a seed: RGB, uint8, (size, size, 3). Same arguments, same image."""
    rng = np.random.default_rng([seed, index])
    shares = np.array([share for _, share in MAKERS])
    maker, _ = MAKERS[int(rng.choice(len(MAKERS), p=shares / shares.sum()))]
    return np.rint(np.clip(maker(rng, size), 0, 1) * 255).astype(np.uint8)


def photographs() -> list[Image.Image]:
    """The bundled photographs, RGB, in a fixed order; scikit-image's are absent if it is not installed."""
    from sklearn.datasets import load_sample_images

    found = [Image.fromarray(array) for array in load_sample_images().images]
    spec = find_spec("skimage")
    for place in (spec.submodule_search_locations or []) if spec else []:
        found += [Image.open(Path(place, "data", name)).convert("RGB") for name in SKIMAGE]
    return found


def crop(photo: Image.Image, rng: np.random.Generator, size: int) -> Pixels:
    """A square of a photograph, from 96 pixels up to its shorter side, resized with smoothing to (size, size, 3)."""
    short = min(photo.size)
    side = math.exp(rng.uniform(math.log(96), math.log(short)))
    left, top = rng.uniform(0, photo.width - side), rng.uniform(0, photo.height - side)
    box = (left, top, left + side, top + side)
    return np.asarray(photo.resize((size, size), Image.Resampling.BICUBIC, box=box), dtype=np.uint8)


def base(photos: list[Image.Image], share: float, seed: int, index: int, size: int) -> Pixels:
    """The `index`-th base image: a photograph's crop with probability `share`, otherwise procedural."""
    rng = np.random.default_rng([seed, index, 1])
    if photos and rng.random() < share:
        return crop(photos[int(rng.integers(len(photos)))], rng, size)
    return procedural(seed, index, size)


def uniform(generator: torch.Generator, count: int, low: float, high: float) -> Tensor:
    """`count` numbers between `low` and `high`: shape (count, 1, 1, 1)."""
    return torch.rand(count, 1, 1, 1, generator=generator) * (high - low) + low


def place(batch: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Random crop (side 0.35 to 1 of the image), aspect, turn and mirror: (N, 3, S, S) to (N, 3, size, size)."""
    count = len(batch)
    side = torch.exp(uniform(generator, count, math.log(0.35), 0.0)).view(count)
    aspect = torch.exp(uniform(generator, count, -0.2, 0.2)).view(count)
    angle = uniform(generator, count, -math.pi, math.pi).view(count)
    upright = torch.rand(count, generator=generator) < 0.5
    angle = torch.where(upright, 0.1 * angle, angle)
    mirror = (torch.rand(count, generator=generator) < 0.5).float() * 2 - 1
    tall, wide = side * aspect, side / aspect * mirror
    across, down = uniform(generator, count, -1, 1).view(count), uniform(generator, count, -1, 1).view(count)
    theta = torch.stack(
        [
            torch.stack([wide * angle.cos(), -tall * angle.sin(), across * (1 - side)], dim=1),
            torch.stack([wide * angle.sin(), tall * angle.cos(), down * (1 - side)], dim=1),
        ],
        dim=1,
    )
    where = functional.affine_grid(theta, [count, 3, size, size], align_corners=False)
    return functional.grid_sample(batch, where, padding_mode="reflection", align_corners=False)


def light(batch: Tensor, generator: torch.Generator) -> Tensor:
    """Random grey conversion (35 %), colour mixing, contrast, brightness, gamma, blur and noise: same shape, [0, 1]."""
    count = len(batch)
    grey = (torch.rand(count, 1, 1, generator=generator) < 0.35).float()
    strength = 0.18 * torch.rand(count, 1, 1, generator=generator)
    mixing = torch.eye(3) + strength * torch.randn(count, 3, 3, generator=generator)
    luma = torch.tensor([0.299, 0.587, 0.114]).expand(3, 3)
    batch = torch.einsum("nij,njhw->nihw", grey * luma + (1 - grey) * mixing, batch)
    middle = batch.mean(dim=(1, 2, 3), keepdim=True)
    contrast = torch.exp(uniform(generator, count, -0.5, 0.4))
    batch = ((batch - middle) * contrast + middle + uniform(generator, count, -0.15, 0.15)).clamp(0, 1)
    batch = (batch + 1e-4) ** torch.exp(uniform(generator, count, -0.4, 0.4))
    blurred = functional.avg_pool2d(batch, 3, stride=1, padding=1, count_include_pad=False)
    batch = torch.lerp(batch, blurred, (uniform(generator, count, -1.5, 1)).clamp(min=0))
    grain = uniform(generator, count, -0.05, 0.05).clamp(min=0)
    return (batch + grain * torch.randn(batch.shape, generator=generator)).clamp(0, 1)


def mix(batch: Tensor, generator: torch.Generator) -> Tensor:
    """A fifth of the views blended with another, a fifth pasted through a third one's bright parts; same shape."""
    count = len(batch)
    partner, stencil = (batch[torch.randperm(count, generator=generator)] for _ in range(2))
    kind = torch.rand(count, 1, 1, 1, generator=generator)
    blend = torch.rand(count, 1, 1, 1, generator=generator) * 0.5
    luma = functional.avg_pool2d(stencil.mean(dim=1, keepdim=True), 9, stride=1, padding=4, count_include_pad=False)
    cut = torch.sigmoid(30 * (luma - luma.mean(dim=(2, 3), keepdim=True)))
    weight = torch.where(kind < 0.2, blend, torch.where(kind < 0.4, cut, torch.zeros(())))
    return torch.lerp(batch, partner, weight)


def views(bases: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Random views of base images: uint8 (N, S, S, 3) to float (N, 3, size, size) in [0, 1]."""
    batch = bases.permute(0, 3, 1, 2).float() / 255
    return mix(light(place(batch, size, generator), generator), generator)
