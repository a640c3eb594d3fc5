"""Figures told under privacy: right without noise, honest about it with noise."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize
from sklearn import metrics

from polyclinic.core.errors import UpdateError
from polyclinic.core.statistics import noised, noised_outcome, noised_segmented
from polyclinic.core.statistics.kernel import KernelMeans, fourier
from polyclinic.core.statistics.kernel import discrepancy as plain_discrepancy
from polyclinic.core.statistics.metrics import JUDGED
from polyclinic.core.statistics.noised import NoisedKernel, NoisedLabels, nearest
from polyclinic.core.statistics.noised_outcome import KNOTS, NoisedOutcome
from polyclinic.core.statistics.noised_segmented import NoisedSegmented


def told(blank: Any, rows: np.ndarray, noise: float = 0.0, rng: np.random.Generator | None = None) -> Any:
    """What a site would tell of one row a patient."""
    cells = rows.sum(axis=0)
    cells = cells if rng is None else cells + rng.normal(0.0, noise, cells.shape)
    return replace(
        blank,
        patients=len(rows),
        units=len(rows),
        variance=round(noise**2 * 2**20),
        cells=np.rint(cells * 2**20).astype(np.int64).reshape(blank.cells.shape),
    )


def patients(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(answers, probabilities) of a model that is a little too sure of itself."""
    logits = rng.normal(0.0, 1.2, count)
    answers = (rng.random(count) < 1 / (1 + np.exp(-logits))).astype(np.int64)
    return answers, 1 / (1 + np.exp(-(1.3 * logits + 0.3)))


@given(
    kind=st.sampled_from(["binary", "multilabel", "multiclass"]),
    scores=arrays(np.float64, (7, 3), elements=st.floats(0.0, 1.0)),
    seed=st.integers(0, 9),
)
def test_no_image_is_longer_than_one_and_confidences_come_out_exactly(kind: Any, scores: np.ndarray, seed: int) -> None:
    rng = np.random.default_rng(seed)
    if kind == "multiclass":
        targets, given_scores, confidence = rng.integers(0, 3, 7), scores, scores.max(axis=1)
    elif kind == "multilabel":
        targets, given_scores, confidence = rng.integers(0, 2, (7, 3)), scores, scores.sum(axis=1)
    else:
        targets, given_scores, confidence = rng.integers(0, 2, 7), scores[:, 0], scores[:, 0]
    rows = noised_outcome.rows(kind, given_scores, targets)
    assert rows.shape[1:] == NoisedOutcome.blank(kind, 3).cells.shape
    assert (np.linalg.norm(rows.reshape(7, -1), axis=1) <= 1 + 1e-12).all()
    scale = 3**0.5 if kind == "multilabel" else 1.0
    assert (rows * KNOTS).sum(axis=(1, 2, 3)) * scale == pytest.approx(confidence, abs=1e-9)


def test_without_noise_figures_are_those_of_scikit_learn() -> None:
    answers, scores = patients(4000, np.random.default_rng(0))
    found = noised_outcome.figures(
        told(NoisedOutcome.blank("binary", 2), noised_outcome.rows("binary", scores, answers))
    )
    assert found["accuracy"].value == pytest.approx(metrics.accuracy_score(answers, scores > 0.5), abs=1e-6)
    balanced = metrics.balanced_accuracy_score(answers, scores > 0.5)
    assert found["balanced_accuracy"].value == pytest.approx(balanced, abs=1e-6)
    assert found["auroc"].value == pytest.approx(metrics.roc_auc_score(answers, scores), abs=0.01)
    brier = metrics.brier_score_loss(answers, scores)
    assert brier <= found["brier"].value <= brier + 0.0025 + 1e-9  # type: ignore[operator]
    assert found["nll"].why == noised_outcome.NOT_TOLD
    assert max(figure.noise for figure in found.values()) < 1e-12


def test_of_several_classes_accuracy_and_recalls_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    targets = rng.integers(0, 4, 1000)
    scores = rng.dirichlet(np.ones(4), 1000) * 0.5 + 0.5 * (rng.random((1000, 1)) < 0.4) * np.eye(4)[targets]
    scores /= scores.sum(axis=1, keepdims=True)
    rows = noised_outcome.rows("multiclass", scores, targets)
    found = noised_outcome.figures(told(NoisedOutcome.blank("multiclass", 4), rows))
    guess = scores.argmax(axis=1)
    assert found["accuracy"].value == pytest.approx(metrics.accuracy_score(targets, guess), abs=1e-6)
    assert found["balanced_accuracy"].value == pytest.approx(metrics.balanced_accuracy_score(targets, guess), abs=1e-6)
    assert found["auroc"].value is None


