"""The part of a backbone that nothing changes: from a picture to what its later blocks need, worked out once.

What a matrix product gives for one picture may depend on the pictures beside it, down to the last bit. So that a
remembered picture and one that is seen anew are the same, the prefix sees every picture by itself, remembered or not.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Protocol

import torch
from torch import Tensor, nn

from polyclinic.core.version import VERSION
from polyclinic.models.backbones import Cut, Encoder, Seen
from polyclinic.models.backbones.encoder import Parts


class Shelf(Protocol):
    """Where parts are kept, by a key that says all that they depend on."""

    def get(self, key: str) -> Parts | None:
        """What was put there, or None."""

    def put(self, key: str, parts: Parts) -> None:
        """Keeps it, if there is room."""


@dataclass
class Prefix:
    """How an encoder sees when its first ``blocks`` blocks, or all of it, stay as they are.

    Attributes:
        encoder: as it was loaded; its module may have changed behind the prefix.
        cut: where; None if the whole encoder stays as it is.
        blocks: before the cut.
        normalised: pixels in [0, 1] → what the encoder takes.
        shelf: where the prefix's outputs are kept; None to work them out each time.
    """

    encoder: Encoder
    cut: Cut | None
    blocks: int
    normalised: Callable[[Tensor], Tensor]
    shelf: Shelf | None = None
    _tensors: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)
    _digest: tuple[int, str] = field(default=(-1, ""), init=False, repr=False)

    def see(self, pixels: Tensor, maps: bool) -> Seen:
        """What the encoder sees in pixels [N, C, (D,) S, S] in [0, 1]; no gradient reaches the prefix or the pixels."""
        base = self._base_key(pixels, maps) if self._remembers(pixels) else None
        rows = [self._of(picture, maps, base) for picture in pixels.split(1)]
        parts = tuple(torch.cat(column) for column in zip(*rows, strict=True))
        if self.cut is not None:
            return self.cut.suffix(self.encoder.module, parts, self.blocks, _sides(pixels), maps)
        leading = 1 + self.encoder.has_cls
        return Seen(parts[0], parts[1] if self.encoder.has_cls else None, parts[leading:])

    def _remembers(self, pixels: Tensor) -> bool:
        """Whether pictures can be known again: within a transform of torch.func they have no bytes of their own."""
        return self.shelf is not None and not torch._C._functorch.is_functorch_wrapped_tensor(pixels)

    def _of(self, picture: Tensor, maps: bool, base: str | None) -> Parts:
        """The prefix's output for one picture [1, C, (D,) S, S]."""
        if base is None or self.shelf is None:
            return self._worked_out(picture, maps)
        total = hashlib.sha256(base.encode())
        total.update(picture.detach().cpu().contiguous().numpy().data)
        key = total.hexdigest()
        found = self.shelf.get(key)
        if found is None:
            found = self._worked_out(picture, maps)
            self.shelf.put(key, tuple(part.cpu() for part in found))
        return tuple(part.to(picture.device) for part in found)

    def _worked_out(self, picture: Tensor, maps: bool) -> Parts:
        with torch.no_grad():
            if self.cut is not None:
                return self.cut.prefix(self.encoder.module, self.normalised(picture), self.blocks, maps)
            seen = self.encoder.see(self.encoder.module, self.normalised(picture), maps)
            return (seen.mean, *(() if seen.cls is None else (seen.cls,)), *seen.maps)

    def _base_key(self, pixels: Tensor, maps: bool) -> str:
        """What the prefix's output depends on beside the picture's own numbers."""
        kind = pixels.device.type
        reduced = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else pixels.dtype
        return f"{self._weights(kind)} {maps} {reduced} {torch.get_num_threads()} {tuple(pixels.shape[1:])}"

    def _weights(self, kind: str) -> str:
        """A digest of weights, cut, normalisation and machine; worked out anew only if a weight was set since."""
        if not self._tensors:
            module = self.encoder.module
            every = (*module.named_parameters(), *module.named_buffers())
            self._tensors.update({name: x for name, x in every if _before(name, self.cut, self.blocks, module)})
        changes = sum(tensor._version for tensor in self._tensors.values())
        if self._digest[0] != changes:
            total = hashlib.sha256(f"{_machine(kind)} {self.blocks if self.cut else 'all'}".encode())
            black = self.normalised(torch.zeros((1, 1, 1, 1), device=kind))
            for name, tensor in (*sorted(self._tensors.items()), ("black", black)):
                total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
            white = self.normalised(torch.ones((1, 1, 1, 1), device=kind))
            total.update(white.cpu().numpy().tobytes())
            self._digest = changes, total.hexdigest()
        return self._digest[1]


def _sides(pixels: Tensor) -> tuple[int, int]:
    return pixels.shape[-2], pixels.shape[-1]


def _machine(kind: str) -> str:
    """What makes the same weights and picture give other bits."""
    processor = torch.backends.cpu.get_cpu_capability() if kind == "cpu" else kind
    return (
        f"{VERSION} {torch.__version__} {version('transformers')} {version('monai')} {platform.machine()} {processor}"
    )


def _before(name: str, cut: Cut | None, blocks: int, module: nn.Module) -> bool:
    """Whether what has that name lies in the prefix, or holds it and the rest together."""
    return cut is None or cut.place(name, len(module.get_submodule(cut.stack))) < blocks  # type: ignore[arg-type]


def anatomy(module: nn.Module) -> dict[str, type[nn.Module]]:
    """What a network is made of, by name."""
    return {name: type(part) for name, part in module.named_modules()}


def untouched(module: nn.Module, made: dict[str, type[nn.Module]], cut: Cut | None, blocks: int) -> bool:
    """Whether the prefix is what it was when it was ``made``: no module another one, added, hooked or overridden."""
    now = {name: part for name, part in module.named_modules() if _before(name, cut, blocks, module)}
    was = {name: kind for name, kind in made.items() if _before(name, cut, blocks, module)}
    if {name: type(part) for name, part in now.items()} != was:
        return False
    return not any(part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part) for part in now.values())


def whole_blocks(names: frozenset[str], cut: Cut | None, module: nn.Module) -> int | None:
    """How many first blocks hold none of the named weights; None if no block is spared. Without names, all."""
    if cut is None:
        return None
    count = len(module.get_submodule(cut.stack))  # type: ignore[arg-type]
    first = min(cut.place(name, count) for name in names)
    return first if first > 0 else None
