"""What explains an update best: true gradients, and coins that are found again where no noise hides them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from polyclinic.client.private.step import Portion, brute_force
from polyclinic.client.respond import Workbench
from polyclinic.core.messages import Reply
from polyclinic.core.privacy.plan import plan
from polyclinic.core.update import Update
from polyclinic.models.contracts import Views
from polyclinic.simulations.audit.federation import Exchange
from polyclinic.simulations.audit.linear import explained, gradients
from polyclinic.simulations.audit.pictures import made_up
from tests.simulations.audit.conftest import MakeStudy

CLIP = 1.0


def test_gradients_are_brute_forces_and_coins_are_found_where_nothing_hides_them(private: MakeStudy) -> None:
    study: Any = private(task="detection", noise=0.3)
    rng, count = np.random.default_rng(0), 24
    bench, images = Workbench(study), made_up(study, "site", {"train": [1] * count}, rng).images("train")
    names = list(bench.adapted.travelling)
    sizes = [int(np.prod(bench.adapted.read()[name].shape)) for name in names]
    rows = gradients(bench, images, range(count), names, np.arange(sum(sizes)))

    def objective(model: Any, batch: Any) -> Any:
        return study.task.loss(batch.output, batch.target)

    views = Views(torch.from_numpy(images.pixels).float() / 255, torch.from_numpy(images.targets))
    each = brute_force(bench.adapted.network, objective, Portion(views, torch.arange(count), count))
    true = torch.cat([each[name].flatten(1) for name in names], dim=1).double().numpy()
    true *= np.minimum(1.0, CLIP / np.linalg.norm(true, axis=1, keepdims=True))
    np.testing.assert_allclose(rows, true, atol=1e-4)

    inside = rng.random(count) < 0.5
    sent = bench.adapted.read()
    parts = dict(zip(names, np.split(0.01 * true[inside].sum(axis=0), np.cumsum(sizes)[:-1]), strict=True))
    left = {name: (sent[name] - parts[name].reshape(sent[name].shape)).astype(np.float32) for name in names}
    reply = Reply("site", "", "", 1, "", "", Update("site", 1, left), {}, {}, 0.0)
    quiet = replace(plan(study, {"train": count}), noise=1e-3)
    scores = explained(bench, quiet, [Exchange("site", 1, sent, reply)], images, range(count), rng)
    assert scores[inside].min() > scores[~inside].max()
