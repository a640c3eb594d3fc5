"""Data: what training pictures go through before the model sees them."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from polyclinic.core.config import Method
from polyclinic.core.facts import Facts
from polyclinic.models.adaptation import Adaptation
from polyclinic.models.contracts import Task, Views


class Augment(Method):
    """``method = "augment"``: light, label-preserving changes of each training picture.

    ``flip`` mirrors left and right (leave it off where laterality matters); ``shift`` is in shares of the side;
    ``zoom``, ``brightness`` and ``contrast`` are the largest relative changes; ``rotate`` is in degrees.
    """

    facts: ClassVar[Facts] = Facts(
        families=("data",),
        paper="usual practice; the maps are torch's affine_grid and grid_sample",
        exact_private=True,
        because="each picture is changed by itself",
    )

    method: Literal["augment"] = "augment"
    flip: bool = False
    flip_vertical: bool = False
    shift: float = Field(default=0.05, ge=0.0, le=0.5)
    zoom: float = Field(default=0.05, ge=0.0, le=0.5)
    rotate: float = Field(default=5.0, ge=0.0, le=180.0)
    brightness: float = Field(default=0.1, ge=0.0, le=1.0)
    contrast: float = Field(default=0.1, ge=0.0, le=1.0)

    def build(self) -> Adaptation:
        """The adaptation."""
        return Adaptation(families=frozenset({"data"}), batch=self._batch)

    def explain(self) -> str:
        """What it does."""
        mirrored = [way for way, on in (("left-right", self.flip), ("up-down", self.flip_vertical)) if on]
        flips = f", mirrored {' and '.join(mirrored)}" if mirrored else ""
        return (
            f"Training pictures are shifted by up to {self.shift:.0%}, zoomed by {self.zoom:.0%}, turned by "
            f"{self.rotate:g}°, changed by {self.brightness:.0%} in brightness, {self.contrast:.0%} in contrast{flips}."
        )

    def _batch(self, model: nn.Module, task: Task, views: Views, generator: torch.Generator) -> Views:
        pixels = views.pixels.flatten(1, -3)  # of a volume, every slice moves alike
        draws = 2.0 * torch.rand((8, len(pixels)), generator=generator) - 1.0
        draws = draws.to(pixels.device)
        inverse = self._affine(draws)
        grid = F.affine_grid(inverse, list(pixels.shape), align_corners=False)
        moved = F.grid_sample(pixels, grid, padding_mode="border", align_corners=False)
        gain = (1.0 + self.contrast * draws[6]).view(-1, 1, 1, 1)
        bias = (self.brightness * draws[7]).view(-1, 1, 1, 1)
        middle = moved.mean(dim=(1, 2, 3), keepdim=True)
        seen = ((moved - middle) * gain + middle + bias).clamp(0.0, 1.0)
        return Views(seen.view_as(views.pixels), task.moved(views.target, inverse))

    def _affine(self, draws: Tensor) -> Tensor:
        """Inverse maps [N, 2, 3] from the output's coordinates to the input's, both in [-1, 1]."""
        turn = torch.deg2rad(self.rotate * draws[0])
        scale = 1.0 + self.zoom * draws[1]
        across = torch.where(draws[2] < 0, -1.0, 1.0) if self.flip else torch.ones_like(scale)
        down = torch.where(draws[3] < 0, -1.0, 1.0) if self.flip_vertical else torch.ones_like(scale)
        cos, sin = turn.cos() * scale, turn.sin() * scale
        right, below = 2 * self.shift * draws[4], 2 * self.shift * draws[5]
        rows = (across * cos, -sin * down, right, sin * across, down * cos, below)
        return torch.stack(rows, dim=1).view(-1, 2, 3)
