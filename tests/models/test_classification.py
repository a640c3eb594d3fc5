"""The classification task against torch's and scikit-learn's losses, and at the edges."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics

from polyclinic.core.config import parse
from polyclinic.core.errors import DataError, StudyError
from polyclinic.core.statistics.outcome import NLL_CAP, UNIT
from polyclinic.models.tasks.classification import Classification

BINARY = Classification(classes=("healthy", "ill"))
THREE = Classification(kind="multiclass", classes=("a", "b", "c"))
LABELS = Classification(kind="multilabel", classes=("a", "b", "c"))
N = 40


def drawn(task: Classification) -> tuple[np.ndarray, np.ndarray]:
    """(logits, targets) in which every class occurs."""
    rng = np.random.default_rng(0)
    shape = (N, 3) if task.kind == "multilabel" else (N,)
    targets = rng.integers(0, 3 if task.kind == "multiclass" else 2, shape)
    return rng.normal(0, 3, (N, task.outputs)).astype(np.float32), targets


def log_loss(task: Classification, logits: np.ndarray, targets: np.ndarray) -> float:
    """scikit-learn's."""
    wide = logits.astype(np.float64)
    if task.kind == "multiclass":
        odds = np.exp(wide)
        return float(metrics.log_loss(targets, odds / odds.sum(axis=1, keepdims=True), labels=[0, 1, 2]))
    p = 1 / (1 + np.exp(-wide))
    columns = targets.reshape(N, -1)
    each = [metrics.log_loss(columns[:, k], p[:, k], labels=[0, 1]) for k in range(columns.shape[1])]
    return float(np.mean(each))


@pytest.mark.parametrize("task", [BINARY, THREE, LABELS], ids=lambda task: task.kind)
def test_the_loss_is_scikit_learns_and_so_is_what_is_told(task: Classification) -> None:
    logits, targets = drawn(task)
    truth = log_loss(task, logits, targets)
    assert task.loss(torch.from_numpy(logits), torch.from_numpy(targets)).item() == pytest.approx(truth, rel=1e-5)
    outcome = task.tally({"output": logits, "target": targets}, [str(i) for i in range(N)], bins=15, score_bins=256)
    assert outcome.nll / 2**UNIT / N == pytest.approx(truth, abs=1e-7)
    assert (outcome.images, outcome.patients, outcome.kind) == (N, N, task.kind)


def test_the_loss_is_torchs_with_its_gradient() -> None:
    for task, torchs in (
        (BINARY, lambda o, t: torch.nn.BCEWithLogitsLoss()(o[:, 0], t.float())),
        (THREE, torch.nn.CrossEntropyLoss()),
        (LABELS, lambda o, t: torch.nn.BCEWithLogitsLoss()(o, t.float())),
    ):
        logits, targets = (torch.from_numpy(array) for array in drawn(task))
        ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        task.loss(ours, targets).backward()
        torchs(theirs, targets).backward()
        torch.testing.assert_close(ours.grad, theirs.grad)


@pytest.mark.parametrize("task", [BINARY, THREE, LABELS], ids=lambda task: task.kind)
@pytest.mark.parametrize("size", [1000.0, 1e30])
@pytest.mark.parametrize("right", [True, False])
def test_enormous_logits_are_sure_and_finite(task: Classification, size: float, right: bool) -> None:
    targets = drawn(task)[1]
    yes = np.eye(3)[targets] if task.kind == "multiclass" else targets.reshape(N, -1)
    logits = (np.where(yes == 1, size, -size) * (1 if right else -1)).astype(np.float32)
    outcome = task.tally({"output": logits, "target": targets}, [str(i) for i in range(N)], bins=15, score_bins=256)
    # three logits of which two are 1000 and the right one is -1000: 2000 + ln 2, cut off
    expected = 0.0 if right else min(NLL_CAP, 2 * size if task.kind == "multiclass" else size)
    assert outcome.nll / 2**UNIT / N == pytest.approx(expected)
    assert outcome.brier / 2**UNIT / N == pytest.approx(0.0 if right else 1.5 if task.kind == "multiclass" else 1.0)


def test_logits_that_are_no_numbers_are_refused() -> None:
    for task in (BINARY, THREE, LABELS):
        logits, targets = drawn(task)
        logits[3] = np.nan
        with pytest.raises(DataError, match="no numbers"):
            task.tally({"output": logits, "target": targets}, [str(i) for i in range(N)], bins=15, score_bins=256)


def test_targets_of_every_kind() -> None:
    assert [BINARY.target(label) for label in ("healthy", "ill")] == [0, 1]
    assert [THREE.target(label) for label in "abc"] == [0, 1, 2]
    labels = {"": (0, 0, 0), "b": (0, 1, 0), "c|a": (1, 0, 1), " a | c ": (1, 0, 1), "a|a": (1, 0, 0), "|": (0, 0, 0)}
    assert {label: LABELS.target(label) for label in labels} == labels
    assert Classification(kind="multilabel", classes=("a", "b"), separator=";").target("a;b") == (1, 1)
    for task, label in ((BINARY, "unsure"), (BINARY, ""), (THREE, "a|b"), (LABELS, "a|d")):
        with pytest.raises(ValueError, match=f"unknown label .*knows {task.classes[0]}, "):
            task.target(label)


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ({"classes": ["a", "a"]}, "must differ"),
        ({"classes": ["a"]}, "two classes"),
        ({"classes": ["a", "b", "c"]}, "two classes"),
        ({"kind": "multiclass", "classes": ["a", "b"]}, "three classes or more"),
        ({"kind": "multilabel", "classes": []}, "at least 1"),
        ({"kind": "multilabel", "classes": ["a|b", "c"]}, "holds the separator"),
        ({"kind": "multilabel", "classes": ["", "c"]}, "no class is empty"),
        ({"kind": "multilabel", "classes": [" a", "c"]}, "blanks"),
        ({"kind": "multilabel", "separator": ", "}, "separator"),
        ({"kind": "segmentation"}, "kind"),
    ],
)
def test_tasks_that_could_never_be_met_are_refused(table: dict[str, Any], reason: str) -> None:
    with pytest.raises(StudyError, match=reason):
        parse(Classification, table, "task")


def test_explain_says_what_is_predicted() -> None:
    assert BINARY.explain() == "Every image gets a probability for healthy or ill (binary classification)."
    assert THREE.explain() == "Every image gets a probability for a, b, c (multiclass classification)."
    assert (BINARY.outputs, THREE.outputs, LABELS.outputs) == (1, 3, 3)
