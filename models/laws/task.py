"""The laws of tasks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyclinic.core import laws
from polyclinic.core.laws import hold
from polyclinic.core.study import Study
from polyclinic.models.contracts import Choosing, Task
from polyclinic.models.laws.made_up import IMAGES, alike, same, seen
from polyclinic.models.laws.made_up import targets as made_up
from polyclinic.models.network import plain, task


def check_task(study: Study, targets: Tensor | None = None) -> None:
    """The study's task: its head, its loss, and outcomes that merge.

    Args:
        study: with the task.
        targets: of eight images, where they are no labels.

    Raises:
        AssertionError: a law is broken.
    """
    found, target = task(study), made_up(study, targets)
    before = torch.get_rng_state()
    one, other = plain(study), plain(study)
    hold(torch.equal(before, torch.get_rng_state()), "making a head draws from the global generator")
    hold(same(one.head.state_dict(), other.head.state_dict()), "a head is another one from the same seed")
    output = found.infer(one, seen(study)).float()
    hold(len(output) == IMAGES, "infer() gives another number of rows than images")
    loss = found.loss(output, target)
    hold(
        loss.ndim == 0 and bool(loss.isfinite()) and loss.requires_grad, "the loss is no finite scalar with a gradient"
    )
    if isinstance(found, Choosing):
        logits, right = found.choices(output, target)
        mean = torch.nn.functional.cross_entropy(logits, right)
        hold(torch.allclose(mean, loss, rtol=1e-4, atol=1e-6), "the cross-entropy over the choices is not the loss")
    still = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]).repeat(IMAGES, 1, 1)
    hold(alike(found.moved(target, still), target), "moving pictures by nothing changes their targets")
    for words in (found.trained("mean"), found.told(bins=5, score_bins=16)):
        hold(bool(words.strip()), "the task has no words for its head or its outcomes")
    presence = found.presence(target.numpy())
    shape = (IMAGES,) if found.exclusive else (IMAGES, len(found.classes))
    hold(np.shape(presence) == shape, f"presence() is not of shape {shape}")
    _check_outcomes(found, output.detach().numpy(), target.numpy())


def _check_outcomes(found: Task, output: np.ndarray, target: np.ndarray) -> None:
    """What two sites tell adds up to what one site with all their images would."""
    patients = [f"patient {i}" for i in range(IMAGES)]

    def told(rows: slice) -> Any:
        apart = np.ones((len(output[rows]), 2))
        findings = found.examine(output[rows], target[rows], bins=5, spacing=apart)
        hold(
            all(len(rows_) == len(output[rows]) for rows_ in findings.values()), "examine() gives not one row an image"
        )
        return found.tally(findings, patients[rows], bins=5, score_bins=16)

    blank: Any = found.blank(bins=5, score_bins=16)
    parts = [told(slice(0, 3)), told(slice(3, 5)), told(slice(5, IMAGES))]
    laws.check_statistic(blank, parts)
    hold(
        parts[0] + parts[1] + parts[2] == told(slice(0, IMAGES)), "outcomes of parts do not add up to that of the whole"
    )
