"""Patch embeddings of another size or of volumes, against FlexiViT's equation in NumPy and against the flat network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from polyclinic.core.errors import StudyError
from polyclinic.core.study import Data
from polyclinic.models import backbones
from polyclinic.models.adaptations.architecture_patches import pi_resized
from polyclinic.models.contracts import Level
from polyclinic.models.network import Network, build, plain
from tests.models.plain_vit import on, outputs, pixels, shaken, study_of

Save = Callable[..., Path]
PROBE, LORA = 'method = "probe"', 'method = "lora"'
VOLUME = 'volume = "whole"\ndepth = {}'
FAMILIES = ["ViTModel", "Dinov2Model", "Dinov2WithRegistersModel"]


def bilinear(old: int, new: int) -> np.ndarray:
    """B along one side: value at new places, half-pixel centres, from the two nearest old ones; [new, old]."""
    matrix = np.zeros((new, old))
    for i in range(new):
        place = min(max((i + 0.5) * old / new - 0.5, 0.0), old - 1.0)
        low = min(int(place), old - 2)
        matrix[i, low], matrix[i, low + 1] = 1 - (place - low), place - low
    return matrix


@pytest.mark.parametrize("size", [4, 6, 8, 12, 16])
def test_kernels_are_resized_by_the_papers_pseudo_inverse(size: int) -> None:
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(5, 3, 8, 8))
    along = bilinear(8, size)
    b = np.kron(along, along)  # resizes a whole patch, row by row
    expected = kernel.reshape(5, 3, 64) @ np.linalg.pinv(b.T).T
    found = pi_resized(torch.from_numpy(kernel), size).numpy()
    np.testing.assert_allclose(found.reshape(5, 3, -1), expected, rtol=1e-9, atol=1e-9)
    if size >= 8:  # a larger patch holds all that the resized one did
        patch = rng.normal(size=64)
        np.testing.assert_allclose(expected @ (b @ patch), kernel.reshape(5, 3, 64) @ patch, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("size", [4, 8, 16])
def test_a_study_of_another_patch_size_sees_another_grid(name: str, size: int, save: Save) -> None:
    study = study_of(f"hf:{save(name)}", LORA, f'method = "patch_size"\nsize = {size}')
    network = build(study).network
    with torch.no_grad():
        encoded = network.backbone.encode(pixels(), maps=True)
    assert [one.shape for one in encoded.maps] == [(2, 32, 32 // size, 32 // size)] * 4
    assert network.backbone.levels == (Level(32, size),) * 4
    if size == 8:  # its own
        torch.testing.assert_close(outputs(network), outputs(plain(study_of(study.backbone.reference, LORA))))
    assert [name for name in build(study).travelling if "lora" not in name] == ["head.bias", "head.weight"]


def test_upsampled_pictures_with_upsampled_patches_give_the_same_tokens(tiny_vit: Path) -> None:
    """Each patch, made twice as large by bilinear resizing, has the embedding that it had."""
    old = plain(on(tiny_vit, PROBE)).backbone.encoder.embeddings.patch_embeddings
    new = plain(on(tiny_vit, PROBE, 'method = "patch_size"\nsize = 16')).backbone.encoder.embeddings.patch_embeddings
    seen = torch.randn((1, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    patches = seen.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).reshape(16, 3, 8, 8)
    larger = nn.functional.interpolate(patches, scale_factor=2, mode="bilinear")
    with torch.no_grad():
        torch.testing.assert_close(new(larger)[:, 0], old(seen)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "reason"),
    [(5, r"no multiple of the patch size 5 \(take 30 pixels"), (64, "multiple of the patch size 64")],
)
def test_patches_that_do_not_fill_the_picture_are_refused(size: int, reason: str, tiny_vit: Path) -> None:
    with pytest.raises(StudyError, match=reason):
        on(tiny_vit, LORA, f'method = "patch_size"\nsize = {size}')


def inflated(reference: str, depth: int, depth_patch: int) -> Network:
    table = f'method = "inflate"\ndepth_patch = {depth_patch}'
    return plain(study_of(reference, LORA, table, data=VOLUME.format(depth)))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("depth", "depth_patch"), [(4, 4), (8, 2), (6, 1)])
def test_a_volume_of_one_slice_over_and_over_has_the_flat_pictures_patches(
    name: str, depth: int, depth_patch: int, save: Save
) -> None:
    reference = f"hf:{save(name)}"
    flat, deep = plain(study_of(reference, LORA)), inflated(reference, depth, depth_patch)
    leading = flat.backbone.leading
    with torch.no_grad():
        one = flat.backbone.encoder.embeddings(pixels())
        volume = pixels()[:, :, None].expand(-1, -1, depth, -1, -1)
        many = deep.backbone.encoder.embeddings(volume)
    places = many[:, leading:].reshape(2, depth // depth_patch, 16, 32)
    assert torch.equal(many[:, :leading], one[:, :leading])
    for slab in range(depth // depth_patch):
        torch.testing.assert_close(places[:, slab], one[:, leading:], rtol=1e-5, atol=1e-5)
    if depth == depth_patch:  # as many tokens, so that all of it is the same
        torch.testing.assert_close(outputs(deep, volume), outputs(flat), rtol=1e-4, atol=1e-4)


def test_a_patch_is_the_mean_of_what_its_slices_give_and_its_depth(tiny_vit: Path) -> None:
    deep = inflated(f"file:{tiny_vit}", 6, 3)
    embeddings = deep.backbone.encoder.embeddings
    kernel = plain(on(tiny_vit, LORA)).backbone.encoder.embeddings.patch_embeddings.projection
    volume = torch.rand((2, 3, 6, 32, 32), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        embeddings.depth_positions.normal_(generator=torch.Generator().manual_seed(2))
        found = embeddings(volume)[:, 1:].reshape(2, 2, 16, 32)
        for slab in range(2):
            mean = (
                torch.stack([kernel(volume[:, :, 3 * slab + i]) for i in range(3)]).mean(0).flatten(2).transpose(1, 2)
            )
            places = embeddings.position_embeddings[:, 1:] + embeddings.depth_positions[:, slab]
            torch.testing.assert_close(found[:, slab], mean + places, rtol=1e-4, atol=1e-5)


def test_grey_volumes_of_one_channel_broadcast_and_positions_travel(tiny_vit: Path) -> None:
    study = on(tiny_vit, LORA, 'method = "inflate"', data=VOLUME.format(8))
    adapted = build(study)
    assert adapted.read()["backbone.encoder.embeddings.depth_positions"].shape == (1, 2, 1, 32)
    grey: Tensor = torch.rand((2, 1, 8, 32, 32), generator=torch.Generator().manual_seed(1))
    shaken(adapted)
    found = outputs(adapted.network, grey)
    assert found.shape == (2, 1)
    torch.testing.assert_close(found, outputs(adapted.network, grey.expand(-1, 3, -1, -1, -1)), rtol=1e-5, atol=1e-5)


def test_volumes_and_flat_pictures_are_not_mixed_up(tiny_vit: Path) -> None:
    with pytest.raises(StudyError, match=r"volumes for a backbone of flat pictures \(add an .*family architecture"):
        build(on(tiny_vit, LORA, data=VOLUME.format(8)))
    with pytest.raises(StudyError, match="'inflate' is for volumes, and the study's pictures are flat"):
        on(tiny_vit, LORA, 'method = "inflate"')
    with pytest.raises(StudyError, match=r"8 slices is no multiple of depth_patch 3 \(take a depth of 9"):
        on(tiny_vit, LORA, 'method = "inflate"\ndepth_patch = 3', data=VOLUME.format(8))
    with pytest.raises(StudyError, match="both change the backbone's patch grid"):
        on(tiny_vit, LORA, 'method = "inflate"', 'method = "patch_size"\nsize = 16', data=VOLUME.format(8))


def test_backbones_that_embed_patches_otherwise_are_refused(tiny_vit: Path, save: Save) -> None:
    method = on(tiny_vit, LORA, 'method = "patch_size"\nsize = 16').adaptation[1]
    swin = save("SwinModel", image_size=64, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[1, 2], window_size=4)
    encoder = backbones.hf(str(swin), 64, None)
    with pytest.raises(StudyError, match="embedded otherwise than is known here"):
        method.build().recast(encoder, Data(image_size=64))  # type: ignore[attr-defined]


def beside_lora(table: str) -> list[str]:
    return [table] if "ladder" in table else [LORA, table]


def test_they_go_with_prompts_merging_and_a_ladder(tiny_vit: Path) -> None:
    patches = 'method = "patch_size"\nsize = 4'
    for beside in ('method = "vpt"', 'method = "ladder"\nreduction = 2'):
        one, other = build(on(tiny_vit, patches, beside)), build(on(tiny_vit, beside, patches))
        assert torch.equal(outputs(one.network), outputs(other.network))
    merged = build(on(tiny_vit, LORA, 'method = "tome"\nr = 20', patches))
    assert outputs(merged.network).isfinite().all()
    for beside in ('method = "tome"', 'method = "vpt"', 'method = "ladder"', 'method = "adaptformer"'):
        deep = build(on(tiny_vit, *beside_lora(beside), 'method = "inflate"', data=VOLUME.format(8)))
        assert outputs(deep.network, torch.rand((2, 3, 8, 32, 32))).isfinite().all()