def test_of_several_labels_figures_are_means_over_labels() -> None:
    rng = np.random.default_rng(2)
    targets = rng.integers(0, 2, (2000, 3))
    scores = np.clip(rng.normal(0.35 + 0.3 * targets, 0.2), 0.0, 1.0)
    found = noised_outcome.figures(
        told(NoisedOutcome.blank("multilabel", 3), noised_outcome.rows("multilabel", scores, targets))
    )
    assert found["accuracy"].value == pytest.approx(float(((scores > 0.5) == targets).mean()), abs=1e-6)
    assert found["auroc"].value == pytest.approx(metrics.roc_auc_score(targets, scores), abs=0.01)


@pytest.mark.parametrize(("count", "noise"), [(60, 1.2), (200, 1.2), (200, 5.0), (1000, 5.0)])
def test_intervals_hold_what_is_true_of_the_population(count: int, noise: float) -> None:
    rng = np.random.default_rng(3)
    blank = NoisedOutcome.blank("binary", 2)
    answers, scores = patients(200_000, rng)
    truth = noised_outcome.figures(told(blank, noised_outcome.rows("binary", scores, answers)))
    keys = ("auroc", "accuracy", "balanced_accuracy", "brier", "ece")
    held, tries = dict.fromkeys(keys, 0), 100
    for _ in range(tries):
        answers, scores = patients(count, rng)
        found = noised_outcome.figures(told(blank, noised_outcome.rows("binary", scores, answers), noise, rng), rng)
        for key in keys:
            low, high, true = found[key].low, found[key].high, truth[key].value
            held[key] += low is None or (high is not None and true is not None and low <= true <= high)
            assert found[key].noise > 0.0 or found[key].value is None
    # of 100 intervals that hold with a chance of 95 %, 86 or fewer do so once in a thousand times
    assert min(held.values()) > 86, held


def test_a_class_that_noise_could_have_made_up_gives_no_figure() -> None:
    rng = np.random.default_rng(4)
    scores = rng.random(50)
    one_class = noised_outcome.rows("binary", scores, np.ones(50, np.int64))
    found = noised_outcome.figures(told(NoisedOutcome.blank("binary", 2), one_class, 3.0, rng))
    assert found["auroc"].why == found["balanced_accuracy"].why == noised_outcome.DROWNED
    assert found["accuracy"].value is not None


def test_no_bin_of_a_reliability_diagram_is_negative_and_all_hold_everybody() -> None:
    rng = np.random.default_rng(5)
    answers, scores = patients(80, rng)
    outcome = told(NoisedOutcome.blank("binary", 2), noised_outcome.rows("binary", scores, answers), 5.0, rng)
    assert (outcome.cells < 0).any()
    assert (outcome.histogram() >= 0).all()
    assert outcome.histogram().sum() == pytest.approx(80)
    bins = noised_outcome.reliability(outcome)
    assert [b.low for b in bins[1:]] == pytest.approx([b.high for b in bins[:-1]])
    assert all(b.size >= 0 and (b.size == 0 or 0 <= b.frequency <= 1) for b in bins)


@given(arrays(np.float64, 6, elements=st.floats(-20, 30)), st.floats(0.5, 40.0))
def test_the_nearest_counts_are_those_that_an_optimiser_finds(cells: np.ndarray, total: float) -> None:
    found = nearest(cells, total)
    assert (found >= 0).all()
    assert found.sum() == pytest.approx(total, rel=1e-6)
    constraint = {"type": "eq", "fun": lambda x: x.sum() - total}
    start = np.full(6, total / 6)
    best = minimize(lambda x: ((x - cells) ** 2).sum(), start, bounds=[(0, None)] * 6, constraints=[constraint])
    assert ((found - cells) ** 2).sum() <= best.fun + 1e-5 * (1 + best.fun)


