"""Every measure against an independent truth: the paper's equation, a closed form, or a count by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from scipy import stats
from torch import nn

from polyclinic.core.study import Study
from polyclinic.models import network
from polyclinic.simulations.compare import audit, cost, depth, estimate, plan, step
from polyclinic.simulations.compare.shifts import SHIFTS, shifted
from polyclinic.strategies.mean import MeanStrategy


def hsic(k: np.ndarray, l: np.ndarray) -> float:  # noqa: E741 - the paper's letters
    """Kornblith et al. 2019, equation 3: the empirical estimator tr(KHLH) / (n − 1)²."""
    n = len(k)
    h = np.eye(n) - np.ones((n, n)) / n
    return float(np.trace(k @ h @ l @ h)) / (n - 1) ** 2


@given(seed=some.integers(0, 2**32 - 1), n=some.integers(4, 30), p=some.integers(1, 12), q=some.integers(1, 12))
@settings(max_examples=40, deadline=None)
def test_cka_is_the_papers_ratio_of_hsic(seed: int, n: int, p: int, q: int) -> None:
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, p)), rng.normal(size=(n, q))
    k, l = x @ x.T, y @ y.T  # noqa: E741
    assert depth.linear_cka(x, y) == pytest.approx(hsic(k, l) / math.sqrt(hsic(k, k) * hsic(l, l)), abs=1e-9)


def test_cka_is_one_for_equals_and_knows_no_rotation_or_scale_but_other_maps() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 8)), rng.normal(size=(50, 6))
    turn = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    assert depth.linear_cka(x, x) == pytest.approx(1.0)
    assert depth.linear_cka(x, 3.0 * x @ turn + 5.0) == pytest.approx(1.0)
    assert depth.linear_cka(x @ turn, y) == pytest.approx(depth.linear_cka(x, y))
    assert depth.linear_cka(x, x @ np.diag([9.0] + [0.1] * 7)) < 0.9
    assert math.isnan(depth.linear_cka(x, np.ones((50, 2))))


def test_blocks_are_the_transformers_and_their_means_its_own(tiny_study: Study) -> None:
    model = network.plain(tiny_study)
    names = depth.blocks(model)
    assert [name.rpartition(".")[2] for name in names] == ["0", "1"]
    pixels = torch.randint(0, 256, (5, 1, 32, 32), dtype=torch.uint8)
    found = depth.representations(model, pixels, names)
    assert not any(module._forward_hooks for module in model.modules())  # nothing is left behind
    with torch.no_grad():
        seen = model.backbone.normalised(pixels.float() / 255)
        hidden = model.backbone.encoder(pixel_values=seen, output_hidden_states=True).hidden_states
    for name, states in zip(names, hidden[1:], strict=True):
        np.testing.assert_allclose(found[name], states.mean(dim=1).numpy(), atol=1e-5)


def test_what_trains_is_counted_by_hand(tiny_study: Study) -> None:
    count, total = depth.trained(network.build(tiny_study))
    per_layer = 2 * (32 + 32)  # A [2, 32] and B [32, 2]
    backbone = sum(weight.numel() for weight in network.plain(tiny_study).backbone.parameters())
    head = 64 + 1
    assert count == 2 * 4 * per_layer + head  # query, key, value and output in each of two blocks
    assert total == backbone + count


@pytest.mark.parametrize("name", SHIFTS)
def test_a_shift_of_no_size_changes_nothing_and_a_larger_one_more(name: str) -> None:
    none = {"gamma": 1.0, "contrast": 1.0, "blur": 0.0, "noise": 0.0, "resolution": 1.0}[name]
    pixels = np.random.default_rng(1).integers(0, 256, (3, 1, 32, 32), dtype=np.uint8)
    assert np.array_equal(shifted(pixels, name, none, np.random.default_rng(0)), pixels)
    moved = []
    for size in SHIFTS[name].sizes:
        one = shifted(pixels, name, size, np.random.default_rng(0))
        assert one.dtype == np.uint8
        assert one.shape == pixels.shape
        assert np.array_equal(one, shifted(pixels, name, size, np.random.default_rng(0)))
        moved.append(np.abs(one.astype(float) - pixels).mean())
    assert moved == sorted(moved)
    assert moved[0] > 0


def test_shifts_have_the_size_that_they_say() -> None:
    rng = np.random.default_rng(0)
    grey = np.full((1, 1, 64, 64), 64, dtype=np.uint8)
    assert shifted(grey, "gamma", 2.0, rng)[0, 0, 0, 0] == round(255 * (64 / 255) ** 2)
    assert shifted(grey, "contrast", 0.5, rng)[0, 0, 0, 0] == round(255 * (0.5 + 0.5 * (64 / 255 - 0.5)))
    middle = np.full((1, 1, 256, 256), 128, dtype=np.uint8)
    assert shifted(middle, "noise", 0.05, rng).std() / 255 == pytest.approx(0.05, rel=0.02)
    dot = np.zeros((1, 1, 101, 101), dtype=np.uint8)
    dot[..., 50, 50] = 255
    spread = SHIFTS["blur"].change(dot / 255.0, 2.0, rng)[0, 0]
    places = np.arange(101) - 50
    assert (spread.sum(axis=0) * places**2).sum() == pytest.approx((2.0 * 101 / 100) ** 2, rel=0.02)
    field = rng.random((1, 1, 7, 7))
    coarse = SHIFTS["resolution"].change(field, 3.0, rng)[0, 0]
    assert np.allclose(coarse[3:6, 0:3], field[0, 0, 3:6, 0:3].mean())
    assert np.allclose(coarse[6, 3:6], field[0, 0, 6, 3:6].mean())


def test_volumes_are_blurred_in_the_plane_alone() -> None:
    volume = np.zeros((1, 1, 3, 16, 16))
    volume[0, 0, 1, 8, 8] = 1.0
    found = SHIFTS["blur"].change(volume, 5.0, np.random.default_rng(0))
    assert found[0, 0, [0, 2]].max() == 0.0
    assert found[0, 0, 1].sum() == pytest.approx(1.0)


def test_operations_are_those_of_the_products() -> None:
    layer, given_ = nn.Linear(8, 16), torch.randn(4, 8)
    assert step.operations(lambda: layer(given_)) == 2 * 4 * 8 * 16
    q = torch.randn(1, 2, 10, 8)  # attention that is fused on CPUs: q·kᵀ, and weights · v
    assert step.operations(lambda: nn.functional.scaled_dot_product_attention(q, q, q)) == 2 * (2 * 2 * 10 * 10 * 8)


def test_memory_is_what_a_call_takes() -> None:
    held: list[np.ndarray] = []
    found = step.peak_mb(lambda: held.append(np.ones(60 * 2**17)))  # 60 MiB of float64
    assert found is None or 55 < found < 75


def test_effective_rank_counts_equal_directions_and_weighs_others() -> None:
    assert audit.effective_rank(np.array([3.0, 3.0, 3.0, 0.0])) == pytest.approx(3.0)
    assert audit.effective_rank(np.array([5.0, 0.0])) == pytest.approx(1.0)
    share = np.array([0.5, 0.25, 0.25])
    assert audit.effective_rank(8 * share) == pytest.approx(2**1.5)  # entropy of 1.5 bits
    assert audit.effective_rank(np.zeros(4)) == 0.0


def test_a_change_is_counted_by_weights_numbers_and_rank() -> None:
    a, b = torch.randn(12, 2), torch.randn(2, 9)
    before = {"w": torch.randn(12, 9), "bias": torch.zeros(12), "still": torch.ones(3, 3)}
    after = {"w": before["w"] + a @ b, "bias": torch.eye(12)[0], "still": torch.ones(3, 3)}
    found = audit.delta(before, after)
    assert (found["tensors"], found["numbers"], found["of_numbers"]) == (2, 12 * 9 + 1, 12 * 9 + 12 + 9)
    assert (found["matrices"], found["full_rank"]) == (1, 9)
    assert 1.0 < found["rank"] < 2.01  # rank 2, rounding apart


class Floating(MeanStrategy):
    """Sums in floats, which round by order."""

    def init(self, reference: Any) -> Any:
        return {name: np.zeros(array.shape, np.float32) for name, array in reference.items()}

    def add(self, state: Any, update: Any) -> Any:
        return {name: total + np.float32(update.weight) * update.tensors[name] for name, total in state.items()}

    def merge(self, one: Any, other: Any) -> Any:
        return {name: total + other[name] for name, total in one.items()}

    def finish(self, state: Any) -> Any:
        return state


def test_a_fold_that_rounds_by_order_is_found_out() -> None:
    reference = {"w": np.zeros((20, 20), np.float32)}
    assert audit.any_order(MeanStrategy(), reference, 0)
    assert not audit.any_order(Floating(), reference, 0)


def test_intervals_are_students() -> None:
    values = [0.71, 0.78, 0.74, 0.80]
    found = estimate.over(values)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (found.value, found.low, found.high) == pytest.approx((np.mean(values), low, high))
    assert estimate.over([0.5]).low is None
    assert estimate.over([None], "diverged").why == "diverged"
    assert estimate.over([0.1, 0.9], within=(0.0, 1.0)).high == 1.0


def test_pairs_are_t_tests_with_holms_correction() -> None:
    rng = np.random.default_rng(3)
    values = {
        name: dict(enumerate(rng.normal(centre, 0.01, 5))) for name, centre in zip("abc", (0.8, 0.8, 0.7), strict=True)
    }
    rows = estimate.pairs(values, "merit")
    raw = [stats.ttest_rel(list(values[row["a"]].values()), list(values[row["b"]].values())).pvalue for row in rows]
    assert [row["p"] for row in rows] == pytest.approx(raw)
    order = np.argsort(raw)
    by_hand = np.maximum.accumulate([min(1.0, raw[i] * (3 - rank)) for rank, i in enumerate(order)])
    assert [rows[i]["p_holm"] for i in order] == pytest.approx(list(by_hand))
    assert [row["shown"] for row in rows] == [False, True, True]
    assert not any(row["shown"] for row in estimate.pairs({"a": {1: 0.9}, "b": {1: 0.1}}, "merit"))


def test_the_area_is_the_mean_height_over_the_logarithm() -> None:
    assert estimate.area({0.05: 0.8, 0.1: 0.8, 1.0: 0.8}) == pytest.approx(0.8)
    straight = {share: 2.0 + math.log(share) for share in (0.05, 0.1, 0.25, 1.0)}
    assert estimate.area(straight) == pytest.approx(2.0 + math.log(0.05) / 2)
    assert estimate.area({1.0: 0.8}) is None


def test_a_step_is_measured_whole(tiny_study: Study, tiny_manifest: Path) -> None:
    from polyclinic.client.policy import Policy
    from polyclinic.simulations.simulate import gather

    cohort = gather(tiny_study, tiny_manifest, Policy())[1]
    lora = cost.measure(plan.applied(tiny_study, plan.named("lora")[0]), cohort)  # in a process of its own
    images = cohort["north"].data.images("train")
    batch = replace(images, pixels=images.pixels[:4], targets=images.targets[:4], patients=images.patients[:4])
    probe = step.measure(plan.applied(tiny_study, plan.named("probe")[0]), batch)
    tokens, width, rank = 17, 32, 8  # 16 patches of 8 × 8 and the class token; lora's own default rank
    assert float(lora["inference_flops"] or 0) - float(lora["frozen_flops"] or 0) == 2 * 4 * (
        2 * 2 * tokens * width * rank
    )
    assert probe["inference_flops"] == probe["frozen_flops"] == lora["frozen_flops"]
    assert (
        float(lora["step_flops"] or 0) > float(probe["step_flops"] or 0) > 4 * float(probe["frozen_flops"] or 0) * 0.99
    )
    assert float(lora["latency"] or 0) > 0
