"""Private gradients of every task: what each patient alone would give, whatever the head and the loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polyclinic.client.private.step import Portion, PrivateStep, Terms, brute_force
from polyclinic.core.privacy.noise import Keyed
from polyclinic.models.contracts import Views
from polyclinic.models.network import build
from tests.models.test_dense_matrix import pictures, study_of

WHOSE = torch.tensor([0, 0, 1, 2, 2])


@pytest.mark.parametrize("task", ["segmentation", "detection"])
@pytest.mark.parametrize("method", ["lora", "layernorm", "probe", "adaptformer"])
def test_every_patients_gradient_is_its_own_through_dense_heads(task: str, method: str, tiny_vit: Path) -> None:
    study: Any = study_of(task, method, tiny_vit)
    adapted = build(study)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in adapted.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    pixels, targets = pictures(len(WHOSE), task, 4)
    portion = Portion(Views(torch.from_numpy(pixels) / 255, torch.from_numpy(targets)), WHOSE, 3)

    def objective(model: Any, batch: Any) -> Any:
        return study.task.loss(batch.output, batch.target)

    step = PrivateStep(adapted.network, objective, Terms(0.0, 1.0, "flat", 1.0), Keyed(bytes(32)))
    ours, truth = step.by_patient(portion), brute_force(adapted.network, objective, portion)
    assert not step.one_by_one
    longest = max(float(rows.abs().max()) for rows in truth.values())
    for name, rows in truth.items():
        np.testing.assert_allclose(ours[name].detach(), rows, rtol=0, atol=1e-5 * longest, err_msg=name)
