"""Visual prompts against the paper's equations in plain torch."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from polyclinic.core.errors import StudyError
from polyclinic.models.export import form, load_adapted, write_adapter, write_merged
from polyclinic.models.network import build, plain
from tests.models import plain_vit as vit
from tests.models.plain_vit import on, outputs, pixels, shaken, study_of

Save = Callable[..., Path]
VPT = 'method = "vpt"\nprompts = 3\ndeep = {}'


def test_the_hand_rolled_vit_is_the_frozen_network(tiny_vit: Path) -> None:
    network = plain(on(tiny_vit, 'method = "probe"'))
    w = network.state_dict()
    x = vit.block(w, 1, vit.block(w, 0, vit.embed(w, pixels())))
    torch.testing.assert_close(outputs(network), vit.decide(w, x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("deep", ["true", "false"])
def test_prompts_go_through_the_blocks_as_the_paper_has_it(deep: str, tiny_vit: Path) -> None:
    adapted = build(on(tiny_vit, VPT.format(deep)))
    shaken(adapted)
    w = adapted.network.state_dict()
    names = [f"backbone.encoder.layers.{i}.vpt_prompts.weight" for i in range(2 if deep == "true" else 1)]
    assert [name for name in adapted.travelling if not name.startswith("head.")] == names
    x = vit.embed(w, pixels())
    first = w[names[0]].expand(2, -1, -1)
    # behind the class token, where the paper has them
    x = vit.block(w, 0, torch.cat([x[:, :1], first, x[:, 1:]], 1))
    if deep == "true":
        x = torch.cat([x[:, :1], w[names[1]].expand(2, -1, -1), x[:, 4:]], 1)
    x = vit.block(w, 1, x)
    expected = vit.decide(w, torch.cat([x[:, :1], x[:, 4:]], 1))
    torch.testing.assert_close(outputs(adapted.network), expected, rtol=1e-4, atol=1e-5)
    assert (outputs(adapted.network) - outputs(plain(on(tiny_vit, VPT.format(deep))))).abs().max() > 1e-2


def test_they_start_uniform_within_the_papers_bound(tiny_vit: Path) -> None:
    state = build(on(tiny_vit, 'method = "vpt"\nprompts = 200')).read()
    drawn = state["backbone.encoder.layers.0.vpt_prompts.weight"]
    bound = math.sqrt(6 / (3 * 8 * 8 + 32))
    assert drawn.shape == (1, 200, 32)
    assert np.abs(drawn).max() <= bound
    assert drawn.std() == pytest.approx(bound / math.sqrt(3), rel=0.03)
    assert not np.array_equal(drawn, state["backbone.encoder.layers.1.vpt_prompts.weight"])


@pytest.mark.parametrize("name", ["ViTModel", "Dinov2Model", "Dinov2WithRegistersModel"])
def test_every_plain_family_takes_them_and_its_maps_keep_their_places(name: str, save: Save) -> None:
    study = study_of(f"hf:{save(name)}", 'method = "vpt"')
    adapted, frozen = build(study), plain(study)
    assert (outputs(adapted.network) - outputs(frozen)).abs().max() > 1e-4
    with torch.no_grad():
        maps = adapted.network.backbone.encode(pixels(), maps=True).maps
        before = frozen.backbone.encode(pixels(), maps=True).maps
    assert [one.shape for one in maps] == [one.shape for one in before]


@pytest.mark.parametrize("tables", [('method = "lora"', VPT), (VPT, 'method = "lora"')])
def test_they_live_with_lora_in_copies_functional_calls_and_files(
    tables: tuple[str, str], tiny_vit: Path, tmp_path: Path
) -> None:
    study = on(tiny_vit, *(table.format("true") for table in tables))
    adapted = build(study)
    start = {name: weight.detach().clone() for name, weight in adapted.network.named_parameters()}
    twin = copy.deepcopy(adapted.network)
    shaken(adapted)
    moved = outputs(adapted.network)
    assert (outputs(twin) - moved).abs().max() > 1e-2, "a copy has prompts of its own"
    with torch.no_grad():
        again = torch.func.functional_call(adapted.network, start, (pixels(),))
    assert torch.equal(again, outputs(twin))
    write_adapter(study, adapted.read(), tmp_path, plain(study).backbone.sha256)
    assert form(tmp_path) == "polyclinic"
    assert torch.equal(outputs(load_adapted(study, tmp_path)), moved)
    with pytest.raises(StudyError, match="what 'vpt' adds cannot be merged"):
        write_merged(study, tmp_path, tmp_path / "merged")
