"""A segmentation's outcome against MONAI, torchmetrics and numpy on all cases in one place."""

from __future__ import annotations

import warnings
from functools import reduce
from operator import add

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.metrics import DiceMetric, HausdorffDistanceMetric, SurfaceDiceMetric
from scipy import stats
from torchmetrics.functional.classification import binary_calibration_error

from polyclinic.core.errors import DataError, UpdateError
from polyclinic.core.statistics.segmented import ROWS, Segmented, tally
from polyclinic.core.statistics.segmented_figures import by_class, figures, reliability
from polyclinic.models.tasks.segmentation import Segmentation

TASK = Segmentation(classes=("liver", "lesion"), tolerance=1.5)
KEYS = ("dice", "dice_pooled", "surface_dice", "hd95", "nll", "ece", "volume_bias", "volume_low", "volume_high")


def blobs(n: int, seed: int, depth: int | None = None, side: int = 20, options: int = 3):
    """(logits, truth): a ball of each class, and one beside it in the prediction; the last class is absent at times."""
    rng = np.random.default_rng(seed)
    size = (side, side) if depth is None else (depth, side, side)
    grid = np.stack(np.meshgrid(*map(np.arange, size), indexing="ij"), axis=-1)
    truth, logits = np.zeros((n, *size), np.uint8), rng.normal(0, 0.5, (n, options, *size)).astype(np.float32)
    for i in range(n):
        for k in range(1, options):
            if k == options - 1 and rng.random() < 0.4:
                continue
            centre = np.array(size) * rng.uniform(0.3, 0.7, len(size))
            truth[i][np.linalg.norm(grid - centre, axis=-1) < 4] = k
            moved = centre + rng.normal(0, 1, len(size))
            logits[i, k][np.linalg.norm(grid - moved, axis=-1) < rng.uniform(3, 5)] += 2.0
        logits[i, 0] += 1.0
    return logits, truth


def told(logits, truth, patients, task=TASK, spacing=None, bins=15) -> Segmented:
    apart = np.ones((len(truth), truth.ndim - 1)) if spacing is None else spacing
    return task.tally(task.examine(logits, truth, bins=bins, spacing=apart), patients, bins=bins, score_bins=16)


def hot(classes, options=3):
    return torch.nn.functional.one_hot(torch.from_numpy(classes.astype(np.int64)), options).movedim(-1, 1)


