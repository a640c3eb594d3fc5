"""Canaries: orthogonal, as long as the clip once clipped, and nothing at all where they do not take part."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyclinic.client.private.step import Portion, PrivateStep, Terms
from polyclinic.core.privacy.noise import Keyed
from polyclinic.models.contracts import Views
from polyclinic.models.network import build
from polyclinic.simulations.audit.attack import trained
from polyclinic.simulations.audit.canaries import Audited, Canaries, Directions
from tests.simulations.audit.conftest import MakeStudy

SHAPES = {"a": (4, 5), "b": (7,)}


@given(st.integers(1, 40), st.integers(0, 2**20))
@settings(max_examples=30, deadline=None)
def test_directions_are_orthogonal_and_found_again(count: int, seed: int) -> None:
    directions = Directions.draw(SHAPES, count, np.random.default_rng(seed))
    assert directions.count == min(count, 27)
    rows = [directions.rows(i, 3.0) for i in range(directions.count)]
    flat = np.stack([np.concatenate([row["a"].ravel(), row["b"]]) for row in rows])
    np.testing.assert_allclose(flat @ flat.T, 9.0 * np.eye(directions.count), atol=1e-5)
    for i, row in enumerate(rows):
        np.testing.assert_allclose(directions.along(row), 3.0 * (np.arange(directions.count) == i), atol=1e-5)


@pytest.mark.parametrize("clipping", ["flat", "per_layer", "automatic"])
@pytest.mark.parametrize("kind", ["gradient", "input"])
def test_a_canary_adds_its_gradient_if_it_takes_part_and_else_nothing(
    clipping: Any, kind: str, private: MakeStudy
) -> None:
    study: Any = private()
    adapted, clip = build(study), 0.5
    shapes = trained(adapted)
    directions = Directions.draw(shapes, 20, np.random.default_rng(0)) if kind == "gradient" else None
    # of four patients the second has two pictures and is none; the third takes part, the others do not
    coins = np.array([False, True, False])
    among = Canaries({5: 0, 8: 1, 9: 2}, coins, directions)
    whose, places = torch.tensor([0, 1, 1, 2, 3]), (5, 6, 7, 8, 9)
    pixels = torch.rand((5, 1, 32, 32), generator=torch.Generator().manual_seed(0))
    portion = Portion(Views(pixels, torch.tensor([0, 1, 0, 1, 0])), whose, 4, places)

    def objective(model: Any, batch: Any) -> Any:
        return study.task.loss(batch.output, batch.target)

    terms = Terms(0.0, clip, clipping, 1.0)
    plain = PrivateStep(adapted.network, objective, terms, Keyed(bytes(32)))
    step = Audited(PrivateStep, among)(adapted.network, objective, terms, Keyed(bytes(32)))
    each, true = step.by_patient(portion), plain.by_patient(portion)
    assert among.of(portion) == [0, -1, 1, 2]
    for name, rows in each.items():
        assert not rows[0].any()
        assert not rows[3].any()
        torch.testing.assert_close(rows[1], true[name][1])
        if directions is None:
            torch.testing.assert_close(rows[2], true[name][2])
    if directions is not None:
        scales = step.scales(each)
        given = {name: (scales[name][2] * rows[2]).detach().numpy() for name, rows in each.items()}
        assert directions.along(given)[1] == pytest.approx(clip, rel=0.25 if clipping == "per_layer" else 5e-3)
        assert directions.along(given)[1] <= clip * (1 + 1e-5)
        assert np.abs(np.delete(directions.along(given), 1)).max() < 1e-6


def test_pictures_of_no_pool_are_nobodys_canaries(private: MakeStudy) -> None:
    portion = Portion(Views(torch.zeros(2, 1, 8, 8), torch.zeros(2)), torch.tensor([0, 1]), 2)
    assert Canaries({0: 0, 1: 1}, np.array([True, True])).of(portion) == [-1, -1]
