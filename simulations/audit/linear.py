"""How a coordinator guesses who took part by knowing pictures alone: which gradients explain best what moved.

What moved in a round is, to first order, c · (Gᵀx + noise), with x the coins and G the clipped gradients of the
canaries at the state that was sent. x is estimated linearly, with the least mean square of errors.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from polyclinic.client.data.dataset import Images
from polyclinic.client.private.step import Portion, PrivateStep, Terms
from polyclinic.client.respond import Workbench
from polyclinic.core.privacy.noise import Keyed
from polyclinic.core.privacy.plan import Plan, demand
from polyclinic.models.contracts import Batch, Views
from polyclinic.simulations.audit.federation import Exchange

AT_ONCE = 16
"""Pictures that go through the model together."""
LOUD = 0.3
"""More noise is not assumed: where it is there, nothing is found in either way, and where it was forgotten, the coins
must not drown in what was assumed."""
NUMBERS = 2**26
"""Of all canaries' gradients together that are held at once; where there are more, some are chosen at random."""


def explained(
    bench: Workbench,
    plan: Plan,
    seen: Sequence[Exchange],
    images: Images,
    places: Sequence[int],
    rng: np.random.Generator,
) -> NDArray[np.float64]:
    """[N] an estimate of each canary's coin, over all rounds; only their order has a meaning.

    Args:
        places: of the canaries among ``images``, one picture each.
    """
    steps, clip = bench.study.training.steps or 1, demand(bench.study).clip
    assumed = min(plan.noise, LOUD) * clip
    ridge = 4 * assumed**2 / (steps * plan.rate**2)  # a coin has a variance of 1/4
    total = np.zeros(len(places))
    for exchange in seen:
        bench.adapted.write(exchange.sent)
        weights = dict(bench.adapted.network.named_parameters())
        names = [name for name in exchange.moved if weights[name].requires_grad]
        flat = np.concatenate([np.asarray(exchange.moved[name], np.float32).reshape(-1) for name in names])
        chosen = rng.permutation(flat.size)[: NUMBERS // len(places)]
        rows, seen_part = gradients(bench, images, places, names, chosen), flat[chosen]
        half = rows.sum(axis=0) / 2  # what would have moved, were every coin one half
        scale = max(0.0, float(seen_part @ half) / max(float(half @ half), 1e-30))
        gram = (rows @ rows.T).astype(np.float64) + ridge * np.eye(len(places))
        total += np.linalg.solve(gram, rows @ (seen_part - scale * half))
    return total


def gradients(
    bench: Workbench, images: Images, places: Sequence[int], names: Sequence[str], chosen: NDArray[np.int64]
) -> NDArray[np.float32]:
    """[N, chosen] each picture's clipped gradient at the model as it now is."""
    privacy, task = demand(bench.study), bench.task

    def objective(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        return task.loss(batch.output, batch.target)

    terms = Terms(0.0, privacy.clip, privacy.clipping, 1.0)
    step, found = PrivateStep(bench.adapted.network, objective, terms, Keyed(bytes(32))), []
    for begin in range(0, len(places), AT_ONCE):
        some = list(places[begin : begin + AT_ONCE])
        pixels = torch.from_numpy(images.pixels[some]).to(bench.device).float() / 255.0
        whole = Views(pixels, torch.from_numpy(images.targets[some]).to(bench.device))
        views = task.cropped(whole, torch.Generator().manual_seed(0))
        each = step.by_patient(Portion(views, torch.arange(len(some), device=bench.device), len(some)))
        scales = step.scales(each)
        rows = torch.cat([scales[name].unsqueeze(1) * each[name].flatten(1) for name in names], dim=1)
        found.append(rows.detach().cpu().numpy()[:, chosen])
    return np.concatenate(found)
