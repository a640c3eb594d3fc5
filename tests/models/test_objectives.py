"""Every objective against its equation in NumPy, torch's own function, or torchmetrics, for every kind of choice."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_calibration_error

from polyclinic.core import study as studies
from polyclinic.core.errors import StudyError
from polyclinic.core.study import Study
from polyclinic.models.adaptation import Start
from polyclinic.models.adaptations.objective import FedProx
from polyclinic.models.adaptations.objective_calibration import MarginSmoothing, SoftEce, soft_ece
from polyclinic.models.adaptations.objective_classes import (
    ClassBalanced,
    FedLC,
    FedNTD,
    Focal,
    LabelSmoothing,
    balance,
    focal,
    not_true,
)
from polyclinic.models.contracts import Batch, Objective
from polyclinic.models.network import build
from polyclinic.models.tasks.classification import Classification
from tests.models.begun import begun

BINARY = Classification()
FOUR = Classification(kind="multiclass", classes=("a", "b", "c", "d"))
LABELS = Classification(kind="multilabel", classes=("a", "b", "c"))
TASKS = [BINARY, FOUR, LABELS]
N = 30


def drawn(task: Classification, seed: int = 0) -> tuple[Tensor, Tensor]:
    """(logits, targets) in which every class occurs, unequally often."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (N, task.outputs)).astype(np.float32)
    if task.kind == "multiclass":
        targets = rng.choice(4, N, p=[0.6, 0.2, 0.15, 0.05])
        targets[:4] = range(4)
    else:
        targets = (rng.random((N, 3) if task.kind == "multilabel" else N) < 0.25).astype(np.int64)
        targets[0], targets[1] = 0, 1
    return torch.from_numpy(logits), torch.from_numpy(targets)


def start(task: Classification, targets: Tensor, teacher: Tensor | None = None) -> Start:
    return begun(task, targets, forward=lambda pixels: torch.zeros(0) if teacher is None else teacher)


def plain(task: Classification) -> Objective:
    return lambda model, batch: task.loss(batch.output, batch.target)


def value(method: Any, task: Classification, logits: Tensor, targets: Tensor, teacher: Tensor | None = None) -> Tensor:
    objective = method.build().objective(plain(task), start(task, targets, teacher))
    result: Tensor = objective(nn.Identity(), Batch(torch.zeros(1), torch.zeros(1), logits, targets))
    return result


