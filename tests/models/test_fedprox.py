"""FedProx against its equation: loss + mu/2·‖w − w_global‖², gradient + mu·(w − w_global)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from polyclinic.core.study import Study
from polyclinic.models.adaptation import Start
from polyclinic.models.adaptations.objective import FedProx
from polyclinic.models.contracts import Anchor, Batch
from polyclinic.models.network import build
from tests.models.begun import begun

MU = 0.3


def start(anchor: Anchor) -> Start:
    return begun(anchor=anchor)


def test_value_and_gradient_are_those_of_the_equation(tiny_study: Study) -> None:
    adapted = build(tiny_study)
    anchor = adapted.write(adapted.read())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in adapted.parameters():
            weight.add_(torch.randn(weight.shape, generator=generator), alpha=0.1)
    pixels = torch.rand((4, 1, 32, 32), generator=generator)
    targets = torch.tensor([0, 1, 0, 1])

    def plain(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        return tiny_study.task.loss(batch.output, batch.target)  # type: ignore[attr-defined,no-any-return]

    def value_and_gradient(objective: object) -> tuple[float, dict[str, np.ndarray]]:
        adapted.network.zero_grad(set_to_none=True)
        loss = objective(adapted.network, Batch(pixels, pixels, adapted.network(pixels), targets))  # type: ignore[operator]
        loss.backward()
        named = dict(adapted.network.named_parameters())
        return loss.item(), {name: named[name].grad.double().numpy() for name in adapted.travelling}  # type: ignore[union-attr]

    loss, gradient = value_and_gradient(plain)
    held, held_gradient = value_and_gradient(FedProx(mu=MU).build().objective(plain, start(anchor)))
    distance = {
        name: array.astype(np.float64) - anchor[name].double().numpy() for name, array in adapted.read().items()
    }
    squared = sum(float((d**2).sum()) for d in distance.values())
    assert squared > 1.0
    assert held == pytest.approx(loss + MU / 2 * squared, rel=1e-6)
    for name in adapted.travelling:
        np.testing.assert_allclose(held_gradient[name], gradient[name] + MU * distance[name], rtol=1e-4, atol=1e-6)


def test_at_the_anchor_it_changes_nothing(tiny_study: Study) -> None:
    adapted = build(tiny_study)
    anchor = adapted.write(adapted.read())
    objective = FedProx(mu=MU).build().objective(lambda model, batch: batch.output.sum(), start(anchor))
    assert objective(adapted.network, Batch(torch.ones(2), torch.ones(2), torch.ones(2), torch.ones(2))).item() == 2.0


def test_it_belongs_to_the_objectives_and_says_so() -> None:
    method = FedProx(mu=0.25)
    assert method.build().families == {"objective"}
    assert "mu = 0.25" in method.explain()
    with pytest.raises(ValueError, match="greater than 0"):
        FedProx(mu=0.0)
