"""Normalisation, pooling and head against a computation by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from polyclinic.core import study as studies
from polyclinic.core.study import Study
from polyclinic.models import network
from polyclinic.models.backbones import quiet
from tests.models.conftest import Save

FAMILIES = {"ViTModel": 1, "Dinov2Model": 1, "Dinov2WithRegistersModel": 5}


def study_on(folder: Path, pooling: str, more: str = "", data: str = "") -> Study:
    return studies.loads(
        f'[study]\nname = "x"\nseed = 7\n[data]\nimage_size = 32\n{data}\n[backbone]\nreference = "hf:{folder}"\n'
        f'pooling = "{pooling}"\n[[adaptation]]\nmethod = "lora"\n{more}'
    )


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("pooling", ["cls", "mean", "cls+mean"])
def test_features_and_outputs_by_hand(name: str, pooling: str, save: Save) -> None:
    folder = save(name)
    norms = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.25, 0.3]}
    (folder / "preprocessor_config.json").write_text(json.dumps(norms))
    net = network.plain(study_on(folder, pooling))
    pixels = torch.rand((3, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    seen = torch.stack([(pixels[:, c] - norms["image_mean"][c]) / norms["image_std"][c] for c in range(3)], dim=1)
    with torch.no_grad(), quiet():
        tokens = getattr(transformers, name).from_pretrained(folder).eval()(seen).last_hidden_state.numpy()
        features, outputs = net.backbone(pixels).numpy(), net(pixels).numpy()
    patches = tokens[:, FAMILIES[name] :]
    assert patches.shape[1] == 16
    parts = {"cls": [tokens[:, 0]], "mean": [patches.mean(axis=1)], "cls+mean": [tokens[:, 0], patches.mean(axis=1)]}
    expected = np.concatenate(parts[pooling], axis=1)
    np.testing.assert_allclose(features, expected, atol=2e-6)
    weight, bias = (parameter.detach().numpy() for parameter in (net.head.weight, net.head.bias))
    np.testing.assert_allclose(outputs, expected @ weight.T + bias, atol=2e-6)


def test_grey_is_what_the_same_picture_in_three_channels_is(save: Save) -> None:
    net = network.plain(study_on(save("ViTModel"), "cls"))
    grey = torch.rand((2, 1, 32, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(net(grey), net(grey.expand(-1, 3, -1, -1)))


def test_the_studys_normalisation_goes_before_the_backbones(save: Save) -> None:
    own = "normalisation = { mean = [0.1, 0.2, 0.3], std = [0.4, 0.5, 0.6] }"
    net = network.plain(study_on(save("ViTModel"), "cls", data=own))
    expected = torch.tensor([(0.5 - m) / s for m, s in ((0.1, 0.4), (0.2, 0.5), (0.3, 0.6))])
    torch.testing.assert_close(net.backbone.normalised(torch.full((1, 3, 1, 1), 0.5)).flatten(), expected)


def test_the_head_is_small_drawn_from_the_seed_and_fits_the_task(save: Save) -> None:
    folder = save("ViTModel")
    task = '[task]\nmethod = "classification"\nkind = "multiclass"\nclasses = ["a", "b", "c"]'
    net = network.plain(study_on(folder, "cls+mean", task))
    assert net.head.weight.shape == (3, 64)
    assert not net.head.bias.any()
    assert net.head.weight.std().item() == pytest.approx(0.02, rel=0.2)
    again, other = (network.plain(study_on(folder, "cls+mean", task).with_seed(seed)) for seed in (7, 8))
    assert torch.equal(net.head.weight, again.head.weight)
    assert not torch.equal(net.head.weight, other.head.weight)


def test_read_gives_copies_and_write_takes_them_back(tiny_study: Study) -> None:
    adapted = network.build(tiny_study)
    state = adapted.read()
    assert list(state) == sorted(state) == list(adapted.travelling)
    for array in state.values():
        np.add(array, 1.0, out=array)
    assert not any(np.array_equal(array, state[name]) for name, array in adapted.read().items())
    anchor = adapted.write(state)
    assert all(np.array_equal(array, state[name]) for name, array in adapted.read().items())
    with torch.no_grad():
        for weight in adapted.parameters():
            weight.zero_()
    assert all(np.array_equal(anchor[name].numpy(), array) for name, array in state.items())  # no view of the model
    assert not any(value.requires_grad for value in anchor.values())