def spread(task: Classification, logits: Tensor, targets: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(log-softmax [M, C], index of the right class [M], counts per row [M, C]) by hand, in float64."""
    wide = logits.double().numpy()
    right = targets.numpy().reshape(-1)
    if task.kind == "multiclass":
        counts = np.broadcast_to(np.bincount(right, minlength=4), wide.shape)
    else:
        yes = targets.numpy().reshape(N, -1).sum(axis=0)
        counts = np.tile(np.stack([N - yes, yes], axis=1), (N, 1))
        wide = np.stack([np.zeros(wide.size), wide.ravel()], axis=1)
    return wide - np.logaddexp.reduce(wide, axis=1, keepdims=True), right, counts


def picked(table: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.asarray(table[np.arange(len(right)), right])


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
def test_the_cross_entropy_of_a_tasks_choices_is_its_loss(task: Classification) -> None:
    logits, targets = drawn(task)
    chosen, right = task.choices(logits, targets)
    assert chosen.shape == (len(right), task.options)
    torch.testing.assert_close(F.cross_entropy(chosen, right), task.loss(logits, targets))
    counts = task.occurrences(targets).numpy()
    by_hand = spread(task, logits, targets)[2]
    assert np.array_equal(counts, by_hand[:3] if task.kind == "multilabel" else by_hand[0])


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
def test_fedlc_is_the_cross_entropy_of_logits_lowered_by_the_fourth_root(task: Classification) -> None:
    logits, targets = drawn(task)
    log_p, right, counts = spread(task, logits, targets)
    lowered = log_p - 0.7 * (counts + 1e-8) ** -0.25
    expected = -picked(lowered - np.logaddexp.reduce(lowered, axis=1, keepdims=True), right).mean()
    assert value(FedLC(tau=0.7), task, logits, targets).item() == pytest.approx(expected, rel=1e-5)


def test_fedlc_takes_a_class_that_a_site_lacks_out_of_its_softmax() -> None:
    logits, targets = drawn(FOUR)
    kept = targets != 3
    logits, targets = logits[kept].requires_grad_(), targets[kept]
    loss = value(FedLC(tau=1.0), FOUR, logits, targets)
    counts = np.bincount(targets.numpy(), minlength=4)[:3]
    torch.testing.assert_close(loss, F.cross_entropy(logits[:, :3] - torch.tensor(counts**-0.25).float(), targets))
    loss.backward()
    assert logits.grad is not None
    assert logits.grad[:, 3].abs().max() < 1e-40
    one = torch.zeros(N, dtype=torch.int64)  # a site of one class only
    assert torch.isfinite(value(FedLC(), BINARY, drawn(BINARY)[0], one))


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_is_its_equation(task: Classification, gamma: float) -> None:
    logits, targets = drawn(task)
    log_p, right, _ = spread(task, logits, targets)
    log_p = picked(log_p, right)
    expected = (-((1 - np.exp(log_p)) ** gamma) * log_p).mean()
    assert value(Focal(gamma=gamma), task, logits, targets).item() == pytest.approx(expected, rel=1e-5)


def test_focal_has_a_finite_gradient_where_the_model_is_sure() -> None:
    logits = torch.tensor([[0.0, 200.0], [200.0, 0.0]], requires_grad=True)
    focal(logits, torch.tensor([1, 1]), 0.5).sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
@pytest.mark.parametrize("gamma", [0.0, 1.5])
def test_class_balanced_weighs_by_the_effective_number(task: Classification, gamma: float) -> None:
    logits, targets = drawn(task)
    log_p, right, counts = spread(task, logits, targets)
    weights = (1 - 0.9) / (1 - 0.9**counts)
    weights = weights / weights.mean(axis=1, keepdims=True)
    log_p, weights = picked(log_p, right), picked(weights, right)
    expected = (-weights * (1 - np.exp(log_p)) ** gamma * log_p).mean()
    found = value(ClassBalanced(beta=0.9, gamma=gamma), task, logits, targets)
    assert found.item() == pytest.approx(expected, rel=1e-5)


@given(st.lists(st.integers(0, 10_000), min_size=2, max_size=8).filter(any), st.floats(0.0, 0.9999))
def test_balance_averages_one_over_what_is_there_and_prefers_the_rare(counts: list[int], beta: float) -> None:
    weights = balance(torch.tensor(counts, dtype=torch.float32), beta).tolist()
    there = [(n, w) for n, w in zip(counts, weights, strict=True) if n]
    assert all(w == 0 for n, w in zip(counts, weights, strict=True) if not n)
    assert sum(w for _, w in there) / len(there) == pytest.approx(1.0, rel=1e-5)
    ordered = [w for _, w in sorted(there)]
    assert all(a >= b - 1e-5 for a, b in pairwise(ordered))


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
def test_label_smoothing_is_torchs(task: Classification) -> None:
    logits, targets = drawn(task)
    found = value(LabelSmoothing(epsilon=0.2), task, logits, targets)
    if task.kind == "multiclass":
        expected = nn.CrossEntropyLoss(label_smoothing=0.2)(logits, targets)
    else:  # of two classes: 0.9 and 0.1
        smooth = targets.float().view_as(logits) * 0.8 + 0.1
        expected = F.binary_cross_entropy_with_logits(logits, smooth)
    torch.testing.assert_close(found, expected)


def test_mbls_is_its_equation_and_nothing_within_the_margin() -> None:
    logits, targets = drawn(FOUR)
    wide = logits.double().numpy()
    penalty = np.maximum(0, wide.max(axis=1, keepdims=True) - wide - 1.5).mean()
    loss = FOUR.loss(logits, targets).item()
    assert penalty > 0.1
    found = value(MarginSmoothing(margin=1.5, alpha=0.3), FOUR, logits, targets).item()
    assert found == pytest.approx(loss + 0.3 * penalty, rel=1e-5)
    assert value(MarginSmoothing(margin=50.0), FOUR, logits, targets).item() == pytest.approx(loss)
    binary, yes = drawn(BINARY)
    held = np.maximum(0, np.abs(binary.numpy()) - 1.5).mean() / 2  # one of the two classes is the largest
    found = value(MarginSmoothing(margin=1.5, alpha=1.0), BINARY, binary, yes).item()
    assert found == pytest.approx(BINARY.loss(binary, yes).item() + held, rel=1e-5)


def test_soft_ece_becomes_the_ece_of_torchmetrics_as_its_bins_harden() -> None:
    logits, targets = drawn(FOUR)
    p = logits.softmax(dim=1)
    confidence, chosen = p.max(dim=1)
    correct = (chosen == targets).float()
    for power, norm in ((1.0, "l1"), (2.0, "l2")):
        expected = multiclass_calibration_error(p, targets, num_classes=4, n_bins=10, norm=norm)  # type: ignore[arg-type]
        found = soft_ece(confidence, correct, 10, 1e-7, power)
        assert found.item() == pytest.approx(expected.item(), abs=1e-4)


def test_soft_ece_is_its_equation_and_descends() -> None:
    logits, targets = drawn(FOUR)
    confidence, chosen = logits.double().softmax(dim=1).max(dim=1)
    gap = (confidence - (chosen == targets).double()).numpy()
    centres = (np.arange(5) + 0.5) / 5
    member = np.exp(-((confidence.numpy()[:, None] - centres) ** 2) / 0.05)
    member /= member.sum(axis=1, keepdims=True)
    share = member.mean(axis=0)
    expected = np.sqrt((share * ((member * gap[:, None]).mean(axis=0) / share) ** 2).sum())
    method = SoftEce(weight=2.0, bins=5, temperature=0.05)
    found = value(method, FOUR, logits, targets).item()
    assert found == pytest.approx(FOUR.loss(logits, targets).item() + 2 * expected, rel=1e-5)
    moving = (3 * logits).requires_grad_()
    method = SoftEce(weight=1.0)
    error = value(method, FOUR, moving, targets) - FOUR.loss(moving, targets)
    error.backward()
    assert moving.grad is not None
    stepped = moving.detach() - 0.5 * moving.grad / moving.grad.norm()
    assert value(method, FOUR, stepped, targets) - FOUR.loss(stepped, targets) < error


def test_fedntd_is_the_divergence_over_wrong_classes_with_the_global_models_gradient_shut_off() -> None:
    logits, targets = drawn(FOUR)
    teacher = drawn(FOUR, seed=1)[0]
    tau, beta, total = 2.0, 0.4, 0.0
    for own, its, right in zip(logits.double().numpy(), teacher.double().numpy(), targets.numpy(), strict=True):
        p, q = (np.exp(np.delete(row, right) / tau) for row in (own, its))
        p, q = p / p.sum(), q / q.sum()
        total += float((q * np.log(q / p)).sum())
    expected = FOUR.loss(logits, targets).item() + beta * tau**2 * total / N
    found = value(FedNTD(beta=beta, tau=tau), FOUR, logits, targets, teacher)
    assert found.item() == pytest.approx(expected, rel=1e-5)
    same = value(FedNTD(beta=beta, tau=tau), FOUR, logits, targets, logits)
    assert same.item() == pytest.approx(FOUR.loss(logits, targets).item(), rel=1e-6)
    assert not_true(torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([1])).tolist() == [[1.0, 3.0]]


def study_of(*methods: str, task: str = "") -> Study:
    chain = "".join(f'[[adaptation]]\nmethod = "{method}"\n' for method in ("lora", *methods))
    return studies.loads(f'[study]\nname = "x"\n{chain}{task}')


THREE = '[task]\nmethod = "classification"\nkind = "multiclass"\nclasses = ["a", "b", "c"]\n'


@pytest.mark.parametrize(
    ("methods", "reason"),
    [
        (("fedprox", "focal"), "'focal' replaces the loss, and with it what 'fedprox' makes of it.*put 'focal' before"),
        (("focal", "label_smoothing"), "'label_smoothing' replaces the loss.*'focal'.*keep one"),
        (("fedlc", "class_balanced"), "'class_balanced' replaces the loss"),
        (("fedntd",), "'fedntd' needs 3 classes to choose from, and a choice here is between 2"),
    ],
)
def test_chains_that_would_lose_a_loss_are_refused(methods: tuple[str, ...], reason: str) -> None:
    with pytest.raises(StudyError, match=reason):
        study_of(*methods)


def test_losses_add_up_in_chains_that_make_sense() -> None:
    assert len(study_of("focal", "fedlc", "mbls", "soft_ece", "fedprox").adaptation) == 6
    assert study_of("fedntd", task=THREE).adaptation[1].method == "fedntd"


def test_the_global_models_outputs_are_those_of_the_state_that_the_round_began_with(tiny_study: Study) -> None:
    from polyclinic.client.data.dataset import Images
    from polyclinic.client.fit import start as begin
    from polyclinic.models.network import task

    adapted = build(tiny_study)
    anchor = adapted.write({name: array + np.float32(0.05) for name, array in adapted.read().items()})
    pixels = torch.rand((2, 1, 32, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = adapted.network(pixels)
        for weight in adapted.parameters():
            weight.add_(0.1)
    images = Images(np.zeros((2, 1, 32, 32), np.uint8), np.array([0, 1]), ("p", "q"))
    begun = begin(adapted, task(tiny_study), images, tiny_study.training, anchor, {}, None, torch.Generator())
    found = begun.forward(pixels)
    assert torch.equal(found, expected)
    assert not found.requires_grad
    assert not torch.equal(adapted.network(pixels), expected)
    assert begun.targets.tolist() == [0, 1]


@pytest.mark.parametrize("method", [Focal(), LabelSmoothing(), FedNTD(), MarginSmoothing(margin=0.5), SoftEce()])
def test_a_loss_is_the_mean_of_its_pictures_where_it_says_it_is_private(method: Any) -> None:
    logits, targets = drawn(FOUR)
    teacher = drawn(FOUR, seed=1)[0]
    whole = value(method, FOUR, logits, targets, teacher)
    apart = [value(method, FOUR, *(t[i : i + 1] for t in (logits, targets, teacher))) for i in range(N)]
    same = torch.allclose(whole, torch.stack(apart).mean(), rtol=1e-5)
    assert same == method.facts.exact_private


@pytest.mark.parametrize(
    "method", [FedProx(), FedLC(), Focal(), ClassBalanced(), LabelSmoothing(), FedNTD(), MarginSmoothing(), SoftEce()]
)
def test_they_belong_to_the_objectives_and_say_what_they_do(method: Any) -> None:
    assert method.build().families == {"objective"} == set(method.facts.families)
    assert method.explain().endswith(".")
    assert not method.adapts