def test_the_discrepancy_is_the_plain_one_without_noise_and_right_on_average_with_it() -> None:
    rng = np.random.default_rng(6)
    a, b = (rng.normal(mean, 1.0, (300, 4)) for mean in (0.0, 0.4))
    blank = NoisedKernel.blank(32, 7)
    plain = [KernelMeans.of(rows, 32, 7) for rows in (a, b)]
    quiet = [told(blank, fourier(rows, 32, 7)) for rows in (a, b)]
    truth = noised.discrepancy(*quiet).value
    assert truth == pytest.approx(plain_discrepancy(*plain), abs=1e-5)
    found = [noised.discrepancy(*(told(blank, fourier(rows, 32, 7), 4.0, rng) for rows in (a, b))) for _ in range(300)]
    values = np.array([figure.value for figure in found])
    assert values.mean() == pytest.approx(truth, abs=4 * values.std() / 300**0.5)
    assert np.mean([figure.noise for figure in found]) == pytest.approx(values.std(), rel=0.15)


def test_prevalences_stay_shares_whatever_noise_does() -> None:
    rng = np.random.default_rng(8)
    rows = np.eye(3)[rng.integers(0, 2, 40)]
    quiet = noised.prevalence(told(NoisedLabels.blank(3, exclusive=True), rows))
    assert [figure.value for figure in quiet] == pytest.approx(rows.mean(axis=0), abs=1e-5)
    for figure in noised.prevalence(told(NoisedLabels.blank(3, exclusive=True), rows, 30.0, rng)):
        assert 0.0 <= figure.low <= figure.value <= figure.high <= 1.0  # type: ignore[operator]


def test_dice_is_the_mean_over_the_cases_that_have_a_class() -> None:
    rng = np.random.default_rng(9)
    there, dice = rng.random((400, 2)) < 0.7, rng.beta(8, 3, (400, 2))
    rows = noised_segmented.rows(there, dice)
    assert (np.linalg.norm(rows.reshape(400, -1), axis=1) <= 1 + 1e-12).all()
    truth = float(np.mean([dice[there[:, k], k].mean() for k in range(2)]))
    assert noised_segmented.figures(told(NoisedSegmented.blank(2), rows))["dice"].value == pytest.approx(
        truth, abs=1e-5
    )
    loud = [noised_segmented.figures(told(NoisedSegmented.blank(2), rows, 5.0, rng), rng)["dice"] for _ in range(100)]
    assert sum(one.low <= truth <= one.high for one in loud) > 86  # type: ignore[operator]


def test_sites_merge_and_their_noise_adds() -> None:
    rng = np.random.default_rng(10)
    parts = []
    for count, noise in ((40, 2.0), (90, 3.0), (10, 1.0)):
        answers, scores = patients(count, rng)
        rows = noised_outcome.rows("binary", scores, answers)
        parts.append(told(NoisedOutcome.blank("binary", 2), rows, noise, rng))
    together = reduce(add, parts)
    assert together.units == 140
    assert together.noise == pytest.approx(14**0.5)
    with pytest.raises(UpdateError, match="configuration"):
        parts[0] + NoisedOutcome.blank("multilabel", 1)


@given(
    blank=st.sampled_from(
        [NoisedOutcome.blank("binary", 2), NoisedOutcome.blank("multiclass", 3), NoisedOutcome.blank("multilabel", 2),
         NoisedSegmented.blank(2)]
    ),
    units=st.integers(1, 50), noise=st.sampled_from([0.0, 0.5, 20.0]), seed=st.integers(0, 2**16),
    scale=st.sampled_from([0.0, 1e-3, 1.0]),
)  # fmt: skip
def test_whatever_a_site_tells_its_figures_are_finite_or_absent(
    blank: Any, units: int, noise: float, seed: int, scale: float
) -> None:
    cells = np.random.default_rng(seed).uniform(-units, units, blank.cells.shape) * scale
    variance = round(noise**2 * 2**20)
    told_so = replace(blank, patients=1, units=units, variance=variance, cells=np.rint(cells * 2**20).astype(np.int64))
    for figure in JUDGED[blank.name].figures(told_so, None).values():
        assert figure.value is None or 0.0 <= figure.low <= figure.value <= figure.high <= 1.0  # type: ignore[operator]
    for one in JUDGED[blank.name].reliability(told_so):
        assert one.size >= 0


def test_cells_that_units_and_noise_cannot_make_are_refused() -> None:
    blank = NoisedKernel.blank(8, 1)
    with pytest.raises(UpdateError, match="cells"):
        replace(blank, patients=5, units=5, variance=2**20, cells=np.full(8, 1000 * 2**20))
