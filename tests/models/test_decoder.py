"""The decoder: shapes of every kind of backbone, the same weights from the same seed, and pictures that stand alone."""

from __future__ import annotations

import pytest
import torch

from polyclinic.core.errors import StudyError
from polyclinic.models.contracts import Level, Shape
from polyclinic.models.heads.decoder import Decoder, Pointwise, decoder

SHAPES = {
    "plain": Shape(8, (Level(8, 16),) * 4, 48),
    "pyramid": Shape(8, (Level(4, 4), Level(6, 8), Level(8, 16)), 48),
    "single": Shape(8, (Level(8, 8),), 40, channels=1),
    "volume": Shape(8, (Level(4, 4), Level(8, 8)), 16, 8, 1),
    "uneven": Shape(8, (Level(8, 8),), 24, 12),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def maps(shape, n=2, seed=1):
    size = (shape.side,) * 2 if shape.depth is None else (shape.depth, shape.side, shape.side)
    draw = generator(seed)
    picture = torch.rand((n, shape.channels, *size), generator=draw)
    found = [
        torch.randn((n, level.channels, *(max(1, s // level.stride) for s in size)), generator=draw)
        for level in shape.levels
    ]
    return (picture, *found)


@pytest.mark.parametrize("name", SHAPES)
def test_it_paints_a_logit_for_every_class_and_pixel(name):
    shape = SHAPES[name]
    head, seen = decoder(shape, 3, generator()), maps(shape)
    assert isinstance(head, Decoder)
    found = head(seen)
    assert found.shape == (2, 3, *seen[0].shape[2:])
    assert torch.isfinite(found).all()
    for i in range(2):  # no picture touches another
        torch.testing.assert_close(head([one[i : i + 1] for one in seen]), found[i : i + 1], rtol=1e-4, atol=1e-5)
    for i in range(len(seen)):  # and every map counts
        changed = [one + 1.0 if j == i else one for j, one in enumerate(seen)]
        assert not torch.allclose(head(changed), found)


@pytest.mark.parametrize("name", SHAPES)
def test_weights_follow_from_the_generator_alone(name):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = decoder(SHAPES[name], 3, generator()).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = (decoder(SHAPES[name], 3, generator(seed)).state_dict() for seed in (0, 1))
    assert all(torch.equal(value, again[key]) for key, value in one.items())
    assert any(not torch.equal(value, other[key]) for key, value in one.items())
    assert not any("running" in key for key in one)


@pytest.mark.parametrize("depth", [None, 8])
def test_a_map_as_fine_as_the_picture_gets_one_convolution(depth):
    head = decoder(Shape(5, (Level(5, 1),), 16, depth), 2, generator())
    assert isinstance(head, Pointwise)
    seen = torch.randn((2, 5, *([] if depth is None else [depth]), 16, 16))
    expected = torch.einsum("nc...,oc->no...", seen, head.paint.weight.flatten(1))
    torch.testing.assert_close(head([seen]), expected, rtol=1e-5, atol=1e-6)


def test_a_backbone_without_maps_is_refused():
    with pytest.raises(StudyError, match="gives no maps"):
        decoder(Shape(8, (), 32), 2, generator())