def monai(metric, guess, truth, **keys):
    """MONAI's value of each case and foreground class, nan where truth lacks the class."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        metric.reset()
        metric(y_pred=hot(guess), y=hot(truth), **keys)
    values = metric.get_buffer().double().numpy()
    present = np.stack([(truth == k).any(axis=tuple(range(1, truth.ndim))) for k in (1, 2)], axis=1)
    return np.where(present, values, np.nan)


@pytest.mark.parametrize("depth", [None, 8])
@pytest.mark.parametrize("seed", [1, 2])
def test_overlap_and_distances_are_monais_by_case_and_merged(depth, seed):
    sites = [blobs(n, seed + n, depth) for n in (1, 4, 7)]
    merged = reduce(add, [told(*site, [f"{i}-{j}" for j in range(len(site[1]))]) for i, site in enumerate(sites)])
    logits, truth = (np.concatenate(arrays) for arrays in zip(*sites, strict=True))
    guess = logits.argmax(axis=1)
    found = figures(merged, None)
    metrics = {
        "dice": DiceMetric(include_background=False),
        "surface_dice": SurfaceDiceMetric([1.5, 1.5], include_background=False),
        "hd95": HausdorffDistanceMetric(include_background=False, percentile=95),
    }
    rows = TASK.examine(logits, truth, bins=15, spacing=np.ones((len(truth), truth.ndim - 1)))
    for name, metric in metrics.items():
        expected = monai(metric, guess, truth)
        assert np.isfinite(expected).sum() > 15
        np.testing.assert_allclose(rows[name.removesuffix("_dice")], expected, atol=1e-6)
        assert found[name].value == pytest.approx(np.nanmean(np.nanmean(expected, axis=0)), abs=1e-6)
        assert found[name].low <= found[name].value <= found[name].high
    assert by_class(merged) == pytest.approx(np.nanmean(monai(metrics["dice"], guess, truth), axis=0)[:2], abs=1e-6)
    pooled = [2 * ((guess == k) & (truth == k)).sum() / ((guess == k).sum() + (truth == k).sum()) for k in (1, 2)]
    assert found["dice_pooled"].value == pytest.approx(np.mean(pooled), abs=1e-12)


def test_distances_are_in_mm_where_the_task_says_so():
    task = Segmentation(classes=("liver", "lesion"), unit="mm", tolerance=1.5)
    logits, truth = blobs(5, 3, 8)
    spacing = np.array([[3.0, 0.5, 0.7]] * 5)
    rows = task.examine(logits, truth, bins=15, spacing=spacing)
    metric = HausdorffDistanceMetric(include_background=False, percentile=95)
    np.testing.assert_allclose(
        rows["hd95"], monai(metric, logits.argmax(axis=1), truth, spacing=[3.0, 0.5, 0.7]), atol=1e-5
    )
    outcome = task.tally(rows, "abcde", bins=15, score_bins=16)
    assert outcome.volume[0] / 2**28 == pytest.approx((truth == 1).sum() * 3.0 * 0.5 * 0.7)


def test_an_interval_of_dice_is_students_over_cases():
    logits, truth = blobs(12, 5)
    found = figures(told(logits, truth, range(12)), None)["dice"]
    expected = monai(DiceMetric(include_background=False), logits.argmax(axis=1), truth)
    limits = [
        stats.t.interval(0.95, len(x) - 1, x.mean(), stats.sem(x)) for x in (c[np.isfinite(c)] for c in expected.T)
    ]
    assert (found.low, found.high) == pytest.approx(
        (np.mean([max(0, a) for a, _ in limits]), np.mean([min(1, b) for _, b in limits])), abs=1e-6
    )


def test_volumes_agree_as_bland_and_altman_have_it():
    sites = [blobs(n, n) for n in (6, 9)]
    merged = reduce(add, [told(*site, [f"{i}-{j}" for j in range(len(site[1]))]) for i, site in enumerate(sites)])
    logits, truth = (np.concatenate(arrays) for arrays in zip(*sites, strict=True))
    guess, found, values = logits.argmax(axis=1), figures(merged, None), []
    for k in (1, 2):
        true, seen = (classes == k for classes in (truth, guess))
        true, seen = true.sum(axis=(1, 2)), seen.sum(axis=(1, 2))
        d, mean = (seen - true) / true.mean(), (seen - true).std(ddof=1) / true.mean()
        values.append((d.mean(), d.mean() - 1.959964 * mean, d.mean() + 1.959964 * mean))
    expected = np.mean(values, axis=0)
    assert [found[name].value for name in KEYS[6:]] == pytest.approx(expected, abs=1e-6)
    assert found["volume_low"].low < found["volume_low"].value < found["volume_bias"].low


@pytest.mark.parametrize("bins", [2, 7, 15])
def test_calibration_is_torchmetrics_on_all_pixels_that_count(bins):
    sites = [blobs(n, n) for n in (2, 5)]
    for _, truth in sites:
        truth[:, :3] = 255
    merged = reduce(
        add, [told(*site, [f"{i}-{j}" for j in range(len(site[1]))], bins=bins) for i, site in enumerate(sites)]
    )
    logits, truth = (np.concatenate(arrays) for arrays in zip(*sites, strict=True))
    p = torch.softmax(torch.from_numpy(logits).double(), dim=1)
    kept = torch.from_numpy(truth != 255)
    foreground, yes = p[:, 1:].sum(dim=1)[kept], torch.from_numpy(truth)[kept] > 0
    expected = float(binary_calibration_error(foreground.clamp(0, 1), yes, n_bins=bins, norm="l1"))
    found = figures(merged, np.random.default_rng(0))
    assert found["ece"].value == pytest.approx(expected, abs=1e-6)
    assert found["ece"].low <= found["ece"].value <= found["ece"].high
    assert sum(b.size for b in reliability(merged)) == int(kept.sum())
    right = -torch.log(p.gather(1, torch.from_numpy(np.where(truth == 255, 0, truth)).long()[:, None])[:, 0])
    each = [float(loss[mask].mean()) for loss, mask in zip(right, kept, strict=True)]
    assert found["nll"].value == pytest.approx(np.mean(each), abs=1e-6)


def test_what_is_missed_is_worst_and_what_is_not_there_has_no_dice():
    truth = np.zeros((3, 6, 8), np.uint8)
    truth[0, 1, 1] = 1
    logits = np.zeros((3, 3, 6, 8), np.float32)
    logits[:, 0] = 1.0
    logits[2, 2, 0, 0] = 5.0  # a false alarm of the second class
    outcome = told(logits, truth, "abc")
    assert outcome.presence.tolist() == [[[2, 0], [1, 0]], [[2, 1], [0, 0]]]
    assert outcome.pixels.tolist() == [[0, 0, 1], [0, 1, 0]]
    found = figures(outcome, None)
    assert [found[name].value for name in ("dice", "surface_dice")] == [0.0, 0.0]
    assert found["hd95"].value == pytest.approx(10.0)
    assert by_class(outcome) == (0.0, None)
    assert figures(told(logits[1:], truth[1:], "bc"), None)["dice"].why == "no class present"
    nobody = figures(TASK.blank(bins=15, score_bins=16), None)
    assert tuple(nobody) == KEYS
    assert {figure.why for figure in nobody.values()} == {"no images"}


@settings(max_examples=25, deadline=None)
@given(cut=st.integers(0, 8), seed=st.integers(0, 1000), unit=st.sampled_from(["pixel", "mm"]))
def test_any_division_among_sites_gives_the_same_bits(cut, seed, unit):
    task = Segmentation(classes=("liver", "lesion"), unit=unit)
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, (8, 4, 5)).astype(np.uint8)
    logits, spacing = rng.normal(size=(8, 3, 4, 5)), rng.uniform(0.1, 3, (8, 2))
    names = [f"p{i}" for i in range(8)]
    whole = told(logits, truth, names, task, spacing)
    parts = [told(logits[at], truth[at], names[at], task, spacing[at]) for at in (slice(cut), slice(cut, None))]
    assert parts[0] + parts[1] == parts[1] + parts[0] == whole
    assert whole - parts[0] == parts[1]
    assert Segmented.from_fields(whole.fields()) == whole


@pytest.mark.parametrize("unit", ["pixel", "mm"])
def test_sums_that_contradict_each_other_are_refused(unit):
    task = Segmentation(classes=("liver", "lesion"), unit=unit)
    logits, truth = blobs(6, 1)
    good = told(logits, truth, "aabbcd", task, np.full((6, 2), 0.5)).fields()
    assert good["patients"] == 4

    def changed(field, *path, by):
        value = np.array(good[field], dtype=object)
        value[path] += by
        return {field: value.tolist()}

    bad = [
        {"images": 7}, {"patients": 7}, {"classes": 3}, {"unit": "cm"}, {"tolerance": -1}, {"nll": -(2**40)},
        changed("class_patients", 0, by=9), changed("presence", 0, 0, 0, by=1), changed("pixels", 0, 0, by=5),
        changed("dice", 0, by=7 * 2**28), changed("dice_squared", 0, by=7 * 2**28), changed("surface", 1, by=-(2**33)),
        changed("hd95", 0, by=2**50), changed("hd95_squared", 0, by=-(2**45)), changed("excess_squared", 0, by=2**80),
        changed("excess", 0, by=-(2**50)), changed("volume", 0, by=-(2**50)), changed("reliability", 0, 3, by=-(10**6)),
        changed("reliability", 2, 0, by=1), changed("reliability", 1, 0, by=2**60),
    ]  # fmt: skip
    for change in bad:
        with pytest.raises(UpdateError):
            Segmented.from_fields(good | change)
    if unit == "pixel":
        with pytest.raises(UpdateError, match="contradicts the pixels"):
            Segmented.from_fields(good | changed("volume", 0, by=2**28))


def test_other_settings_do_not_merge():
    logits, truth = blobs(2, 1)
    other = Segmentation(classes=("liver", "lesion"), tolerance=2.0)
    with pytest.raises(UpdateError, match="tolerance"):
        told(logits, truth, "ab") + told(logits, truth, "ab", other)
    with pytest.raises(UpdateError, match="reliability"):
        told(logits, truth, "ab") + told(logits, truth, "ab", bins=7)


def test_what_cannot_be_tallied_is_refused():
    logits, truth = blobs(3, 1)
    rows = dict(TASK.examine(logits, truth, bins=15, spacing=np.ones((3, 2))))
    assert set(rows) == set(ROWS)
    bad = [{name: rows[name][:-1]} for name in ROWS]
    bad += [{"nll": np.full(3, np.nan)}, {"dice": np.full((3, 2), np.nan)}, {"pixels": rows["pixels"][:, :1]}]
    bad += [{"size": np.full(3, np.nan)}]
    for change in bad:
        with pytest.raises(DataError):
            tally(rows | change, "abc", classes=2)
