"""What is done to training pictures, measured on pictures that know their own coordinates."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from polyclinic.models.adaptations.data import Augment
from polyclinic.models.contracts import Views
from polyclinic.models.tasks.classification import Classification

STILL: dict[str, Any] = {"shift": 0.0, "zoom": 0.0, "rotate": 0.0, "brightness": 0.0, "contrast": 0.0}
SIDE = 64


def changed(pixels: Tensor, seed: int = 0, **knobs: Any) -> Tensor:
    views, generator = Views(pixels, torch.zeros(len(pixels))), torch.Generator().manual_seed(seed)
    return Augment(**STILL | knobs).build().batch(nn.Identity(), Classification(), views, generator).pixels


def noise(count: int = 8, channels: int = 3, side: int = SIDE) -> Tensor:
    return torch.rand((count, channels, side, side), generator=torch.Generator().manual_seed(1))


def maps(count: int = 200, seed: int = 0, **knobs: Any) -> tuple[np.ndarray, np.ndarray]:
    """(matrices [N, 2, 2], shifts in pixels [N, 2]) from output to input coordinates about the middle.

    Channel 0 holds x and channel 1 holds y, so every output pixel tells where it came from; least squares over the
    middle, which stays inside the picture, gives the map.
    """
    at = torch.arange(SIDE, dtype=torch.float32) / (SIDE - 1)
    y, x = torch.meshgrid(at, at, indexing="ij")
    came_from = changed(torch.stack([x, y]).expand(count, 2, SIDE, SIDE), seed, **knobs).double().numpy()
    inner = slice(SIDE // 2 - 6, SIDE // 2 + 6)
    middle = (SIDE - 1) / 2
    out = np.arange(SIDE)[inner] - middle
    design = np.stack([*(grid.ravel() for grid in np.meshgrid(out, out)), np.ones(out.size**2)], axis=1)
    source = came_from[:, :, inner, inner].reshape(count, 2, -1) * (SIDE - 1) - middle
    solved = np.linalg.lstsq(design, source.reshape(2 * count, -1).T, rcond=None)[0]
    assert np.abs(design @ solved - source.reshape(2 * count, -1).T).max() < 1e-3  # affine indeed
    solved = solved.T.reshape(count, 2, 3)
    return solved[:, :, :2], solved[:, :, 2]


def test_with_every_knob_at_zero_it_is_the_identity() -> None:
    torch.testing.assert_close(changed(noise()), noise(), rtol=0, atol=1e-5)


def test_flips_mirror_exactly_and_about_half_of_the_pictures() -> None:
    pixels = noise(64)
    for knob, axes in (("flip", (3,)), ("flip_vertical", (2,))):
        result = changed(pixels, **{knob: True})
        mirrored = [
            torch.allclose(one, other, rtol=0, atol=1e-5) for one, other in zip(result, pixels.flip(axes), strict=True)
        ]
        kept = [torch.allclose(one, other, rtol=0, atol=1e-5) for one, other in zip(result, pixels, strict=True)]
        assert all(a != b for a, b in zip(mirrored, kept, strict=True))
        assert 20 < sum(mirrored) < 44


def test_shifts_are_in_shares_of_the_side_and_reach_their_bound() -> None:
    matrices, shifts = maps(shift=0.125)
    np.testing.assert_allclose(matrices, np.broadcast_to(np.eye(2), matrices.shape), atol=1e-4)
    assert np.abs(shifts).max() <= 0.125 * SIDE + 1e-3
    assert (np.abs(shifts).max(axis=0) > 0.95 * 0.125 * SIDE).all()
    assert np.abs(shifts.mean(axis=0)).max() < 1.0


def test_a_shift_by_whole_pixels_moves_by_whole_pixels() -> None:
    pixels = noise(1)
    seed = next(s for s in range(10_000) if np.abs(np.modf(maps(1, s, shift=0.125)[1])[0]).max() < 0.02)
    across, down = maps(1, seed, shift=0.125)[1][0].round().astype(int)
    inner = slice(10, SIDE - 10)
    expected = pixels.roll((-down, -across), (2, 3))[..., inner, inner]
    torch.testing.assert_close(changed(pixels, seed, shift=0.125)[..., inner, inner], expected, rtol=0, atol=0.03)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("flip_vertical", [False, True])
def test_the_map_is_a_rotation_a_scale_and_mirrors_never_a_shear(flip: bool, flip_vertical: bool) -> None:
    matrices, _ = maps(rotate=40.0, zoom=0.2, flip=flip, flip_vertical=flip_vertical)
    scales = np.sqrt(np.abs(np.linalg.det(matrices)))
    gram = matrices.transpose(0, 2, 1) @ matrices
    np.testing.assert_allclose(gram, scales[:, None, None] ** 2 * np.eye(2), atol=1e-3)
    assert 0.8 - 1e-3 <= scales.min() < 0.83
    assert 1.17 < scales.max() <= 1.2 + 1e-3
    signs = {(bool(np.linalg.det(m) > 0), bool(m[0, 0] > 0)) for m in matrices}
    assert len(signs) == 1 + flip + flip_vertical + (flip and flip_vertical)
    turned = np.degrees(np.arccos(np.clip(np.abs(matrices[:, 0, 0]) / scales, 0, 1)))
    assert 38.0 < turned.max() <= 40.0 + 0.1


def test_brightness_moves_all_of_a_picture_within_its_bound() -> None:
    moved = changed(torch.full((400, 3, 8, 8), 0.5), brightness=0.2) - 0.5
    assert (moved.amax((1, 2, 3)) - moved.amin((1, 2, 3))).max() < 1e-6
    each = moved.mean((1, 2, 3))
    assert -0.2 - 1e-6 <= each.min() < -0.18
    assert 0.18 < each.max() <= 0.2 + 1e-6


def test_contrast_stretches_about_the_mean_within_its_bound() -> None:
    pixels = noise(400, side=8) * 0.5 + 0.25
    result = changed(pixels, contrast=0.3)
    torch.testing.assert_close(result.mean((1, 2, 3)), pixels.mean((1, 2, 3)), rtol=0, atol=1e-5)
    gain = result.flatten(1).std(1) / pixels.flatten(1).std(1)
    assert 0.7 - 1e-4 <= gain.min() < 0.72
    assert 1.28 < gain.max() <= 1.3 + 1e-4


WILD: dict[str, Any] = {
    "shift": 0.5, "zoom": 0.5, "rotate": 180.0, "brightness": 1.0, "contrast": 1.0, "flip": True, "flip_vertical": True,
}  # fmt: skip


@pytest.mark.parametrize("channels", [1, 3])
def test_at_its_wildest_it_stays_in_range_and_shape(channels: int) -> None:
    result = changed(noise(64, channels, 16), **WILD)
    assert result.shape == (64, channels, 16, 16)
    assert result.dtype == torch.float32
    assert 0.0 <= result.min() <= result.max() <= 1.0


def test_it_draws_from_its_generator_alone_and_mixes_no_pictures() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    pixels = noise(6)
    one = changed(pixels, seed=3, **WILD)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(changed(pixels, seed=3, **WILD), one)
    assert not torch.equal(changed(pixels, seed=4, **WILD), one)
    other = pixels.clone()
    other[2] = 0.0
    kept = [i for i in range(6) if torch.equal(changed(other, seed=3, **WILD)[i], one[i])]
    assert kept == [0, 1, 3, 4, 5]
    assert torch.equal(pixels, noise(6))  # and leaves what it was given alone


def test_explain_names_the_mirrors_that_are_on() -> None:
    assert "mirrored" not in Augment().explain()
    assert Augment(flip=True, flip_vertical=True).explain().endswith("mirrored left-right and up-down.")
    assert "shifted by up to 5%, zoomed by 5%, turned by 5°" in Augment().explain()
