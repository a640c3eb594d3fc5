"""Private gradients over every family of backbones, windows and convolutions among them: each patient's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from polyclinic.client.private.step import Portion, PrivateStep, Terms, brute_force
from polyclinic.core import study as studies
from polyclinic.core.privacy.noise import Keyed
from polyclinic.models.contracts import Views
from polyclinic.models.network import build
from tests.models.conftest import Save
from tests.models.conftest import save as save  # noqa: PLC0414 -- a fixture
from tests.models.test_backbone_families import NATIVE, checkpoint

WHOSE = torch.tensor([0, 0, 1, 2])
STRATEGY = {"fedsvd": "fedsvd"}
CASES = [
    *[(name, "lora") for name in ("Dinov2Model", "DINOv3ViTModel", "SwinModel", "SamVisionModel")],
    ("DINOv3ViTModel", "ffa_lora"),
    ("SwinModel", "rolora"),
    ("Dinov2Model", "fedsvd"),
    *[(name, "conv_lora") for name in ("ConvNextModel", "DINOv3ConvNextModel")],
    ("SwinModel", "layernorm"),
    ("ConvNextModel", "full"),
    ("monai:unet?features=8,16", "full"),
    ("monai:densenet121?", "conv_lora"),
]


@pytest.mark.parametrize(("name", "method"), CASES)
def test_every_patients_gradient_is_its_own(name: str, method: str, save: Save) -> None:
    size = NATIVE.get(name, 64)
    reference = name.rstrip("?") if ":" in name else f"hf:{checkpoint(save, name)}"
    study: Any = studies.loads(
        f'[study]\nname = "x"\n[data]\nimage_size = {size}\n[backbone]\nreference = "{reference}"\npooling = "mean"\n'
        f'[[adaptation]]\nmethod = "{method}"\n[strategy]\nmethod = "{STRATEGY.get(method, "mean")}"\n'
    )
    adapted = build(study)
    adapted.network.double()  # a hundred convolutions in float32 differ by 1e-4 between one picture and four at once
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in adapted.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    pixels = torch.rand((len(WHOSE), 3, size, size), generator=generator).double()
    portion = Portion(Views(pixels, torch.tensor([0, 1, 1, 0])), WHOSE, 3)

    def objective(model: Any, batch: Any) -> Any:
        return study.task.loss(batch.output, batch.target)

    step = PrivateStep(adapted.network, objective, Terms(0.0, 1.0, "flat", 1.0), Keyed(bytes(32)))
    ours, truth = step.by_patient(portion), brute_force(adapted.network, objective, portion)
    longest = max(float(rows.abs().max()) for rows in truth.values())
    assert longest > 0
    for weight_name, rows in truth.items():
        np.testing.assert_allclose(ours[weight_name].detach(), rows, rtol=0, atol=1e-6 * longest, err_msg=weight_name)
