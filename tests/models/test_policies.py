"""MONAI's policies: reproducible, each picture by itself, never beyond [0, 1], and nothing global is drawn from."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from polyclinic.models.adaptations.data_policies import POLICIES, MonaiAugment, changed
from polyclinic.models.contracts import Views
from polyclinic.models.tasks.classification import Classification

SHAPES = [(6, 1, 32, 32), (6, 3, 32, 32), (3, 1, 16, 32, 32)]


def noise(shape: Any, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def through(pixels: Tensor, policy: str, seed: int = 0, share: float = 1.0) -> Tensor:
    return changed(pixels, policy, torch.Generator().manual_seed(seed), share)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_same_generator_gives_the_same_pictures_and_nothing_else_is_touched(policy: str, shape: Any) -> None:
    pixels = noise(shape)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[union-attr]
    found = through(pixels, policy)
    assert type(found) is Tensor
    assert found.shape == pixels.shape
    assert found.dtype == torch.float32
    assert found.min() >= 0.0
    assert found.max() <= 1.0
    assert torch.equal(found, through(pixels, policy))
    assert not torch.equal(found, through(pixels, policy, seed=1))
    assert not torch.equal(found, pixels)
    assert torch.equal(pixels, noise(shape)), "written into"
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", POLICIES)
def test_each_picture_is_changed_by_itself(policy: str) -> None:
    pixels = noise((8, 1, 32, 32))
    other = pixels.clone()
    other[3] = noise((1, 32, 32), 9)
    same = (through(pixels, policy) == through(other, policy)).flatten(1).all(dim=1)
    assert same.tolist() == [i != 3 for i in range(8)]


def test_light_changes_less_than_strong_and_a_share_leaves_the_others_as_they_are() -> None:
    pixels = noise((200, 1, 16, 16))
    moved = {policy: (through(pixels, policy) - pixels).abs().mean().item() for policy in ("light", "strong")}
    assert 0.005 < moved["light"] < 0.5 * moved["strong"]
    kept = (through(pixels, "strong", share=0.25) == pixels).flatten(1).all(dim=1)
    assert 0.65 < kept.float().mean() < 0.85


def test_targets_stay_what_they_are() -> None:
    views = Views(noise((4, 1, 32, 32)), torch.tensor([0, 1, 1, 0]))
    method = MonaiAugment(policy="mri")
    found = method.build().batch(nn.Identity(), Classification(), views, torch.Generator().manual_seed(0))
    assert found.target is views.target
    assert torch.equal(found.pixels, through(views.pixels, "mri"))
    assert "'mri'" in method.explain()
