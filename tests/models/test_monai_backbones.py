"""MONAI's networks as backbones: against MONAI's own forward passes, from scratch and from bundles, flat and deep."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from monai.networks import nets
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from polyclinic.core import study as studies
from polyclinic.core.errors import BackboneError, StudyError
from polyclinic.models.adaptations import layers
from polyclinic.models.backbones import Encoder, Seen
from polyclinic.models.backbones.monai import monai
from polyclinic.models.network import plain
from polyclinic.simulations.explain import explain

SMALL = {
    "unet": "features=4,8,16",
    "unetr": "features=4&width=24&mlp=32&heads=2",
    "swinunetr": "features=12&depths=1,1,1,1",
    "densenet121": "features=8&growth=4&depths=2,2,2",
    "vit": "patch=8&width=24&mlp=32&layers=4&heads=2",
}
SIZE = {"swinunetr": 64}
STRIDES = {"unet": [1], "unetr": [1], "swinunetr": [1], "densenet121": [4, 8, 16], "vit": [8] * 4}
FLAT_AND_DEEP = [(name, dims) for name in SMALL for dims in (2, 3) if (name, dims) != ("swinunetr", 3)]  # that is slow


def size(name: str) -> int:
    return SIZE.get(name, 32)


def pixels(name: str, channels: int, dims: int, side: int | None = None) -> Tensor:
    return torch.randn((2, channels, *[side or size(name)] * dims), generator=torch.Generator().manual_seed(1))


def scratch(name: str, dims: int, more: str = "", side: int | None = None) -> Encoder:
    side = side or size(name)
    return monai(f"{name}?{SMALL[name]}{more}", side, None, side if dims == 3 else None)


def see(encoder: Encoder, seen: Tensor, *, maps: bool = True) -> Seen:
    with torch.no_grad():
        return encoder.see(encoder.module, seen, maps)


@pytest.mark.parametrize(("name", "dims"), FLAT_AND_DEEP)
def test_from_scratch_maps_have_the_promised_shapes_and_nothing_moves(name: str, dims: int) -> None:
    before = torch.get_rng_state()
    encoder, again, other = (scratch(name, dims, more) for more in ("", "", "&channels=2"))
    assert torch.equal(before, torch.get_rng_state())
    assert encoder.sha256 == again.sha256 != other.sha256
    assert (encoder.channels, other.channels) == ({2: 3, 3: 1}[dims], 2)
    assert encoder.volumes == (dims == 3)
    assert not encoder.pretrained
    assert not any(module.training for module in encoder.module.modules())
    seen = pixels(name, encoder.channels, dims)
    found = see(encoder, seen)
    assert found.mean.shape == (2, encoder.width)
    assert found.cls is None
    assert [level.stride for level in encoder.levels] == STRIDES[name]
    for level, grid in zip(encoder.levels, found.maps, strict=True):
        assert grid.shape == (2, level.channels, *[size(name) // level.stride] * dims)
    without = see(encoder, seen, maps=False)
    assert without.maps == ()
    assert torch.equal(without.mean, found.mean)
    assert torch.equal(see(again, seen).mean, found.mean)


@pytest.mark.parametrize("dims", [2, 3])
def test_a_unet_from_scratch_gives_its_own_output_as_map(dims: int) -> None:
    encoder = scratch("unet", dims)
    seen, found = pixels("unet", encoder.channels, dims), []
    bottom = encoder.module.model[1].submodule[1].submodule
    bottom.register_forward_hook(lambda module, given, made: found.append(made))
    with torch.no_grad():
        assert torch.equal(see(encoder, seen).maps[0], encoder.module(seen))
    assert torch.equal(see(encoder, seen).mean, found[-1].flatten(2).mean(2))


BUNDLES: dict[str, tuple[dict[str, Any], str]] = {
    "UNet": ({"channels": [4, 8, 16], "strides": [2, 2], "num_res_units": 2, "norm": "batch"}, "model.2"),
    "UNETR": ({"img_size": 32, "feature_size": 4, "hidden_size": 24, "mlp_dim": 32, "num_heads": 2}, "out"),
    "SwinUNETR": ({"feature_size": 12, "depths": [1, 1, 1, 1]}, "out"),
    "DenseNet121": ({"init_features": 8, "growth_rate": 4, "block_config": [2, 2, 2]}, "class_layers"),
}


def bundle(folder: Path, target: str, dims: int = 2, channels: int = 1, pt: bool = False, **more: Any) -> nn.Module:
    """A network as MONAI makes it for three classes, with weights that matter, saved as a bundle."""
    settings = BUNDLES[target][0] | more | {"spatial_dims": dims, "in_channels": channels, "out_channels": 3}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net: nn.Module = getattr(nets, target)(**settings).eval()
        for name, value in net.state_dict().items():
            if value.is_floating_point():
                value.copy_(torch.rand(value.shape) + 0.5 if "var" in name else torch.randn(value.shape) * 0.2)
    (folder / "configs").mkdir(parents=True)
    told = {"_target_": target} | settings
    (folder / "configs" / "inference.json").write_text(json.dumps({"device": "$torch.device(0)", "network_def": told}))
    (folder / "models").mkdir()
    if pt:
        torch.save({"state_dict": net.state_dict()}, folder / "models" / "model.pt")
    else:
        save_file(net.state_dict(), folder / "models" / "model.safetensors")
    return net


@pytest.mark.parametrize(("target", "dims"), [(t, d) for t in BUNDLES for d in (2, 3) if (t, d) != ("SwinUNETR", 3)])
def test_a_bundle_gives_what_its_last_layer_was_given(target: str, dims: int, tmp_path: Path) -> None:
    net, side, given = bundle(tmp_path / "b", target, dims), size(target.lower()), []
    net.get_submodule(BUNDLES[target][1]).register_forward_pre_hook(lambda module, args: given.append(args[0]))
    encoder = monai(str(tmp_path / "b"), side, None, side if dims == 3 else None)
    seen = pixels(target.lower(), 1, dims)
    found = see(encoder, seen)
    with torch.no_grad():
        net(seen)
    expected = torch.relu(given[0]) if target == "DenseNet121" else given[0]
    assert torch.equal(found.maps[-1], expected)
    level = encoder.levels[-1]
    assert expected.shape == (2, level.channels, *[side // level.stride] * dims)
    assert encoder.pretrained
    assert (encoder.mean, encoder.std) == ((0.0,), (1.0,))
    assert encoder.sha256 == hashlib.sha256((tmp_path / "b/models/model.safetensors").read_bytes()).hexdigest()
    if target == "DenseNet121":
        torch.testing.assert_close(found.mean, expected.flatten(2).mean(2))


@pytest.mark.parametrize("classification", [False, True])
def test_a_vit_gives_its_own_tokens_and_at_another_size_its_positions_resized(
    classification: bool, tmp_path: Path
) -> None:
    settings = {"hidden_size": 24, "mlp_dim": 32, "num_layers": 4, "num_heads": 2, "spatial_dims": 2, "in_channels": 1}
    settings |= {"img_size": [32, 32], "patch_size": [8, 8], "classification": classification}
    net = nets.ViT(**settings).eval()
    (tmp_path / "network.json").write_text(json.dumps({"network_def": {"_target_": "ViT"} | settings, "mean": [0.5]}))
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    if classification:
        del net.classification_head
    encoder = monai(str(tmp_path), 32, None)
    assert (encoder.mean, encoder.has_cls, encoder.leading) == ((0.5,), classification, int(classification))
    seen = pixels("vit", 1, 2)
    with torch.no_grad():
        last, hidden = net(seen)
    found, lead = see(encoder, seen), int(classification)
    assert torch.equal(found.mean, last[:, lead:].mean(1))
    assert torch.equal(found.maps[-1].flatten(2), last[:, lead:].transpose(1, 2))
    assert torch.equal(found.maps[0].flatten(2), hidden[0][:, lead:].transpose(1, 2))
    larger = monai(str(tmp_path), 64, None)
    places = net.patch_embedding.position_embeddings.detach().transpose(1, 2).reshape(1, 24, 4, 4)
    wanted = nn.functional.interpolate(places, size=(8, 8), mode="bicubic").flatten(2).transpose(1, 2)
    assert torch.equal(larger.module.patch_embedding.position_embeddings, wanted)
    assert see(larger, pixels("vit", 1, 2, 64)).maps[-1].shape == (2, 24, 8, 8)


def test_a_weights_only_file_is_read_if_the_study_pins_it_and_gives_the_same(tmp_path: Path) -> None:
    bundle(tmp_path / "one", "UNet")
    bundle(tmp_path / "two", "UNet", pt=True)
    with pytest.raises(BackboneError, match=r"model\.pt: .*only if it is pinned .*backbone\.sha256"):
        monai(str(tmp_path / "two"), 32, None)
    with pytest.raises(BackboneError, match="pinned is 0000"):
        monai(str(tmp_path / "two"), 32, "0" * 64)
    digest = hashlib.sha256((tmp_path / "two/models/model.pt").read_bytes()).hexdigest()
    one, two = monai(str(tmp_path / "one"), 32, None), monai(str(tmp_path / "two"), 32, digest)
    seen = pixels("unet", 1, 2)
    assert torch.equal(see(one, seen).maps[0], see(two, seen).maps[0])


class Harm:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return print, ("unpickled",)


def test_a_file_that_would_run_code_is_refused_unrun(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle(tmp_path / "b", "UNet", pt=True)
    torch.save({"state_dict": Harm()}, tmp_path / "b/models/model.pt")
    digest = hashlib.sha256((tmp_path / "b/models/model.pt").read_bytes()).hexdigest()
    with pytest.raises(BackboneError, match="do not fit"):
        monai(str(tmp_path / "b"), 32, digest)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("reference", "sizes", "reason"),
    [
        ("resnet", (32, None), r"no network 'resnet' and no such folder \(there is: unet, unetr"),
        ("unet?depth=3", (32, None), r"monai:unet\?depth=3: has no setting 'depth' \(known: dims, channels, features"),
        ("unet?features=a,b", (32, None), r"features = 'a,b' cannot be \(write whole numbers with commas"),
        ("unet?channels=1,2", (32, None), r"channels = '1,2' cannot be \(write one whole number"),
        ("unet?channels=0", (32, None), "cannot be"),
        ("unet?channels=", (32, None), "cannot be"),
        ("unet?dims=3", (32, None), "of 3 dimensions cannot see images of 2 .*leave dims out"),
        ("unet?dims=2", (32, 16), "of 2 dimensions cannot see images of 3"),
        ("unet?features=8", (32, None), "MONAI cannot make it: the length of `channels`"),
        ("unet?features=4,8,16", (30, None), r"data\.image_size: image_size 30 .* 4 \(take"),
        ("unet?features=4,8,16", (32, 18), r"data\.depth: depth 18 .* 4 \(take"),
        ("unet?features=4,8,16,32", (64, 8), r"data\.depth: depth 8 is too small .*take 16"),
        ("swinunetr", (32, None), r"image_size 32 is too small .*take 64 or more"),
        ("swinunetr?features=10", (64, None), "MONAI cannot make it: feature_size should be divisible by 12"),
        ("unetr?width=25&heads=2", (32, None), "MONAI cannot make it: hidden_size should be divisible"),
        ("vit?patch=8", (36, None), r"image_size 36 .* 8 \(take"),
    ],
)
def test_bad_references_say_what_is_wrong(reference: str, sizes: tuple[int, int | None], reason: str) -> None:
    with pytest.raises(BackboneError, match=reason):
        monai(reference, sizes[0], None, sizes[1])


def told(change: dict[str, Any]) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        path = folder / "configs" / "inference.json"
        whole = json.loads(path.read_text())
        whole["network_def"] |= change
        path.write_text(json.dumps(whole))

    return write


def without(folder: Path) -> None:
    path = folder / "models" / "model.safetensors"
    state = load_file(path)
    save_file({name: value for name, value in state.items() if "model.0.conv.unit0.conv.weight" not in name}, path)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "configs/inference.json").unlink(), r"network\.json cannot be read"),
        (lambda folder: (folder / "configs/inference.json").write_text("{}"), "holds no network_def"),
        (lambda folder: (folder / "models/model.safetensors").unlink(), r"needs one of model\.safetensors"),
        (lambda folder: (folder / "models/model.safetensors").write_text("x"), "do not fit"),
        (told({"_target_": "monai.networks.nets.FlexibleUNet"}), r"FlexibleUNet' is not supported \(supported: UNet"),
        (told({"_target_": "os.system"}), "'os.system' is not supported"),
        (told({"channels": "$[4, 8]"}), r"channels = '\$\[4, 8\]' is an expression, which is not run"),
        (told({"strides": ["@a", 2]}), "is an expression"),
        (told({"colour": 3}), "UNet has no 'colour'"),
        (told({"channels": [4, 8, 32]}), "do not fit"),
        (told({"channels": [4, 8, 16, 32], "strides": [2, 2, 2]}), "do not fit: .* size mismatch"),
        (told({"num_res_units": 3}), r"weights lack model\.0\.conv\.unit2"),
        (told({"num_res_units": 1}), r"network_def has no place for model\.0\.conv\.unit1"),
        (told({"spatial_dims": 3}), "of 3 dimensions cannot see"),
        (without, "weights lack model.0.conv.unit0.conv.weight"),
    ],
)
def test_a_damaged_bundle_is_refused_with_a_reason(damage: Callable[[Path], None], reason: str, tmp_path: Path) -> None:
    bundle(tmp_path / "b", "UNet")
    damage(tmp_path / "b")
    with pytest.raises(BackboneError, match=reason):
        monai(str(tmp_path / "b"), 32, None)


def study_on(reference: str, method: str = "full", pooling: str = "mean") -> studies.Study:
    return studies.loads(
        f'[study]\nname = "x"\n[data]\nimage_size = 32\ncolour = "grey"\n[backbone]\nreference = "monai:{reference}"\n'
        f'pooling = "{pooling}"\n[[adaptation]]\nmethod = "{method}"'
    )


def test_a_study_says_that_nothing_was_learnt_before() -> None:
    told = explain(study_on("unet?features=4,8,16"))["What trains"][0]
    assert "monai:unet?features=4,8,16" in told
    assert "NOT pretrained" in told
    with pytest.raises(StudyError, match='write "mean"'):
        plain(study_on("unet?features=4,8,16", pooling="cls"))


@pytest.mark.parametrize(("name", "attention"), [("vit", 4 * 2), ("swinunetr", 4 * 2)])
def test_methods_find_attention_and_mlp(name: str, attention: int) -> None:
    holder = nn.Module()
    holder.backbone = scratch(name, 2).module
    assert len(layers.named(holder, "attention")) == attention
    assert len(layers.named(holder, "mlp")) == 4 * 2
    with pytest.raises(StudyError, match="no key layer"):
        layers.named(holder, "key")
