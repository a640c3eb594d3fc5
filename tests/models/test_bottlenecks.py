"""Houlsby's adapters and AdaptFormer against their equations in plain torch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from polyclinic.core.errors import StudyError
from polyclinic.models.network import build, plain
from tests.models import plain_vit as vit
from tests.models.plain_vit import linear, on, outputs, pixels, shaken

LAYER = "backbone.encoder.layers."


def test_houlsby_adapts_what_attention_and_mlp_give(tiny_vit: Path) -> None:
    study = on(tiny_vit, 'method = "houlsby"\nsize = 5')
    adapted = build(study)
    assert torch.equal(outputs(adapted.network), outputs(plain(study)))
    shaken(adapted)
    w = adapted.network.state_dict()

    def bottleneck(name: str, h: Tensor) -> Tensor:
        return h + linear(w, f"{name}.houlsby.up", F.gelu(linear(w, f"{name}.houlsby.down", h)))

    def through(i: int, x: Tensor) -> Tensor:
        return vit.block(
            w,
            i,
            x,
            after_attention=lambda branch: bottleneck(f"{LAYER}{i}.attention", branch),
            after_mlp=lambda branch, given: bottleneck(f"{LAYER}{i}.mlp", branch),
        )

    expected = vit.decide(w, through(1, through(0, vit.embed(w, pixels()))))
    torch.testing.assert_close(outputs(adapted.network), expected, rtol=1e-4, atol=1e-5)
    assert w[f"{LAYER}0.mlp.houlsby.down.weight"].shape == (5, 32)


def test_adaptformer_stands_beside_the_mlp(tiny_vit: Path) -> None:
    study = on(tiny_vit, 'method = "adaptformer"\nsize = 5\nscale = 0.7')
    adapted = build(study)
    assert torch.equal(outputs(adapted.network), outputs(plain(study)))
    shaken(adapted)
    w = adapted.network.state_dict()

    def beside(i: int, branch: Tensor, given: Tensor) -> Tensor:
        name = f"{LAYER}{i}.mlp.adaptformer"
        return branch + 0.7 * linear(w, f"{name}.up", F.relu(linear(w, f"{name}.down", given)))

    def through(i: int, x: Tensor) -> Tensor:
        return vit.block(w, i, x, after_mlp=lambda branch, given: beside(i, branch, given))

    expected = vit.decide(w, through(1, through(0, vit.embed(w, pixels()))))
    torch.testing.assert_close(outputs(adapted.network), expected, rtol=1e-4, atol=1e-5)


def test_they_go_with_prompts_and_lora_in_one_chain(tiny_vit: Path) -> None:
    chain = ('method = "adaptformer"', 'method = "lora"\ntargets = "all"', 'method = "vpt"', 'method = "layernorm"')
    one, other = (build(on(tiny_vit, *tables)) for tables in (chain, chain[::-1]))
    assert set(one.travelling) == set(other.travelling)
    shaken(one)
    other.write(one.read())
    torch.testing.assert_close(outputs(one.network), outputs(other.network), rtol=0, atol=0)


def test_two_that_change_what_the_mlp_gives_are_refused(tiny_vit: Path) -> None:
    with pytest.raises(StudyError, match="'houlsby' and 'adaptformer' both change the backbone's MLP outputs"):
        on(tiny_vit, 'method = "houlsby"', 'method = "adaptformer"')
