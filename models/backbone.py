"""A frozen encoder as the rest of the model sees it: normalised, pooled, and told apart by its weights' digest."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from polyclinic.core.errors import DataError, StudyError
from polyclinic.models import backbones
from polyclinic.models.contracts import Encoded
from polyclinic.models.prefix import Prefix, anatomy


class Backbone(nn.Module):
    """An encoder with its normalisation and pooling: pixels [N, C, (D,) S, S] in [0, 1] → features [N, width].

    Grey pictures (C = 1) are repeated over the encoder's channels; colour is refused by an encoder of one channel.
    Where the model sees windows of ``size``, along (D,) H, W, features of whole pictures are those of pictures shrunk
    to it.
    """

    def __init__(
        self,
        encoder: backbones.Encoder,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        pooling: str,
        size: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        if "cls" in pooling and not encoder.has_cls:
            raise StudyError("this backbone has no class token", where="backbone.pooling", remedy='write "mean"')
        self.encoder, self.see, self.made = encoder.module, encoder.see, encoder
        self.anatomy, self.prefix = anatomy(encoder.module), None
        self.leading, self.pooling, self.sha256 = encoder.leading, pooling, encoder.sha256
        self.pretrained, self.size = encoder.pretrained, size
        self.width, self.levels = encoder.width * (2 if pooling == "cls+mean" else 1), encoder.levels
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    mean: Tensor
    std: Tensor
    prefix: Prefix | None
    """How it sees where its first part stays as it is; None where nothing is known to do so."""

    def normalised(self, pixels: Tensor) -> Tensor:
        """What the encoder was trained to see; one channel broadcasts over the encoder's.

        Raises:
            DataError: pictures in colour for an encoder of one channel.
        """
        if pixels.shape[1] not in (1, self.mean.shape[1]):
            raise DataError(
                f"pictures have {pixels.shape[1]} channels, the backbone takes {self.mean.shape[1]}",
                where="data.colour",
                remedy='write colour = "grey" in the study',
            )
        each = (1, -1, *[1] * (pixels.ndim - 2))
        return (pixels - self.mean.view(each)) / self.std.view(each)

    def encode(self, pixels: Tensor, *, maps: bool) -> Encoded:
        """Pooled features of a batch, and its maps if they are wanted."""
        if self.prefix is None:
            seen = self.see(self.encoder, self.normalised(pixels), maps)
        else:
            seen = self.prefix.see(pixels, maps)
        if self.pooling == "mean" or seen.cls is None:
            return Encoded(seen.mean, seen.maps)
        return Encoded(seen.cls if self.pooling == "cls" else torch.cat([seen.cls, seen.mean], 1), seen.maps)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pooled features of a batch."""
        return self.encode(self.shrunk(pixels), maps=False).pooled

    def shrunk(self, pixels: Tensor) -> Tensor:
        """Whole pictures as large as what the model sees at once."""
        fits = self.size is None or pixels.shape[2:] == self.size
        return pixels if fits else F.interpolate(pixels, size=self.size, mode="area")
