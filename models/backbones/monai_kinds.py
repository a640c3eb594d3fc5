"""Which of MONAI's networks there are: their settings, what is left out of them, and what fits them to a size."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from polyclinic.models.backbones import monai_views as views
from polyclinic.models.backbones.encoder import View
from polyclinic.models.backbones.monai_views import Arguments

COMMON = {"dims": "spatial_dims", "channels": "in_channels"}


@dataclass(frozen=True)
class Kind:
    """One kind of network.

    Attributes:
        target: MONAI's class.
        words: of a reference, and what MONAI calls them.
        scratch: what the class is told when it is made from scratch and nothing else is said.
        view: how a module is seen.
        step: what the sides of a picture must be multiples of.
        last: names of modules that serve the task it is trained for; of no use here.
        task: more of these, of a bundle that was trained for one.
        follows: what else the class is told, given the rest, when it is made from scratch.
        fewest: places that must be left along each side at the coarsest stride: one alone has no deviation.
        sized: whether the class is told the size of pictures.
        passed: words that the class hands on to its base.
    """

    target: str
    words: Mapping[str, str]
    scratch: Arguments
    view: Callable[[Any, Arguments], View]
    step: Callable[[Arguments], int]
    last: tuple[str, ...] = ()
    task: tuple[str, ...] = ()
    follows: Callable[[Arguments], Arguments] = lambda arguments: {}
    fewest: int = 1
    sized: bool = False
    passed: frozenset[str] = frozenset()

    def made(self) -> Any:
        """The class itself."""
        from monai.networks import nets

        return getattr(nets, self.target)

    def defaults(self) -> dict[str, Any]:
        """What the class takes where it is told nothing."""
        known = inspect.signature(self.made().__init__).parameters.values()
        return {word.name: word.default for word in known if word.default is not inspect.Parameter.empty}

    def knows(self) -> frozenset[str]:
        """Words that the class takes."""
        known = inspect.signature(self.made().__init__).parameters.values()
        return self.passed | {word.name for word in known if word.kind is not inspect.Parameter.VAR_KEYWORD}

    def build(self, arguments: Arguments, sides: tuple[int, ...], without: tuple[str, ...]) -> nn.Module:
        """A network of fresh weights for pictures of those sides, less the modules named."""
        module: nn.Module = self.made()(**arguments, **({"img_size": sides} if self.sized else {}))
        for name in without:
            parent, _, own = name.rpartition(".")
            if hasattr(holder := module.get_submodule(parent), own):
                delattr(holder, own)
        return module


def fit_positions(
    state: Mapping[str, Tensor], patch: int, before: tuple[int, ...], after: tuple[int, ...]
) -> dict[str, Tensor]:
    """Learnt positions [1, places, width] of pictures of one size for those of another, (tri)linear or bicubic.

    Raises:
        ValueError: there are more or fewer places than pictures of the size before have.
    """
    old, new = ([side // patch for side in sides] for sides in (before, after))
    fitted = dict(state)
    for name, places in state.items():
        if name.endswith("position_embeddings") and old != new:
            if places.shape[1] != math.prod(old):
                raise ValueError(f"{places.shape[1]} position embeddings are not those of pictures of {before}")
            grid = places.transpose(1, 2).reshape(1, -1, *old)
            grid = F.interpolate(grid, size=new, mode="bicubic" if len(new) == 2 else "trilinear")
            fitted[name] = grid.flatten(2).transpose(1, 2)
    return fitted


def _unet(arguments: Arguments) -> Arguments:
    channels = arguments["channels"]
    return {"out_channels": channels[0], "strides": (2,) * (len(channels) - 1)}


_RESIDUAL = {"norm": "instance", "num_res_units": 2, "channels": (16, 32, 64, 128, 256)}
_TRANSFORMER = {"width": "hidden_size", "mlp": "mlp_dim", "heads": "num_heads"}
KINDS = {
    "unet": Kind(
        "UNet",
        COMMON | {"features": "channels", "units": "num_res_units"},
        _RESIDUAL,
        views.unet,
        lambda arguments: math.prod(arguments["strides"]),
        task=("model.2",),
        follows=_unet,
        fewest=2,
    ),
    "unetr": Kind(
        "UNETR",
        COMMON | _TRANSFORMER | {"features": "feature_size"},
        {"out_channels": 1},
        views.unetr,
        lambda arguments: 16,
        last=("out",),
        sized=True,
    ),
    "swinunetr": Kind(
        "SwinUNETR",
        COMMON | {"features": "feature_size", "depths": "depths", "heads": "num_heads", "window": "window_size"},
        {"out_channels": 1},
        views.swinunetr,
        lambda arguments: int(arguments["patch_size"] ** 5),
        last=("out",),
        fewest=2,
        passed=frozenset({"img_size"}),  # older bundles say it
    ),
    "densenet121": Kind(
        "DenseNet121",
        COMMON | {"features": "init_features", "growth": "growth_rate", "depths": "block_config"},
        {"out_channels": 1, "norm": ("instance", {"affine": True})},
        views.densenet,
        lambda arguments: int(4 * 2 ** (len(arguments["block_config"]) - 1)),
        last=("class_layers",),
        fewest=2,
        passed=frozenset({"bn_size", "act", "norm", "dropout_prob"}),
    ),
    "vit": Kind(
        "ViT",
        COMMON | _TRANSFORMER | {"patch": "patch_size", "layers": "num_layers"},
        {"patch_size": 16},
        views.vit,
        lambda arguments: int(arguments["patch_size"]),
        last=("classification_head",),
        sized=True,
    ),
}
"""By the name in a reference; MONAI's class in small letters is the same."""
