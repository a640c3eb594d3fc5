"""Figures from merged statistics against scikit-learn and torchmetrics on the pooled predictions."""

from __future__ import annotations

from functools import reduce
from itertools import pairwise
from operator import add

import numpy as np
import pytest
import torch
from sklearn import metrics
from torchmetrics.functional.classification import binary_calibration_error, multiclass_calibration_error
from torchmetrics.functional.classification.calibration_error import _ce_compute

from polyclinic.core.errors import DataError, UpdateError
from polyclinic.core.statistics.figures import (
    Figure,
    auroc,
    balanced_accuracy,
    difference,
    ece_adaptive,
    figures,
    reliability,
)
from polyclinic.core.statistics.outcome import equal_width_edges, tally

KINDS = ("binary", "multiclass", "multilabel")
SITES = ((0, 1), (1, 2), (37, 3), (400, 4))


def rng():
    return np.random.default_rng(0)


def truth(kind, probabilities, targets, patients, nll):
    p, t = probabilities, targets
    if kind == "multiclass":
        guess = p.argmax(axis=1)
        calibration = multiclass_calibration_error(torch.tensor(p), torch.tensor(t), p.shape[1], n_bins=15, norm="l1")
        areas = [metrics.roc_auc_score(t == k, p[:, k]) for k in range(p.shape[1]) if (t == k).any()]
        return {
            "auroc": np.mean(areas),
            "accuracy": metrics.accuracy_score(t, guess),
            "balanced_accuracy": metrics.balanced_accuracy_score(t, guess),
            "nll": nll.mean(),
            "brier": ((p - np.eye(p.shape[1])[t]) ** 2).sum(axis=1).mean(),
            "ece": float(calibration),
        }
    p, t = p.reshape(len(p), -1), t.reshape(len(t), -1)
    columns = list(zip(t.T, p.T, strict=True))
    calibration = binary_calibration_error(torch.tensor(p.ravel()), torch.tensor(t.ravel()), n_bins=15, norm="l1")
    return {
        "auroc": np.mean([metrics.roc_auc_score(a, b) for a, b in columns]),
        "accuracy": np.mean([metrics.accuracy_score(a, b > 0.5) for a, b in columns]),
        "balanced_accuracy": np.mean([metrics.balanced_accuracy_score(a, b > 0.5) for a, b in columns]),
        "nll": nll.mean(),
        "brier": np.mean([metrics.brier_score_loss(a, b) for a, b in columns]),
        "ece": float(calibration),
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("offset", [0, 100, 200])
def test_merged_figures_are_those_of_pooled_predictions(draw, pool, kind, offset):
    parts = [draw(kind, n, seed + offset) for n, seed in SITES]
    merged = reduce(add, [tally(**part) for part in parts])
    together = pool(parts)
    assert merged == tally(**together)
    found, expected = figures(merged, rng()), truth(**together)
    for name, value in expected.items():
        assert abs(found[name].value - value) <= found[name].bound + 1e-6, name
        assert found[name].low <= found[name].value <= found[name].high, name
        assert found[name].bound == 0 or name == "auroc"
    assert 0 < found["auroc"].bound < 0.01


@pytest.mark.parametrize("kind", ["binary", "multiclass"])
@pytest.mark.parametrize("bins", [1, 2, 3, 7, 10, 15, 100])
def test_confidences_on_edges_are_binned_as_by_torchmetrics(kind, bins):
    edges = equal_width_edges(bins)[:-1]
    # all but the last bit are torch's own
    np.testing.assert_allclose(edges, torch.linspace(0, 1, bins + 1, dtype=torch.float64).numpy(), atol=2e-16)
    p = np.concatenate([edges, np.nextafter(edges, 0), np.nextafter(edges, 1)]).clip(0, 1)
    if kind == "multiclass":
        # there torchmetrics goes to float32, in which what is nearly sure becomes sure
        p = p[p > 0.5]
    t, boundaries = np.arange(len(p)) % 2, torch.tensor(edges)
    confidence = torch.tensor(p)
    if kind == "multiclass":
        confidence, boundaries = confidence.float(), boundaries.float()
    expected = float(_ce_compute(confidence, torch.tensor(t if kind == "binary" else 1 - t), boundaries))
    predictions = p if kind == "binary" else np.stack([p, 1 - p], axis=1)
    outcome = tally(kind, predictions, t, range(len(p)), np.ones(len(p)), bins=bins)
    assert figures(outcome, rng())["ece"].value == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_reliability_holds_every_prediction_once(draw, kind):
    made = draw(kind, 300, 9)
    bins = reliability(tally(**made))
    assert len(bins) == 16
    assert bins[-1][:2] == (1.0, 1.0)
    assert sum(b.size for b in bins) == 300 * (4 if kind == "multilabel" else 1)
    for b in bins:
        assert b.size == 0 or b.low - 1e-6 <= b.confidence <= b.high + 1e-6
    gap = sum(b.size * abs(b.confidence - b.frequency) for b in bins if b.size) / sum(b.size for b in bins)
    assert gap == pytest.approx(figures(tally(**made), rng())["ece"].value)


def adaptive(confidence, correct):
    order = np.argsort(confidence, kind="stable")
    cuts = np.arange(16) * len(order) // 15
    groups = [order[a:b] for a, b in pairwise(cuts)]
    return sum(abs(confidence[g].sum() - correct[g].sum()) for g in groups) / len(order)


@pytest.mark.parametrize("n", [1, 5, 14, 15, 16, 100, 1001])
@pytest.mark.parametrize("score_bins", [16, 256, 4096])
def test_adaptive_error_lies_within_its_bound(draw, n, score_bins):
    for seed in range(5):
        made = draw("binary", n, seed)
        figure = ece_adaptive(tally(**made, score_bins=score_bins), rng())
        # ties in any order: that is what the bound is for
        for shuffle in range(3):
            order = np.random.default_rng(shuffle).permutation(n)
            exact = adaptive(made["probabilities"][order], made["targets"][order])
            assert abs(figure.value - exact) <= figure.bound + 1e-6
    assert n < 1000 or score_bins < 4096 or figure.bound < 0.03


def test_coarse_scores_give_an_honest_area(draw):
    made = draw("binary", 300, 2)
    exact = metrics.roc_auc_score(made["targets"], made["probabilities"])
    for score_bins in (2, 3, 16, 64):
        figure = auroc(tally(**made, score_bins=score_bins))
        assert abs(figure.value - exact) <= figure.bound
    tied = auroc(tally("binary", np.full(4, 0.3), np.array([0, 1, 0, 1]), "abcd", np.ones(4)))
    assert (tied.value, tied.bound) == (0.5, 0.5)


@pytest.mark.parametrize("kind", KINDS)
def test_no_images_give_reasons_and_no_figures(draw, kind):
    for figure in figures(tally(**draw(kind, 0, 1)), rng()).values():
        assert figure.json() == {"value": None, "low": None, "high": None, "why": "no images"}


def test_one_image_gives_figures_without_spread(draw):
    found = figures(tally(**draw("binary", 1, 1)), rng())
    assert found["auroc"].why == found["balanced_accuracy"].why == "only one class present"
    assert found["accuracy"].low is not None
    for name in ("nll", "brier", "ece", "ece_adaptive"):
        assert found[name].value is not None
        assert found[name].low is found[name].high is None


def test_sure_and_right_or_wrong():
    p, t = np.array([0.0, 1.0, 0.0, 1.0]), np.array([0, 1, 0, 1])
    right = figures(tally("binary", p, t, "abcd", np.zeros(4)), rng())
    wrong = figures(tally("binary", p, 1 - t, "abcd", np.full(4, 5000.0)), rng())
    assert [right[k].value for k in right] == [1, 1, 1, 0, 0, 0, 0]
    assert [wrong[k].value for k in wrong] == [0, 0, 0, 1024, 1, 1, 1]
    assert right["auroc"].low < 0.9
    assert right["accuracy"].low < 0.9


def test_an_absent_class_is_left_out():
    generator = np.random.default_rng(1)
    p, t = generator.dirichlet(np.ones(4), 60), generator.integers(0, 3, 60)
    outcome = tally("multiclass", p, t, range(60), np.ones(60))
    assert auroc(outcome).value == pytest.approx(
        np.mean([metrics.roc_auc_score(t == k, p[:, k]) for k in range(3)]), abs=auroc(outcome).bound
    )
    recalls = [np.mean(p[t == k].argmax(axis=1) == k) for k in range(3)]
    assert balanced_accuracy(outcome).value == pytest.approx(np.mean(recalls))


def test_patients_are_counted_by_answer():
    p, t = np.linspace(0.1, 0.9, 6), np.array([0, 1, 1, 0, 0, 1])
    outcome = tally("binary", p, t, ["a", "a", "b", "b", "c", "d"], np.ones(6))
    assert outcome.patients == 4
    assert outcome.sides.tolist() == [[3, 3]]


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_tallied_is_refused(draw, kind):
    made = draw(kind, 8, 1)
    shortened = [{key: made[key][:-1]} for key in ("probabilities", "targets", "nll", "patients")]
    spoilt = made["probabilities"].copy()
    spoilt.flat[0] = np.nan
    bad = [*shortened, {"probabilities": spoilt}, {"probabilities": made["probabilities"] + 1.1}]
    bad += [{"targets": made["targets"] + 9}, {"targets": made["targets"] - 9}, {"nll": made["nll"] - 99}]
    for change in bad:
        with pytest.raises(DataError):
            tally(**(made | change))


def test_outcomes_of_other_bins_do_not_merge(draw):
    made = draw("binary", 9, 1)
    for options in ({"bins": 10}, {"score_bins": 32}):
        with pytest.raises(UpdateError, match="configuration"):
            tally(**made) + tally(**made, **options)


def test_a_difference_combines_intervals():
    a, b = Figure(0.9, 0.85, 0.93, 0.01), Figure(0.8, 0.7, 0.88, 0.02)
    found = difference(a, b)
    assert found.value == pytest.approx(0.1)
    assert found.low == pytest.approx(0.1 - np.hypot(0.05, 0.08))
    assert found.high == pytest.approx(0.1 + np.hypot(0.03, 0.1))
    assert found.bound == pytest.approx(0.03)
    unknown = Figure(None, None, None, why="no images")
    assert difference(a, unknown).why == difference(unknown, a).why == "no images"
    assert difference(a, Figure(0.8, None, None)).low is None


def test_a_figure_has_either_a_value_or_a_reason():
    with pytest.raises(AssertionError):
        Figure(None, None, None)
    with pytest.raises(AssertionError):
        Figure(0.5, 0.4, 0.6, why="because")
