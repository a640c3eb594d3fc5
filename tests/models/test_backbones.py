"""Backbones give what transformers' own loader gives, and refuse with a reason what they cannot load."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from polyclinic.core import study as studies
from polyclinic.core.errors import BackboneError, DataError
from polyclinic.models import backbones
from polyclinic.models.backbones import Encoder, quiet
from polyclinic.models.network import plain
from tests.models.conftest import Save

FAMILY = {
    "ViTModel": "ViTModel",
    "ViTForImageClassification": "ViTModel",
    "Dinov2Model": "Dinov2Model",
    "Dinov2ForImageClassification": "Dinov2Model",
    "Dinov2WithRegistersModel": "Dinov2WithRegistersModel",
    "Dinov2WithRegistersForImageClassification": "Dinov2WithRegistersModel",
}


def own(folder: Path, name: str) -> Any:
    """The checkpoint as transformers loads it."""
    with quiet():
        return getattr(transformers, FAMILY[name]).from_pretrained(folder).eval()


def pixels(size: int = 32, channels: int = 3) -> Tensor:
    return torch.randn((2, channels, size, size), generator=torch.Generator().manual_seed(1))


def tokens(encoder: Encoder, seen: Tensor) -> Tensor:
    with torch.no_grad():
        result: Tensor = encoder.module(pixel_values=seen).last_hidden_state
    return result


@pytest.mark.parametrize("name", FAMILY)
def test_a_checkpoint_gives_what_transformers_own_loader_gives(name: str, save: Save) -> None:
    folder = save(name)
    weights = folder / "model.safetensors"
    # save_pretrained still writes the names of the hub's older checkpoints, so this is what a real one looks like
    assert any("attention.attention.query" in key for key in load_file(weights))
    encoder = backbones.hf(str(folder), 32, None)
    with torch.no_grad():
        torch.testing.assert_close(
            tokens(encoder, pixels()), own(folder, name)(pixels()).last_hidden_state, rtol=0, atol=1e-6
        )
    registers = 4 if "Registers" in name else 0
    assert (encoder.width, encoder.leading, encoder.channels) == (32, 1 + registers, 3)
    assert encoder.sha256 == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert not encoder.module.training
    assert not any(weight.requires_grad for weight in encoder.module.parameters())
    assert (encoder.mean, encoder.std) == backbones.IMAGENET


@pytest.mark.parametrize("name", ["ViTModel", "Dinov2Model", "Dinov2WithRegistersModel"])
@pytest.mark.parametrize("size", [16, 40, 64])
def test_positions_at_another_size_are_interpolated_as_the_family_does(name: str, size: int, save: Save) -> None:
    folder = save(name)
    asked = {"interpolate_pos_encoding": True} if name == "ViTModel" else {}  # DINOv2 always does
    with torch.no_grad():
        expected = own(folder, name)(pixels(size), **asked).last_hidden_state
    torch.testing.assert_close(tokens(backbones.hf(str(folder), size, None), pixels(size)), expected, rtol=0, atol=1e-6)


def test_gated_mlps_of_the_largest_dinov2_load_too(save: Save) -> None:
    folder = save("Dinov2Model", use_swiglu_ffn=True)
    with torch.no_grad():
        expected = own(folder, "Dinov2Model")(pixels()).last_hidden_state
    torch.testing.assert_close(tokens(backbones.hf(str(folder), 32, None), pixels()), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_checkpoints_become_float32_without_loss(dtype: torch.dtype, save: Save) -> None:
    folder = save("ViTModel", dtype)
    assert json.loads((folder / "config.json").read_text())["dtype"] in str(dtype)
    encoder = backbones.hf(str(folder), 32, None)
    assert {weight.dtype for weight in encoder.module.parameters()} == {torch.float32}
    kept = load_file(folder / "model.safetensors")["layernorm.weight"]
    assert kept.dtype == dtype
    assert torch.equal(encoder.module.layernorm.weight, kept.float())


def test_file_reads_the_same_weights_beside_a_card(save: Save, tmp_path: Path) -> None:
    folder = save("ViTModel")
    as_file(folder, tmp_path)
    one, two = backbones.file(str(tmp_path / "own.safetensors"), 32, None), backbones.hf(str(folder), 32, None)
    assert torch.equal(tokens(one, pixels()), tokens(two, pixels()))
    assert (one.mean, one.std) == ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def test_the_preprocessor_says_how_pixels_are_normalised(save: Save) -> None:
    folder = save("ViTModel")
    (folder / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.2, 0.1]}')
    encoder = backbones.hf(str(folder), 32, None)
    assert (encoder.mean, encoder.std) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))


def test_loading_leaves_the_global_generator_and_transformers_logging_alone(save: Save) -> None:
    from transformers.utils import logging

    folder = save("ViTModel")
    before = torch.get_rng_state(), logging.get_verbosity(), logging.is_progress_bar_enabled()
    backbones.hf(str(folder), 32, None)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before[1:]


def as_file(folder: Path, into: Path) -> None:
    shutil.copy(folder / "model.safetensors", into / "own.safetensors")
    card = json.loads((folder / "config.json").read_text()) | {"mean": [0.5] * 3, "std": [0.25] * 3}
    (into / "own.json").write_text(json.dumps(card))


def settings(change: dict[str, Any], drop: tuple[str, ...] = ()) -> Callable[[Path], None]:
    """Damages config.json."""

    def write(folder: Path) -> None:
        document = json.loads((folder / "config.json").read_text()) | change
        (folder / "config.json").write_text(json.dumps({k: v for k, v in document.items() if k not in drop}))

    return write


def weights(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[Path], None]:
    """Damages model.safetensors."""

    def write(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        save_file(change(state), folder / "model.safetensors")

    return write


def text(name: str, content: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_text(content)

    return write


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def sharded(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text("{}")


def without(fragment: str) -> Callable[[Path], None]:
    return weights(lambda state: {name: value for name, value in state.items() if fragment not in name})


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), r"cannot be read: .*needs config\.json and model"),
        (lambda folder: (folder / "config.json").unlink(), r"config\.json cannot be read"),
        (pickled, "pickled weights are refused"),
        (sharded, r"several files \(.*save_pretrained"),
        (text("model.safetensors", "weights"), "do not fit"),
        (text("config.json", "{"), r"config\.json cannot be read"),
        (text("config.json", "[]"), "no JSON object"),
        (text("config.json", "[" * 100_000), r"config\.json cannot be read"),
        (text("preprocessor_config.json", "{"), r"preprocessor_config\.json cannot be read"),
        (text("preprocessor_config.json", '{"image_mean": null}'), "do not fit"),
        (text("preprocessor_config.json", '{"image_mean": [0.5]}'), "one number each"),
        (text("preprocessor_config.json", '{"image_std": [1, 1, 0]}'), "std above 0"),
        (settings({"model_type": "clip"}), "'clip' is not supported .*vit, dinov2"),
        (settings({"model_type": ["vit"]}), "is not supported"),
        (settings({}, ("model_type",)), "'None' is not supported"),
        (settings({}, ("patch_size",)), "lacks 'patch_size'"),
        (settings({}, ("num_attention_heads",)), "lacks 'num_attention_heads'"),
        (settings({"patch_size": [8, 8]}), "patch size"),
        (settings({"patch_size": 0}), "patch size"),
        (settings({"patch_size": 20}), r"data\.image_size: image_size 32 is no multiple of .* 20 \(take 40\)"),
        (settings({"patch_size": 16}), "do not fit"),
        (settings({"hidden_size": 64}), "do not fit"),
        (settings({"hidden_size": "wide"}), "do not fit"),
        (settings({"hidden_act": "nothing"}), "do not fit"),
        (settings({"num_hidden_layers": 3}), r"weights lack layers\.2\."),
        (settings({"num_hidden_layers": 1}), r"no place for .*1\.attention"),
        (without("position_embeddings"), "weights lack embeddings.position_embeddings"),
        (without("layernorm.weight"), "weights lack layernorm.weight"),
        (weights(lambda s: s | {"embeddings.position_embeddings": torch.zeros(1, 13, 32)}), "12 .*are no square"),
    ],
)
def test_what_is_missing_or_damaged_is_refused_with_a_reason(
    damage: Callable[[Path], None], reason: str, save: Save, tmp_path: Path
) -> None:
    folder = shutil.copytree(save("ViTModel"), tmp_path / "model")
    damage(folder)
    with pytest.raises(BackboneError, match=reason):
        backbones.hf(str(folder), 32, None)


def test_file_refuses_what_lacks_a_card_or_parts_of_it(save: Save, tmp_path: Path) -> None:
    as_file(save("ViTModel"), tmp_path)
    path, card = str(tmp_path / "own.safetensors"), tmp_path / "own.json"
    whole = json.loads(card.read_text())
    for key in ("mean", "std", "hidden_size", "num_hidden_layers"):
        card.write_text(json.dumps({k: v for k, v in whole.items() if k != key}))
        with pytest.raises(BackboneError, match=f"lacks '{key}'"):
            backbones.file(path, 32, None)
    card.unlink()
    with pytest.raises(BackboneError, match=r"own\.json cannot be read"):
        backbones.file(path, 32, None)
    with pytest.raises(BackboneError, match=r"needs none\.safetensors and none\.json"):
        backbones.file(str(tmp_path / "none.safetensors"), 32, None)


def test_the_hash_is_checked_from_the_study_and_from_the_card(save: Save, tmp_path: Path) -> None:
    folder = save("ViTModel")
    true = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert backbones.hf(str(folder), 32, true).sha256 == true
    with pytest.raises(BackboneError, match=f"SHA-256 is {true}, pinned is 0000"):
        backbones.hf(str(folder), 32, "0" * 64)
    as_file(folder, tmp_path)
    card = tmp_path / "own.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"sha256": "1" * 64}))
    with pytest.raises(BackboneError, match="pinned is 1111"):
        backbones.file(str(tmp_path / "own.safetensors"), 32, None)


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("embedded:vit-huge", r"no embedded backbone 'vit-huge' \(there is: vit-tiny"),
        ("embedded:../embedded/vit_tiny", "no embedded backbone"),
        ("ftp:somewhere", "unknown kind of backbone 'ftp:' .*embedded"),
        ("hf:nobody/no-such-model", "not in the local cache"),
        ("hf:no such id!", "not in the local cache"),
    ],
)
def test_unknown_references_fail_at_once_and_say_what_there_is(reference: str, reason: str) -> None:
    study = studies.loads(
        f'[study]\nname = "x"\n[backbone]\nreference = "{reference}"\n[[adaptation]]\nmethod = "lora"'
    )
    begun = time.monotonic()
    with pytest.raises(BackboneError, match=reason):
        backbones.load(study)
    assert time.monotonic() - begun < 3


def study_on(folder: Path, normalisation: str = "") -> studies.Study:
    return studies.loads(
        f'[study]\nname = "x"\n[data]\nimage_size = 32\n{normalisation}\n[backbone]\nreference = "hf:{folder}"\n'
        '[[adaptation]]\nmethod = "lora"'
    )


ONE = "normalisation = { mean = [0.5], std = [0.25] }"


def test_a_backbone_of_one_channel_takes_grey_and_refuses_colour(save: Save) -> None:
    folder = save("ViTModel", num_channels=1)
    with pytest.raises(BackboneError, match=r"data\.normalisation: .* 3 channels and the backbone 1"):
        plain(study_on(folder))  # ImageNet's three means, for want of a preprocessor_config.json
    network = plain(study_on(folder, ONE))
    grey = pixels(channels=1).sigmoid()
    with torch.no_grad():
        expected = own(folder, "ViTModel")((grey - 0.5) / 0.25).last_hidden_state
        features = network.backbone(grey)
    torch.testing.assert_close(features, torch.cat([expected[:, 0], expected[:, 1:].mean(1)], 1), rtol=0, atol=1e-6)
    with pytest.raises(DataError, match=r'data\.colour: .* 3 channels.* 1 \(write colour = "grey"'):
        network(pixels(channels=3))


@pytest.mark.parametrize("channels", [1, 3])
def test_one_mean_serves_every_channel_of_grey_and_colour(channels: int, save: Save) -> None:
    folder = save("ViTModel")
    network = plain(study_on(folder, ONE))
    seen = pixels(channels=channels).sigmoid()
    with torch.no_grad():
        expected = own(folder, "ViTModel")(((seen - 0.5) / 0.25).expand(-1, 3, -1, -1)).last_hidden_state[:, 0]
        torch.testing.assert_close(network.backbone(seen)[:, :32], expected, rtol=0, atol=1e-6)
