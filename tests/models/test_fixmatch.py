"""FixMatch against its equation, and what it must not look at."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from polyclinic.core import study as studies
from polyclinic.core.errors import StudyError
from polyclinic.models.adaptation import Start
from polyclinic.models.adaptations.objective_unlabelled import FixMatch
from polyclinic.models.contracts import Batch
from polyclinic.models.tasks.classification import Classification
from tests.models.begun import begun

FOUR = Classification(kind="multiclass", classes=("a", "b", "c", "d"))
TASKS = [Classification(), FOUR, Classification(kind="multilabel", classes=("a", "b", "c"))]
N, SIDE, LABELLED = 24, 16, 10


class Seen(nn.Module):
    """A linear model that remembers what went through it, in order."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn((outputs, SIDE * SIDE), generator=generator) * 0.4)
        self.seen: list[Tensor] = []

    def forward(self, pixels: Tensor) -> Tensor:
        self.seen.append(pixels)
        return pixels.flatten(1) @ self.weight.T


def site(task: Classification) -> Start:
    rng = np.random.default_rng(0)
    pixels = torch.from_numpy(rng.integers(0, 256, (N, 1, SIDE, SIDE), dtype=np.uint8))
    targets = rng.integers(0, 2, (N, 3)) if task.kind == "multilabel" else rng.integers(0, task.options, N)
    return replace(begun(task, torch.from_numpy(targets), pixels=pixels), labelled=torch.arange(LABELLED))


def value(method: FixMatch, start: Start, model: nn.Module) -> Tensor:
    task = start.task
    objective = method.build().objective(lambda m, batch: task.loss(batch.output, batch.target), start)
    pixels = start.pool.pixels[:6].float() / 255
    output = model(pixels)
    return objective(model, Batch(pixels, torch.zeros(6, 1), output, start.pool.targets[:6]))


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
def test_it_is_its_equation(task: Classification) -> None:
    start, model = site(task), Seen(task.outputs)
    found = value(FixMatch(weight=0.7, threshold=0.8, ratio=3), start, model)
    labelled, weak, strong = model.seen
    assert len(weak) == len(strong) == 18
    expected = task.loss(labelled.flatten(1) @ model.weight.T, start.pool.targets[:6]).item()
    given, learned = ((seen.flatten(1) @ model.weight.T).detach().double().numpy() for seen in (weak, strong))
    if task.kind != "multiclass":
        given, learned = (np.stack([np.zeros(a.size), a.ravel()], axis=1) for a in (given, learned))
    p = np.exp(given) / np.exp(given).sum(axis=1, keepdims=True)
    log_q = learned - np.logaddexp.reduce(learned, axis=1, keepdims=True)
    sure = p.max(axis=1) >= 0.8
    assert 0 < sure.sum() < len(sure)
    unsupervised = (sure * -log_q[np.arange(len(p)), p.argmax(axis=1)]).sum() / len(p)
    assert found.item() == pytest.approx(expected + 0.7 * unsupervised, rel=1e-5)


def test_the_label_has_no_gradient() -> None:
    """The gradient is that of the strong view alone against fixed labels."""
    start, model = site(FOUR), Seen(4)
    method = FixMatch(threshold=0.0)
    value(method, start, model).backward()
    labelled, weak, strong = model.seen
    assert model.weight.grad is not None
    again = model.weight.detach().clone().requires_grad_()
    label = (weak.flatten(1) @ again.detach().T).argmax(dim=1)
    loss = FOUR.loss(labelled.flatten(1) @ again.T, start.pool.targets[:6])
    (loss + nn.functional.cross_entropy(strong.flatten(1) @ again.T, label)).backward()
    torch.testing.assert_close(model.weight.grad, again.grad)


def test_it_looks_at_no_target_of_what_is_not_labelled_and_at_no_picture_of_what_is() -> None:
    start = site(FOUR)
    targets = start.pool.targets.clone()
    targets[LABELLED:] = (targets[LABELLED:] + 1) % 4
    other = replace(start, pool=replace(start.pool, targets=targets), generator=torch.Generator().manual_seed(0))
    method = FixMatch(threshold=0.0)
    assert torch.equal(value(method, start, Seen(4)), value(method, other, Seen(4)))
    still = FixMatch(threshold=0.0, shift=0.0, ratio=8)
    model = Seen(4)
    value(still, start, model)
    held = [tuple(picture.flatten().tolist()) for picture in start.pool.pixels]
    for picture in model.seen[1]:
        assert held.index(tuple((picture * 255).round().int().flatten().tolist())) >= LABELLED


def test_it_draws_from_the_generator_alone_and_the_views_differ() -> None:
    model = Seen(4)
    before = torch.get_rng_state()
    value(FixMatch(), site(FOUR), model)
    assert torch.equal(torch.get_rng_state(), before)
    _, weak, strong = model.seen
    assert (weak - strong).abs().mean() > 0.02
    other = Seen(4)
    value(FixMatch(), replace(site(FOUR), generator=torch.Generator().manual_seed(1)), other)
    assert not torch.equal(other.seen[1], weak)


def test_where_all_are_labelled_the_loss_is_as_it_was() -> None:
    start = replace(site(FOUR), labelled=torch.arange(N))
    model = Seen(4)
    found = value(FixMatch(threshold=0.0), start, model)
    torch.testing.assert_close(found, FOUR.loss(model.seen[0].flatten(1) @ model.weight.T, start.pool.targets[:6]))


def chain(*lines: str, data: str = "") -> Any:
    tables = "".join(f"[[adaptation]]\n{each}\n" for each in ('method = "probe"', *lines))
    return studies.loads(f'[study]\nname = "x"\n{data}{tables}')


def test_it_needs_pictures_without_labels_and_is_not_thrown_away() -> None:
    budget, own = 'method = "label_budget"', 'method = "fixmatch"'
    assert chain(budget, own).adaptation[2].method == "fixmatch"
    assert chain('method = "active"', 'method = "focal"', own)
    for lines, reason in [
        ((own,), "here all are"),
        ((own, budget), "here all are"),
        ((budget, own, 'method = "focal"'), "replaces"),
    ]:
        with pytest.raises(StudyError, match=reason):
            chain(*lines)
    with pytest.raises(StudyError, match="volumes"):
        chain(budget, own, data='[data]\nvolume = "whole"\ndepth = 8\n')
