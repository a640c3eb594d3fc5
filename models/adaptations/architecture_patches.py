"""Another grid of patches: PI-resized patch embeddings (FlexiViT), and flat ones inflated for volumes (I3D)."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from polyclinic.core.config import Method
from polyclinic.core.errors import StudyError
from polyclinic.core.facts import Facts
from polyclinic.core.study import Data
from polyclinic.models.adaptation import Adaptation
from polyclinic.models.adaptations.sequence import child, pooled_only
from polyclinic.models.backbones import Encoder, resize_positions
from polyclinic.models.backbones.tokens import tokens
from polyclinic.models.contracts import Level

if TYPE_CHECKING:
    from polyclinic.core.study import Study

DEPTHS = "depth_positions"


class PatchSize(Method):
    """``method = "patch_size"`` (Beyer et al. 2023, FlexiViT, arXiv 2212.08013): patches of ``size`` pixels a side.

    The patch embedding is resized by the pseudo-inverse of bilinear resizing, so that it makes of a resized patch what
    it made of the patch; positions are interpolated as for another image size. Smaller patches mean more tokens.
    The head sees the new grid: maps have its stride.
    """

    changes: ClassVar[frozenset[str]] = frozenset({"patch grid"})
    facts: ClassVar[Facts] = Facts(
        families=("architecture",),
        paper="Beyer et al. 2023 (FlexiViT), arXiv 2212.08013",
        exact_private=True,
        because="it is done once, before training",
        backbones="a plain vision transformer with added positions (transformers)",
        identity=False,
    )

    method: Literal["patch_size"] = "patch_size"
    size: int = Field(default=32, ge=2, le=256)

    def check(self, study: Study) -> None:
        """Refuses an image size that is no multiple of the patch."""
        if study.data.image_size % self.size:
            raise StudyError(
                f"image_size {study.data.image_size} is no multiple of the patch size {self.size}",
                where="adaptation.size",
                remedy=f"take {max(1, round(study.data.image_size / self.size)) * self.size} pixels, or another patch",
            )

    def build(self) -> Adaptation:
        """The adaptation."""
        return Adaptation(families=frozenset({"architecture"}), recast=self._recast)

    def explain(self) -> str:
        """What it does."""
        return f"The backbone sees patches of {self.size} × {self.size} pixels, its patch embedding resized (FlexiViT)."

    def _recast(self, encoder: Encoder, data: Data) -> Encoder:
        module, embeddings, projection = _flat_patches(encoder)
        resized = nn.utils.skip_init(
            nn.Conv2d, projection.in_channels, projection.out_channels, self.size, stride=self.size
        )
        with torch.no_grad():
            resized.weight.copy_(pi_resized(projection.weight, self.size))
            resized.bias.copy_(projection.bias)
        sharp = module.config.model_type == "dinov2_with_registers"  # as the family itself interpolates
        count = (data.image_size // self.size) ** 2
        positions = resize_positions(embeddings.position_embeddings.data, count, antialias=sharp)
        embeddings.position_embeddings = nn.Parameter(positions, requires_grad=False)
        patches = embeddings.patch_embeddings
        patches.projection, patches.num_patches, patches.patch_size = (
            resized.requires_grad_(False).eval(),
            count,
            (self.size,) * 2,
        )
        embeddings.patch_size = module.config.patch_size = self.size
        levels = tuple(Level(level.channels, self.size) for level in encoder.levels)
        return replace(encoder, see=tokens(encoder.leading, self.size), levels=levels, cut=None)


class Inflate(Method):
    """``method = "inflate"`` (Carreira and Zisserman 2017, I3D, arXiv 1705.07750): a flat backbone takes volumes.

    The kernel of the patch embedding is repeated over ``depth_patch`` slices and divided by them, so that a volume
    whose slices are all alike gives each patch the token of the flat picture. A place has the position of its place in
    the picture and, added, one of its depth, which starts at zero, trains and travels. There are D / depth_patch times
    as many tokens as for a picture.
    """

    changes: ClassVar[frozenset[str]] = frozenset({"patch grid"})
    merges: ClassVar[bool] = False
    facts: ClassVar[Facts] = Facts(
        families=("architecture",),
        paper="Carreira and Zisserman 2017 (I3D), arXiv 1705.07750",
        exact_private=True,
        because="each volume's tokens get the positions by themselves",
        travels="a position for every depth",
        backbones="a plain vision transformer with added positions (transformers), and volumes to look at",
        identity=False,
    )

    method: Literal["inflate"] = "inflate"
    depth_patch: int = Field(default=4, ge=1, le=256)

    @classmethod
    def fits(cls, task: type[Method]) -> bool:
        """A level of maps has one stride, and here depth has another."""
        return pooled_only(task)

    def check(self, study: Study) -> None:
        """Refuses flat pictures, and depths that are no multiple of the patch."""
        depth = study.data.depth
        if depth is None:
            raise StudyError(
                "'inflate' is for volumes, and the study's pictures are flat",
                where="adaptation",
                remedy='write volume = "whole" and a depth in [data], or leave it out',
            )
        if depth % self.depth_patch:
            near = max(1, round(depth / self.depth_patch)) * self.depth_patch
            raise StudyError(
                f"a depth of {depth} slices is no multiple of depth_patch {self.depth_patch}",
                where="adaptation.depth_patch",
                remedy=f"take a depth of {near}, or another patch",
            )

    def build(self) -> Adaptation:
        """The adaptation."""
        return Adaptation(
            families=frozenset({"architecture"}),
            recast=self._recast,
            travels=lambda name: name.endswith(f".{DEPTHS}"),
        )

    def explain(self) -> str:
        """What it does."""
        slices = f"{self.depth_patch} slices a token"
        return f"The flat backbone takes volumes, {slices} (I3D's inflation); positions of depths train."

    def _recast(self, encoder: Encoder, data: Data) -> Encoder:
        assert data.depth is not None, "check() has seen to it"
        module, embeddings, projection = _flat_patches(encoder)
        module.embeddings = Volumes(embeddings, projection, data.depth // self.depth_patch, self.depth_patch).eval()
        see = tokens(encoder.leading, projection.kernel_size[0], self.depth_patch)
        return replace(encoder, see=see, cut=None, volumes=True)


class Volumes(nn.Module):
    """Embeddings of volumes in the place of ``flat``, whose other weights it takes over by their names.

    Volumes [N, C, D, S, S] → tokens [N, leading + D' · H' · W', width], depth by depth.
    """

    def __init__(self, flat: Any, projection: nn.Conv2d, depths: int, depth_patch: int) -> None:
        super().__init__()
        self.patch_embeddings, self.cls_token, self.mask_token = flat.patch_embeddings, flat.cls_token, flat.mask_token
        self.position_embeddings = flat.position_embeddings
        self.register_tokens = getattr(flat, "register_tokens", None)
        size = (depth_patch, *projection.kernel_size)
        deep = nn.utils.skip_init(nn.Conv3d, projection.in_channels, projection.out_channels, size, stride=size)
        with torch.no_grad():
            deep.weight.copy_(projection.weight[:, :, None] / depth_patch)
            deep.bias.copy_(projection.bias)
        self.patch_embeddings.projection = deep.requires_grad_(False)
        self.depth_positions = nn.Parameter(torch.zeros(1, depths, 1, projection.out_channels), requires_grad=False)

    def forward(self, pixel_values: Tensor, **unused: Any) -> Tensor:
        """Tokens; nothing is masked."""
        places = self.patch_embeddings.projection(pixel_values).flatten(3).permute(0, 2, 3, 1)
        positions = self.position_embeddings
        patches = (places + positions[:, None, 1:] + self.depth_positions).flatten(1, 2)
        cls = (self.cls_token + positions[:, :1]).expand(len(patches), -1, -1)
        registers = [] if self.register_tokens is None else [self.register_tokens.expand(len(patches), -1, -1)]
        return torch.cat([cls, *registers, patches], dim=1)


def pi_resized(kernel: Tensor, size: int) -> Tensor:
    """A patch embedding's kernel [out, in, p, p] for patches of another side, [out, in, size, size].

    ŵ = (Bᵀ)⁺ w where B resizes a patch bilinearly (FlexiViT, equation 4): for larger patches ⟨Bx, ŵ⟩ = ⟨x, w⟩ exactly,
    for smaller ones as nearly as can be over white patches x.
    """
    old = kernel.shape[-1]
    basis = torch.eye(old**2, dtype=torch.float64).reshape(old**2, 1, old, old)
    transposed = F.interpolate(basis, size=(size, size), mode="bilinear").reshape(old**2, size**2)  # Bᵀ
    flat = kernel.detach().to(torch.float64).flatten(2) @ torch.linalg.pinv(transposed).T
    result: Tensor = flat.to(kernel.dtype).unflatten(-1, (size, size))
    return result


def _flat_patches(encoder: Encoder) -> tuple[Any, Any, nn.Conv2d]:
    """(module, its embeddings, their projection).

    Raises:
        StudyError: it embeds patches otherwise than by one convolution and positions that are added.
    """
    module: Any = encoder.module
    embeddings = child(module, ("embeddings",))
    patches = None if embeddings is None else child(embeddings, ("patch_embeddings",))
    projection = getattr(patches, "projection", None)
    added = getattr(embeddings, "position_embeddings", None)
    if (
        not isinstance(projection, nn.Conv2d)
        or added is None
        or encoder.leading == 0
        or len(set(projection.kernel_size)) > 1
    ):
        raise StudyError(
            "this backbone's patches are embedded otherwise than is known here",
            where="adaptation",
            remedy="choose a plain vision transformer: ViT or DINOv2",
        )
    side = math.isqrt(added.shape[1] - 1)
    assert side**2 == added.shape[1] - 1, "positions were fitted to the image when the backbone was loaded"
    return module, embeddings, projection
