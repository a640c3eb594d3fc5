"""What a backbone is: a frozen network, how it is seen, and where it can be cut in two."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from polyclinic.models.contracts import Level

IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Seen:
    """What an encoder makes of a batch.

    Attributes:
        mean: [N, width] over all places.
        cls: [N, width], the class token; None for an encoder without one.
        maps: [N, channels, (D,) H, W] of every level, the finest first; none unless they were asked for.
    """

    mean: Tensor
    cls: Tensor | None = None
    maps: tuple[Tensor, ...] = ()


See = Callable[[nn.Module, Tensor, bool], Seen]
"""(module, normalised pixels [N, channels, (D,) S, S], whether maps are wanted) → what it sees."""

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
"""(mean, std) per channel, of pixels in [0, 1]."""

Parts = tuple[Tensor, ...]
"""What the first blocks leave to the later ones: tensors of a row an image."""


@dataclass(frozen=True)
class Cut:
    """How an encoder of one stack of blocks is seen in two steps.

    ``suffix(module, prefix(module, pixels, k, maps), k, side, maps)`` is ``see(module, pixels, maps)``, to the bit, for
    every k from 0 (after the embeddings) to the number of blocks.

    Attributes:
        stack: the module's own name of its list of blocks.
        after: names under which what follows the blocks lies.
        prefix: (module, pixels, k, maps) → what blocks k and later need.
        suffix: (module, that, k, (height, width) of the pictures, maps) → what the encoder sees.
    """

    stack: str
    after: tuple[str, ...]
    prefix: Callable[[nn.Module, Tensor, int, bool], Parts]
    suffix: Callable[[nn.Module, Parts, int, tuple[int, int], bool], Seen]

    def place(self, name: str, blocks: int) -> int:
        """The block that a weight of the module lies in; -1 before all of them, ``blocks`` after them."""
        if name.startswith(f"{self.stack}."):
            return int(name[len(self.stack) + 1 :].partition(".")[0])
        return blocks if name.split(".", 1)[0] in self.after else -1


@dataclass(frozen=True)
class View:
    """How the networks of one kind are seen.

    Attributes:
        see: how.
        width: of what is seen.
        levels: of the maps, the finest first; empty where there are none.
        has_cls: whether there is a class token.
        leading: tokens before those of patches (the class token, registers), for those that export them.
        cut: how it is seen in two steps; None where it is no single stack of blocks.
    """

    see: See
    width: int
    levels: tuple[Level, ...]
    has_cls: bool = True
    leading: int = 0
    cut: Cut | None = None


@dataclass(frozen=True)
class Encoder:
    """A frozen network as it was loaded.

    Attributes:
        module: the network itself, by its makers' own names.
        see: how it is seen.
        width: of what it sees.
        levels: of its maps, the finest first; empty for one that has none.
        channels: that it takes.
        mean, std: per channel, of pixels in [0, 1].
        sha256: of the weights file; of the weights themselves, for one that no file holds.
        has_cls: whether there is a class token.
        leading: tokens before those of patches (the class token, registers), for those that export them.
        cut: how it is seen in two steps; None where it is no single stack of blocks.
        volumes: whether it takes volumes [N, channels, D, S, S], and nothing else.
        pretrained: whether its weights were learnt at all.
    """

    module: nn.Module
    see: See
    width: int
    levels: tuple[Level, ...]
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    sha256: str
    has_cls: bool = True
    leading: int = 0
    cut: Cut | None = None
    volumes: bool = False
    pretrained: bool = True


def encoder(
    module: nn.Module,
    view: View,
    channels: int,
    normalisation: Normalisation,
    sha256: str,
    *,
    volumes: bool = False,
    pretrained: bool = True,
) -> Encoder:
    """The module, frozen and as in use, with how it is seen."""
    module.requires_grad_(False)
    return Encoder(
        module.eval(),
        view.see,
        view.width,
        view.levels,
        channels,
        *normalisation,
        sha256,
        has_cls=view.has_cls,
        leading=view.leading,
        cut=view.cut,
        volumes=volumes,
        pretrained=pretrained,
    )


Loader = Callable[[str, int, str | None, int | None], Encoder]
"""(what follows the colon, image size in pixels, pinned SHA-256 or None, slices of a volume or None) → encoder."""
