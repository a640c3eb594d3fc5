"""Ladder side-tuning against its equation in plain torch, and against what it promises of gradients and memory."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from polyclinic.core.errors import StudyError
from polyclinic.models.export import load_adapted, write_adapter
from polyclinic.models.network import build, plain
from tests.models import plain_vit as vit
from tests.models.plain_vit import linear, on, outputs, pixels, shaken, study_of

LADDER = 'method = "ladder"\nreduction = 2'
HEADS, WIDTH = 4, 16


def layer_norm(w: vit.Weights, name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, (WIDTH,), w[f"{name}.weight"], w[f"{name}.bias"])


def rung(w: vit.Weights, i: int, x: Tensor) -> Tensor:
    name = f"ladder.rungs.{i}."
    q, k, v = linear(w, f"{name}mixed", layer_norm(w, f"{name}before", x)).split(WIDTH, dim=-1)
    heads = []
    for one in range(HEADS):
        at = slice(one * WIDTH // HEADS, (one + 1) * WIDTH // HEADS)
        weights = (q[..., at] @ k[..., at].transpose(1, 2) / (WIDTH // HEADS) ** 0.5).softmax(-1)
        heads.append(weights @ v[..., at])
    x = x + linear(w, f"{name}joined", torch.cat(heads, -1))
    inner = F.gelu(linear(w, f"{name}mlp.0", layer_norm(w, f"{name}after", x)))
    return x + linear(w, f"{name}mlp.2", inner)


def test_it_is_the_papers_gated_ladder(tiny_vit: Path) -> None:
    study = on(tiny_vit, LADDER)
    adapted = build(study)
    assert torch.equal(outputs(adapted.network), outputs(plain(study)))
    shaken(adapted)
    w = adapted.network.state_dict()
    x = vit.embed(w, pixels())
    side = linear(w, "ladder.foot", x)
    for i in range(2):
        x = vit.block(w, i, x)
        share = 1 / (1 + torch.exp(-w["ladder.gates"][i] / 0.1))
        side = rung(w, i, share * linear(w, f"ladder.downs.{i}", x) + (1 - share) * side)
    added = linear(w, "ladder.up", layer_norm(w, "ladder.norm", side))
    last = vit.norm(w, "backbone.encoder.layernorm", x)
    pooled = torch.cat([last[:, 0] + added[:, 0], (last + added)[:, 1:].mean(1)], 1)
    torch.testing.assert_close(outputs(adapted.network), linear(w, "head", pooled), rtol=1e-4, atol=1e-4)


def kept_for_backward(study_table: str) -> int:
    """Bytes that a forward pass keeps for the backward one, weights aside."""
    network = build(study_of("embedded:vit-tiny", study_table, size=128)).network
    weights = {weight.data_ptr() for weight in network.parameters()}
    found: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        alive = network(pixels(4, 128))
    assert alive.requires_grad
    return sum(found.values())


def test_no_gradient_enters_the_backbone_and_its_activations_are_not_kept() -> None:
    assert kept_for_backward('method = "ladder"') < 0.4 * kept_for_backward('method = "lora"')


def test_a_copy_has_a_ladder_of_its_own_and_a_file_brings_it_back(tiny_vit: Path, tmp_path: Path) -> None:
    study = on(tiny_vit, LADDER)
    adapted = build(study)
    twin = copy.deepcopy(adapted.network)
    begun = outputs(twin)
    shaken(adapted)
    assert torch.equal(outputs(twin), begun)
    write_adapter(study, adapted.read(), tmp_path, plain(study).backbone.sha256)
    assert torch.equal(outputs(load_adapted(study, tmp_path)), outputs(adapted.network))


@pytest.mark.parametrize("other", ["lora", "vpt", "full", "layernorm"])
@pytest.mark.parametrize("first", [True, False])
def test_nothing_else_may_train_in_the_backbone(other: str, first: bool, tiny_vit: Path) -> None:
    tables = [LADDER, f'method = "{other}"']
    with pytest.raises(StudyError, match=f"beside 'ladder', and '{other}' trains in it"):
        on(tiny_vit, *(tables if first else tables[::-1]))


def test_shortened_tokens_are_refused(tiny_vit: Path) -> None:
    with pytest.raises(StudyError, match="both change the backbone's tokens"):
        on(tiny_vit, LADDER, 'method = "tome"')
