"""The shipped backbone is the file its description pins, and the recipe that makes it works."""

from __future__ import annotations

import hashlib
import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import ViTConfig, ViTModel

from polyclinic.models.embedded import distil, start, views
from polyclinic.models.embedded.images import Maker

FOLDER = Path(str(files("polyclinic.models.embedded")))
WEIGHTS, ABOUT = FOLDER / "vit_tiny.safetensors", json.loads((FOLDER / "vit_tiny.json").read_text(encoding="utf-8"))


def test_weights_are_the_ones_described_and_small() -> None:
    assert hashlib.sha256(WEIGHTS.read_bytes()).hexdigest() == ABOUT["sha256"]
    assert WEIGHTS.stat().st_size <= 12_000_000


def test_weights_load_strictly_and_give_finite_tokens() -> None:
    shape = {key: value for key, value in ABOUT.items() if key not in {"model_type", "mean", "std", "sha256"}}
    vit = ViTModel(ViTConfig(**shape), add_pooling_layer=False).eval()
    weights = load_file(WEIGHTS)
    assert all(value.dtype == torch.float16 and bool(value.isfinite().all()) for value in weights.values())
    vit.load_state_dict({name: value.float() for name, value in weights.items()}, strict=True)
    with torch.no_grad():
        tokens = vit(torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))).last_hidden_state
    assert tokens.shape == (2, 65, 192)
    assert bool(tokens.isfinite().all())
    assert float((tokens[0] - tokens[1]).abs().max()) > 0


@pytest.mark.parametrize("maker", [maker for maker, _ in views.MAKERS], ids=lambda maker: str(maker.__name__))
def test_every_maker_draws_finite_rgb_from_its_generator_alone(maker: Maker) -> None:
    first, again, other = (maker(np.random.default_rng(seed), 48) for seed in (1, 1, 2))
    assert first.shape == (48, 48, 3)
    assert bool(np.isfinite(first).all())
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_base_images_follow_seed_and_index() -> None:
    photos = views.photographs()
    for share in (0.0, 1.0):
        first = views.base(photos, share, 3, 7, 64)
        assert first.dtype == np.uint8
        assert first.shape == (64, 64, 3)
        assert np.array_equal(first, views.base(photos, share, 3, 7, 64))
        assert not np.array_equal(first, views.base(photos, share, 4, 7, 64))
        assert not np.array_equal(first, views.base(photos, share, 3, 8, 64))


def test_views_stay_in_range_and_follow_their_generator() -> None:
    bases = torch.from_numpy(np.stack([views.procedural(0, index, 64) for index in range(6)]))
    first, again, other = (views.views(bases, 32, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert first.shape == (6, 3, 32, 32)
    assert 0 <= float(first.min()) <= float(first.max()) <= 1
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_first_filters_are_independent_and_follow_their_generator() -> None:
    basis = start.cosines(16)
    torch.testing.assert_close(basis @ basis.T, torch.eye(16), atol=1e-5, rtol=0)
    first, again, other = (start.filters(192, 16, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert first.shape == (192, 3, 16, 16)
    assert int(torch.linalg.matrix_rank(first.flatten(1))) == 192
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_first_positions_differ_from_patch_to_patch() -> None:
    places = start.positions(192, 8)
    assert places.shape == (64, 192)
    assert float((torch.cdist(places, places) + 9 * torch.eye(64)).min()) > 0.1


def _stand_in(pixels: Tensor) -> distil.Features:
    """A teacher of averages: colours of each patch, of each quarter row, and of the whole."""
    fine, coarse = (torch.nn.functional.adaptive_avg_pool2d(pixels, side).flatten(2).mT for side in (8, 4))
    return fine, coarse, coarse.flatten(1)


def test_a_short_distillation_lowers_its_loss(tmp_path: Path) -> None:
    recipe = distil.Recipe(steps=16, batch=8, bases=24, fresh=1, photos=0.0, side=128, every=0.0)
    log = distil.train(recipe, _stand_in, tmp_path)
    losses = [entry["loss"] for entry in log]
    assert len(losses) == 16
    assert np.mean(losses[-4:]) < 0.9 * np.mean(losses[:4])
    about = json.loads((tmp_path / "vit_tiny.json").read_text(encoding="utf-8"))
    assert about["sha256"] == hashlib.sha256((tmp_path / "vit_tiny.safetensors").read_bytes()).hexdigest()
    assert load_file(tmp_path / "vit_tiny.safetensors").keys() == load_file(WEIGHTS).keys()
