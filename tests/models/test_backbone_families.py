"""Every family of networks gives what transformers' own loader gives, at several sizes, with maps as it promises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from polyclinic.core import study as studies
from polyclinic.core.errors import BackboneError, StudyError
from polyclinic.models import backbones
from polyclinic.models.adaptations import layers
from polyclinic.models.backbones import Encoder, Seen, quiet
from polyclinic.models.network import build, plain
from tests.models.conftest import Save

TOKENS = {"num_hidden_layers": 4}
SETTINGS: dict[str, dict[str, Any]] = {
    "ViTModel": TOKENS,
    "Dinov2Model": TOKENS,
    "Dinov2WithRegistersModel": TOKENS,
    "DINOv3ViTModel": TOKENS | {"num_register_tokens": 4},
    "DINOv3ConvNextModel": {"hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 2, 1]},
    "ConvNextModel": {"hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 2, 1], "patch_size": 4},
    "SwinModel": {
        "image_size": 128,
        "patch_size": 4,
        "embed_dim": 16,
        "depths": [2, 2, 2],
        "num_heads": [2, 2, 4],
        "window_size": 4,
    },
    "SamVisionModel": {
        "image_size": 64,
        "num_hidden_layers": 4,
        "window_size": 3,
        "global_attn_indexes": [1, 3],
        "output_channels": 16,
        "mlp_dim": 64,
        "mlp_ratio": 2.0,
    },
}
SIZES = {"SwinModel": (64, 128, 192), "SamVisionModel": (32, 64, 96)}
STRIDES = {"SwinModel": [4, 8, 16], "ConvNextModel": [4, 8, 16, 32], "DINOv3ConvNextModel": [4, 8, 16, 32]}
NATIVE = {"SwinModel": 128, "SamVisionModel": 64, "ConvNextModel": 64, "DINOv3ConvNextModel": 64}
TASK_MODELS = {
    "SwinForImageClassification": "SwinModel",
    "ConvNextForImageClassification": "ConvNextModel",
}
NAMES = sorted(SETTINGS)


def checkpoint(save: Save, name: str, **settings: Any) -> Path:
    return save(name, **(SETTINGS[TASK_MODELS.get(name, name)] | settings))


def own(folder: Path, name: str) -> Any:
    """The checkpoint as transformers loads it."""
    with quiet():
        return getattr(transformers, name).from_pretrained(folder).eval()


def pixels(size: int, count: int = 2) -> Tensor:
    return torch.randn((count, 3, size, size), generator=torch.Generator().manual_seed(1))


def see(encoder: Encoder, seen: Tensor, *, maps: bool = False) -> Seen:
    with torch.no_grad():
        return encoder.see(encoder.module, seen, maps)


@pytest.mark.parametrize("name", NAMES)
def test_at_its_own_size_it_gives_what_transformers_gives_to_the_bit(name: str, save: Save) -> None:
    folder, size = checkpoint(save, name), NATIVE.get(name, 32)
    encoder, model = backbones.hf(str(folder), size, None), own(folder, name)
    found = see(encoder, pixels(size))
    with torch.no_grad():
        expected = model(pixels(size))
    last = expected.last_hidden_state
    if name.endswith("ConvNextModel"):
        assert torch.equal(found.mean, expected.pooler_output)
    elif name == "SamVisionModel":
        assert torch.equal(found.mean, last.mean(dim=(2, 3)))
    elif name == "SwinModel":
        assert torch.equal(found.mean, last.mean(dim=1))
    else:
        leading = 5 if "Registers" in name or "DINOv3" in name else 1
        assert encoder.leading == leading
        assert found.cls is not None
        assert torch.equal(found.cls, last[:, 0])
        assert torch.equal(found.mean, last[:, leading:].mean(dim=1))
    assert encoder.has_cls == (found.cls is not None)
    assert found.mean.shape == (2, encoder.width)


@pytest.mark.parametrize("name", NAMES)
def test_maps_have_the_promised_shapes_and_change_nothing_else(name: str, save: Save) -> None:
    folder = checkpoint(save, name)
    for size in SIZES.get(name, (32, 64, 96)):
        encoder = backbones.hf(str(folder), size, None)
        found = see(encoder, pixels(size), maps=True)
        assert [level.stride for level in encoder.levels] == STRIDES.get(name, [8] * 4)
        for level, grid in zip(encoder.levels, found.maps, strict=True):
            assert grid.shape == (2, level.channels, size // level.stride, size // level.stride)
        without = see(encoder, pixels(size))
        assert without.maps == ()
        assert torch.equal(without.mean, found.mean)
        if name not in STRIDES or name == "SwinModel":  # of the others the mean is normalised after it was taken
            torch.testing.assert_close(found.maps[-1].mean(dim=(2, 3)), found.mean, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", TASK_MODELS)
def test_checkpoints_of_task_models_load_too(name: str, save: Save) -> None:
    folder = checkpoint(save, name)
    size = NATIVE[TASK_MODELS[name]]
    with torch.no_grad():
        expected = own(folder, TASK_MODELS[name])(pixels(size)).pooler_output
    found = see(backbones.hf(str(folder), size, None), pixels(size)).mean
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_a_whole_sam_gives_its_image_encoder(save: Save, tmp_path: Path) -> None:
    """As the hub has it: the encoder among prompts' and masks' weights, its settings nested."""
    folder = checkpoint(save, "SamVisionModel")
    config = json.loads((folder / "config.json").read_text())
    state = load_file(folder / "model.safetensors")
    state |= {"mask_decoder.transformer.layers.0.x": torch.zeros(1), "prompt_encoder.y": torch.zeros(1)}
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "sam", "vision_config": config}))
    one, two = (backbones.hf(str(place), 64, None) for place in (folder, tmp_path))
    assert torch.equal(see(one, pixels(64)).mean, see(two, pixels(64)).mean)


@pytest.mark.parametrize("size", [32, 96])
def test_sam_at_another_size_has_its_positions_resized_as_its_users_do(size: int, save: Save) -> None:
    """Against the encoder's own interpolation of relative positions, and OpenCV's rule for the absolute ones."""
    folder = checkpoint(save, "SamVisionModel")
    model, side = own(folder, "SamVisionModel"), size // 8
    with torch.no_grad():
        vision = model.vision_encoder
        places = bilinear(vision.pos_embed[0].numpy(), side)
        vision.patch_embed.image_size = (size, size)
        vision.pos_embed = torch.nn.Parameter(torch.from_numpy(places)[None])
        expected = model(pixels(size)).last_hidden_state
    found = see(backbones.hf(str(folder), size, None), pixels(size), maps=True).maps[-1]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def bilinear(grid: np.ndarray, side: int) -> np.ndarray:
    """[before, before, C] → [side, side, C]: centres of cells to centres of cells, the border continued."""
    before = len(grid)
    at = ((np.arange(side) + 0.5) * before / side - 0.5).clip(0, before - 1)
    low, share = np.floor(at).astype(int), at - np.floor(at)
    high = (low + 1).clip(max=before - 1)
    rows = grid[low] * (1 - share)[:, None, None] + grid[high] * share[:, None, None]
    both = rows[:, low] * (1 - share)[None, :, None] + rows[:, high] * share[None, :, None]
    return both.astype(np.float32)


def test_swins_windows_shrink_to_the_grid_as_a_model_made_with_such_windows(save: Save) -> None:
    """One stage on a grid of 4: a model of window 4 whose table was interpolated here gives the same."""
    one_stage = {"depths": [2], "num_heads": [2], "window_size": 7, "image_size": 224}
    folder = checkpoint(save, "SwinModel", **one_stage)
    small = {"window_size": 4, "image_size": 16, "mlp_ratio": 2}
    config = transformers.SwinConfig(**(SETTINGS["SwinModel"] | one_stage | small))
    twin, state = transformers.SwinModel(config, add_pooling_layer=False).eval(), own(folder, "SwinModel").state_dict()
    for name, value in twin.state_dict().items():
        if name.endswith("bias_table"):
            table = state[name].t().reshape(1, 2, 13, 13)
            table = torch.nn.functional.interpolate(table, size=(7, 7), mode="bicubic", align_corners=False)
            value.copy_(table.reshape(2, 49).t())
        else:
            value.copy_(state[name])
    with torch.no_grad():
        expected = twin(pixels(16)).last_hidden_state.mean(dim=1)
    assert torch.equal(see(backbones.hf(str(folder), 16, None), pixels(16)).mean, expected)


def test_swins_absolute_positions_are_interpolated_as_transformers_does(save: Save) -> None:
    folder = checkpoint(save, "SwinModel", use_absolute_embeddings=True)
    with torch.no_grad():
        expected = own(folder, "SwinModel")(pixels(192), interpolate_pos_encoding=True).last_hidden_state.mean(dim=1)
    found = see(backbones.hf(str(folder), 192, None), pixels(192)).mean
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


CUT = ["ViTModel", "Dinov2Model", "Dinov2WithRegistersModel", "DINOv3ViTModel"]


@pytest.mark.parametrize("maps", [False, True])
@pytest.mark.parametrize("name", CUT)
def test_both_halves_of_a_cut_are_the_whole_to_the_bit(name: str, maps: bool, save: Save) -> None:
    encoder = backbones.hf(str(checkpoint(save, name)), 32, None)
    whole, cut = see(encoder, pixels(32), maps=maps), encoder.cut
    assert cut is not None
    for k in range(5):
        with torch.no_grad():
            parts = cut.prefix(encoder.module, pixels(32), k, maps)
            found = cut.suffix(encoder.module, parts, k, (32, 32), maps)
        assert torch.equal(found.mean, whole.mean)
        assert found.cls is not None
        assert whole.cls is not None
        assert torch.equal(found.cls, whole.cls)
        assert len(found.maps) == len(whole.maps) == 4 * maps
        assert all(torch.equal(one, two) for one, two in zip(found.maps, whole.maps, strict=True))
    places = {cut.place(name, 4) for name, _ in encoder.module.named_parameters()}
    assert places == {-1, 0, 1, 2, 3, 4}


def test_no_other_family_says_that_it_can_be_cut(save: Save) -> None:
    for name in set(NAMES) - set(CUT):
        assert backbones.hf(str(checkpoint(save, name)), NATIVE[name], None).cut is None


def study_on(folder: Path, size: int, method: str, pooling: str = "mean", more: str = "") -> studies.Study:
    return studies.loads(
        f'[study]\nname = "x"\n[data]\nimage_size = {size}\n[backbone]\nreference = "hf:{folder}"\n'
        f'pooling = "{pooling}"\n[[adaptation]]\nmethod = "{method}"\n{more}'
    )


@pytest.mark.parametrize("name", sorted(NATIVE))
def test_without_a_class_token_the_mean_is_demanded(name: str, save: Save) -> None:
    folder = checkpoint(save, name)
    with pytest.raises(StudyError, match=r'no class token \(write "mean"'):
        plain(study_on(folder, NATIVE[name], "probe", "cls"))
    assert plain(study_on(folder, NATIVE[name], "probe")).backbone(pixels(NATIVE[name]).sigmoid()).shape[0] == 2


LINEARS = {
    "SwinModel": {"attention": 6 * 4, "mlp": 6 * 2, "key": 6},
    "SamVisionModel": {"attention": 4 * 2, "mlp": 4 * 2, "key": 0},
    "ConvNextModel": {"attention": 0, "mlp": 5 * 2, "key": 0},
    "DINOv3ConvNextModel": {"attention": 0, "mlp": 5 * 2, "key": 0},
    "DINOv3ViTModel": {"attention": 4 * 4, "mlp": 4 * 2, "key": 4},
}


@pytest.mark.parametrize("name", LINEARS)
def test_linear_layers_are_found_by_their_role_and_absent_ones_refused(name: str, save: Save) -> None:
    network = plain(study_on(checkpoint(save, name), NATIVE.get(name, 32), "probe"))
    for role, count in LINEARS[name].items():
        if count:
            found = layers.named(network, role)
            assert len(found) == count
            assert all(isinstance(network.get_submodule(layer), torch.nn.Linear) for layer in found)
        else:
            with pytest.raises(StudyError, match=f"no {role} layer"):
                layers.named(network, role)
    assert layers.norms(network)


def test_the_last_blocks_of_stages_are_refused_and_those_of_one_stack_are_not(save: Save) -> None:
    for name in ("SwinModel", "ConvNextModel"):
        with pytest.raises(StudyError, match="no single stack of blocks"):
            build(study_on(checkpoint(save, name), NATIVE[name], "last_blocks"))
    for name in ("SamVisionModel", "DINOv3ViTModel"):
        assert layers.depth(plain(study_on(checkpoint(save, name), NATIVE.get(name, 32), "probe"))) == 4


BAD: list[tuple[str, dict[str, Any], tuple[str, ...], int, str]] = [
    ("SwinModel", {}, ("depths",), 128, "lacks 'depths'"),
    ("SwinModel", {}, ("window_size",), 128, "lacks 'window_size'"),
    ("SwinModel", {}, (), 72, r"data\.image_size: image_size 72 .* 16 \(take"),
    ("SwinModel", {"embed_dim": 24}, (), 128, "do not fit"),
    ("SwinModel", {"window_size": 5}, (), 128, "do not fit"),
    ("SwinModel", {"depths": [2, 2, 1]}, (), 128, r"no place for encoder\.layers\.2\.blocks\.1"),
    ("ConvNextModel", {"depths": [1, 1, 3, 1]}, (), 64, "weights lack encoder.stages.2.layers.2"),
    ("ConvNextModel", {"hidden_sizes": [8, 16, 32, 48]}, (), 64, "do not fit"),
    ("ConvNextModel", {}, (), 48, r"image_size 48 .* 32 \(take 64\)"),
    ("DINOv3ConvNextModel", {}, ("hidden_sizes",), 64, "lacks 'hidden_sizes'"),
    ("DINOv3ViTModel", {"num_register_tokens": 3}, (), 32, "do not fit"),
    ("DINOv3ViTModel", {}, (), 36, r"image_size 36 .* 8 \(take 32\)"),
    ("SamVisionModel", {"window_size": 4}, (), 64, "another window"),
    ("SamVisionModel", {"global_attn_indexes": [0, 3]}, (), 64, "another window"),
    ("SamVisionModel", {"hidden_size": 64}, (), 64, "do not fit"),
    ("SamVisionModel", {"patch_size": "8"}, (), 64, "patch size 8 is no whole number"),
]


@pytest.mark.parametrize(("name", "change", "drop", "size", "reason"), BAD)
def test_what_does_not_fit_is_refused_with_a_reason(
    name: str, change: dict[str, Any], drop: tuple[str, ...], size: int, reason: str, save: Save, tmp_path: Path
) -> None:
    folder = checkpoint(save, name)
    config = json.loads((folder / "config.json").read_text()) | change
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k not in drop}))
    save_file(load_file(folder / "model.safetensors"), tmp_path / "model.safetensors")
    with pytest.raises(BackboneError, match=reason):
        backbones.hf(str(tmp_path), size, None)
