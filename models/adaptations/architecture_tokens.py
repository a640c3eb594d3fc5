"""Fewer tokens from block to block, for speed: token merging (ToMe) and pruning by class attention (EViT)."""

from __future__ import annotations

import math
from types import MethodType
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from polyclinic.core.config import Method
from polyclinic.core.errors import StudyError
from polyclinic.core.facts import Facts
from polyclinic.models.adaptation import Adaptation, not_in_peft
from polyclinic.models.adaptations.sequence import Block, blocks, child, pooled_only, role, tapped
from polyclinic.models.adaptations.shortening import Track, attentive, merged

BEFORE, AFTER = ("layernorm_before", "norm1"), ("layernorm_after", "norm2")
SCALES = ("layer_scale1",), ("layer_scale2",)
_BACKBONES = "one stack of plain transformer blocks with queries, keys and norms by a known name (transformers)"
_BY_ITSELF = "each picture's tokens are compared among themselves only"


class Shorter(nn.Module):
    """What a shortening block has beside its own parts; it holds no weights.

    Attributes:
        taps: names of the projections in the attention whose outputs ``shorten`` needs.
        track: shared by all blocks of a model.
        first, last: whether the block is.
    """

    def __init__(self, block: Block, track: Track, first: bool, last: bool) -> None:
        super().__init__()
        self.taps = [role(block.attention, name) for name in ("query", "key")]
        self.heads = int(block.attention.num_attention_heads)
        self.track, self.first, self.last = track, first, last

    def bias(self) -> Tensor | None:
        """What attention adds before its softmax, [N, 1, 1, T]; None for nothing."""
        return None

    def shorten(self, tokens: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
        """Fewer of the tokens [N, T, width], from this block's queries and keys, each [N, T, heads, d]."""
        raise NotImplementedError


class Merging(Shorter):
    """ToMe in one block: its ``r`` most alike pairs become one token each."""

    def __init__(self, block: Block, track: Track, first: bool, last: bool, r: int, leading: int) -> None:
        super().__init__(block, track, first, last)
        self.r, self.leading = r, leading

    def bias(self) -> Tensor | None:
        """The logarithm of the tokens' sizes (proportional attention)."""
        return None if self.track.sizes is None else self.track.sizes.log()[:, None, None, :]

    def shorten(self, tokens: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
        """The tokens with pairs merged, by the keys' mean over the heads."""
        return merged(tokens, keys.mean(dim=2).detach(), self.track, self.r, self.leading)


class Pruning(Shorter):
    """EViT in one block: of the patches' tokens those stay that the class token attends to most."""

    def __init__(self, block: Block, track: Track, first: bool, last: bool, keep: float, leading: int) -> None:
        super().__init__(block, track, first, last)
        self.keep, self.leading = keep, leading

    def shorten(self, tokens: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
        """The tokens that stay and, in the last place, one of the others."""
        scores = torch.einsum("nhd,nthd->nht", queries[:, 0], keys) / math.sqrt(keys.shape[-1])
        attention = scores.softmax(dim=-1).mean(dim=1)[:, self.leading :]
        return attentive(tokens, attention, self.keep, self.leading)


def _shortening(block: Any, tokens: Tensor, attention_mask: Tensor | None = None, **more: Any) -> Tensor:
    """A block's forward pass as the family has it, the tokens shortened between attention and MLP.

    No picture has padding, so that there is no other mask to heed.
    """
    shorter: Shorter = block.shorter
    if shorter.first:
        shorter.track.begin()
    attention, mlp = child(block, ("attention",)), child(block, ("mlp",))
    scales = [child(block, names) or nn.Identity() for names in SCALES]
    with tapped([getattr(attention, name) for name in shorter.taps]) as taps:
        attended = attention(child(block, BEFORE)(tokens), shorter.bias(), **more)[0]
    queries, keys = (tap.unflatten(-1, (shorter.heads, -1)) for tap in taps)
    tokens = shorter.shorten(tokens + scales[0](attended), queries, keys)
    tokens = tokens + scales[1](mlp(child(block, AFTER)(tokens)))
    return shorter.track.end(tokens) if shorter.last else tokens


def _put(block: Block, shorter: Shorter) -> None:
    parts = (("attention",), ("mlp",), BEFORE, AFTER)
    if any(child(block.module, names) is None for names in parts):
        raise StudyError(
            "this backbone's blocks are put together otherwise than is known here",
            where="adaptation",
            remedy="choose another method or backbone",
        )
    block.module.shorter = shorter
    block.module.forward = MethodType(_shortening, block.module)


class ToMe(Method):
    """``method = "tome"`` (Bolya et al. 2023, arXiv 2210.09461): every block merges its ``r`` most alike tokens.

    As in the paper: bipartite soft matching on the keys' mean over heads, between attention and MLP; averages weighted
    by size; attention in proportion to size; the class token and registers take no part. After the last block every
    patch has the token that it went into, so that means are weighted by size, too.
    """

    changes: ClassVar[frozenset[str]] = frozenset({"tokens"})
    merges: ClassVar[bool] = False
    facts: ClassVar[Facts] = Facts(
        families=("architecture",),
        paper="Bolya et al. 2023 (ToMe), arXiv 2210.09461",
        exact_private=True,
        because=_BY_ITSELF,
        backbones=_BACKBONES,
        identity=False,
    )

    method: Literal["tome"] = "tome"
    r: int = Field(default=8, ge=1, le=1024)

    @classmethod
    def fits(cls, task: type[Method]) -> bool:
        """Not where every place counts."""
        return pooled_only(task)

    def build(self) -> Adaptation:
        """The adaptation."""
        return Adaptation(families=frozenset({"architecture"}), fit_in=self._fit_in, peft=(not_in_peft,))

    def explain(self) -> str:
        """What it does."""
        return f"Every block merges its {self.r} most alike pairs of tokens (ToMe): faster, and a little coarser."

    def _fit_in(self, model: nn.Module, generator: torch.Generator) -> None:
        found, track, leading = blocks(model), Track(), int(model.backbone.leading)  # type: ignore[arg-type, union-attr]
        for i, block in enumerate(found):
            _put(block, Merging(block, track, i == 0, i == len(found) - 1, self.r, leading))


class Prune(Method):
    """``method = "prune"`` (Liang et al. 2022, EViT, arXiv 2202.07800): the tokens that matter least go.

    At a quarter, half and three quarters of the depth (blocks 4, 7 and 10 of 12, as in the paper) the share ``keep`` of
    the patches' tokens stays, between attention and MLP; the others become one, their sum weighted by that attention.
    """

    changes: ClassVar[frozenset[str]] = frozenset({"tokens"})
    merges: ClassVar[bool] = False
    facts: ClassVar[Facts] = Facts(
        families=("architecture",),
        paper="Liang et al. 2022 (EViT), arXiv 2202.07800",
        exact_private=True,
        because=_BY_ITSELF,
        backbones=f"a class token, and {_BACKBONES}",
        identity=False,
    )

    method: Literal["prune"] = "prune"
    keep: float = Field(default=0.7, gt=0.0, lt=1.0)

    @classmethod
    def fits(cls, task: type[Method]) -> bool:
        """Not where every place counts."""
        return pooled_only(task)

    def build(self) -> Adaptation:
        """The adaptation."""
        return Adaptation(families=frozenset({"architecture"}), fit_in=self._fit_in, peft=(not_in_peft,))

    def explain(self) -> str:
        """What it does."""
        return f"At three depths {self.keep:.0%} of the tokens stay, those that matter most to the class token (EViT)."

    def _fit_in(self, model: nn.Module, generator: torch.Generator) -> None:
        found, leading = blocks(model), int(model.backbone.leading)  # type: ignore[arg-type, union-attr]
        if not leading:
            raise StudyError(
                "this backbone has no class token to prune by", where="adaptation", remedy="choose 'tome' or none"
            )
        for i in sorted({len(found) * quarter // 4 for quarter in (1, 2, 3)}):
            _put(found[i], Pruning(found[i], Track(), True, True, self.keep, leading))
