"""The one sequence of tokens that runs through a plain transformer, and where methods take hold of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from polyclinic.core.errors import StudyError
from polyclinic.models.adaptations.layers import ROLES, block_of, depth

ATTENTION, MLP = ("attention", "attn", "self_attn"), ("mlp",)
_BESIDE = re.compile(r"rope|rotary|rel_pos|window")


@dataclass(frozen=True)
class Block:
    """A transformer block as it stands in a model: its full name, itself, its attention and its MLP."""

    name: str
    module: Any
    attention: Any
    mlp: Any


def blocks(model: nn.Module) -> list[Block]:
    """The blocks of the backbone, in order: each takes and gives tokens [N, T, width], however many they are.

    Raises:
        StudyError: it is no single stack of such blocks, or knows places otherwise than by what is added to tokens.
    """
    count = depth(model)
    ((stack, _),) = {(block[0], 0) for name, _ in model.named_parameters() if (block := block_of(name))}
    found = []
    for i in range(count):
        module = model.get_submodule(f"{stack}.{i}")
        attention, mlp = (child(module, names) for names in (ATTENTION, MLP))
        if attention is None or mlp is None:
            raise _refused("its blocks are no plain pairs of attention and MLP")
        found.append(Block(f"{stack}.{i}", module, attention, mlp))
    places = (name for name, _ in (*model.named_modules(), *model.named_parameters()) if name.startswith("backbone."))
    if told := next((name for name in places if _BESIDE.search(name)), None):
        raise _refused(f"'{told}' needs to know where each token lies")
    return found


def child(module: nn.Module, names: Iterable[str]) -> Any:
    """The first child by one of these names; None if there is none."""
    return next((getattr(module, name) for name in names if isinstance(getattr(module, name, None), nn.Module)), None)


def role(module: nn.Module, name: str) -> str:
    """What the child that plays a role of ``layers.ROLES`` is called.

    Raises:
        StudyError: there is none.
    """
    found = [key for key, _ in module.named_children() if re.fullmatch(ROLES[name], key)]
    if not found:
        raise _refused(f"its attention has no {name} layer by a name that is known here")
    return found[0]


def width(model: Any) -> int:
    """Of the backbone's tokens."""
    backbone = model.backbone
    return int(backbone.width) // (2 if backbone.pooling == "cls+mean" else 1)


@contextmanager
def tapped(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Within it, the list holds what these modules gave, in the order in which they ran."""
    found: list[Tensor] = []

    def keep(module: nn.Module, given: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    handles = [module.register_forward_hook(keep) for module in modules]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def entered(module: nn.Module) -> Iterator[list[Tensor]]:
    """Within it, the list holds what the module was given, as often as it ran."""
    found: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda module, given: found.append(given[0]))
    try:
        yield found
    finally:
        handle.remove()


def pooled_only(task: type) -> bool:
    """Whether a kind of task looks at pooled features alone."""
    return getattr(task, "dense", False) is False


def _refused(reason: str) -> StudyError:
    return StudyError(
        f"this backbone does not fit: {reason}", where="adaptation", remedy="choose another method or backbone"
    )
