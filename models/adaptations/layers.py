"""Which layers of a backbone an adaptation means: by their role in a transformer, whatever the family calls them."""

from __future__ import annotations

import re
from typing import Literal

from torch import nn

from polyclinic.core.errors import StudyError

Targets = Literal["attention", "mlp", "all"]

ROLES = {
    "query": r"q_proj|query",
    "key": r"k_proj|key",
    "value": r"v_proj|value",
    "attention": r"q_proj|k_proj|v_proj|o_proj|query|key|value|qkv|attn\.proj|attn\.out_proj",
    "widened": r"fc2|down_proj|lin2|linear2|pwconv2|pointwise_conv2",
    "mlp": r"fc[12]|up_proj|down_proj|gate_proj|lin[12]|linear[12]|pwconv[12]|pointwise_conv[12]",
}
ROLES["all"] = "|".join((ROLES["attention"], ROLES["mlp"]))
_BLOCK = re.compile(r"(backbone\..*\.(?:layers?|blocks?))\.(\d+)\.")  # the innermost stack: stages hold blocks


def named(model: nn.Module, role: str) -> list[str]:
    """Full names of the layers of a role, in the model's order.

    Raises:
        StudyError: the backbone has none.
    """
    pattern = rf"backbone\..*\.(?:{ROLES[role]})"
    found = [name for name, _ in model.named_modules() if re.fullmatch(pattern, name)]
    if not found:
        raise StudyError(
            f"this backbone has no {role} layer by a name that is known here",
            where="adaptation.targets",
            remedy="choose other targets or another backbone",
        )
    return found


def norms(model: nn.Module) -> list[str]:
    """Full names of the layer normalisations of the backbone, in the model's order.

    Raises:
        StudyError: it has none.
    """
    found = [name for name, m in model.named_modules() if name.startswith("backbone.") and isinstance(m, nn.LayerNorm)]
    if not found:
        raise StudyError(
            "this backbone has no layer normalisation", where="adaptation", remedy="choose another method or backbone"
        )
    return found


def convolutions(model: nn.Module) -> list[str]:
    """Full names of the backbone's plain convolutions: neither grouped, nor dilated, nor transposed.

    Raises:
        StudyError: it has none.
    """
    found = [name for name, module in model.named_modules() if name.startswith("backbone.") and _plain(module)]
    if not found:
        raise StudyError(
            "this backbone has no plain convolution", where="adaptation", remedy="choose another method or backbone"
        )
    return found


def _plain(module: nn.Module) -> bool:
    if type(module) is not nn.Conv2d and type(module) is not nn.Conv3d:
        return False
    return module.groups == 1 and set(module.dilation) == {1} and module.padding_mode == "zeros"


def block_of(name: str) -> tuple[str, int] | None:
    """(stack, number) of the transformer block that a weight or layer lies in; None outside of them."""
    match = _BLOCK.match(name)
    return None if match is None else (match[1], int(match[2]))


def depth(model: nn.Module) -> int:
    """How many transformer blocks the backbone has, one after another.

    Raises:
        StudyError: none, or several stacks of them, so that "the last" says nothing.
    """
    blocks = {block for name, _ in model.named_parameters() if (block := block_of(name))}
    if len({stack for stack, _ in blocks}) != 1:
        raise StudyError(
            "this backbone is no single stack of blocks", where="adaptation", remedy="choose another method or backbone"
        )
    return len(blocks)
