"""What two sites send after a round, and what all their images give in one place, for tests of sums that travel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from polyclinic.client.data.dataset import SiteData
from polyclinic.client.data.manifest import read_manifest, sites
from polyclinic.client.policy import Policy
from polyclinic.client.respond import Site, Workbench, respond
from polyclinic.core.messages import Instruction
from polyclinic.core.study import Study
from polyclinic.core.update import Tensors, Update, digest
from polyclinic.core.version import VERSION
from polyclinic.models import network
from polyclinic.models.network import Adapted, build


def members(study: Study, manifest: Path) -> Mapping[str, Site]:
    """The sites of a manifest, by name."""
    task = network.task(study)
    rows = sites(read_manifest(manifest, study.data, task, study.study.seed))
    return {name: Site(name, SiteData(name, group, study.data, task), Policy()) for name, group in rows.items()}


def rounds(study: Study, cohort: Mapping[str, Site], count: int) -> tuple[Tensors, list[Update], Tensors]:
    """(state before the last of ``count`` rounds, updates of that round, state after it), all sites in each."""
    bench, strategy = Workbench(study, torch.device("cpu")), study.strategy.build()  # type: ignore[attr-defined]
    state: Tensors = bench.adapted.read()
    for number in range(1, count + 1):
        before, fold, updates = state, strategy.init(state), []
        for site in cohort.values():
            asked = Instruction(study.digest, "r", number, "n", digest(state), True, (), False, VERSION, state)
            update = respond(bench, site, asked).update
            assert update is not None
            strategy.expects(state).check(update.tensors)
            updates.append(update)
            fold = strategy.add(fold, update)
        state = strategy.finish(fold)
    return before, updates, state


def together(
    study: Study, cohort: Mapping[str, Site], states: Sequence[Tensors], *, raw: bool = False
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """(features [N, width] float64 of all sites' training images, targets, images a site), each by its own state.

    ``raw``: before the neck.
    """
    found, targets, counts = [], [], []
    for site, state in zip(cohort.values(), states, strict=True):
        model: Adapted = build(study)
        model.write(state)
        images = site.data.images("train")
        with torch.no_grad():
            pixels = torch.from_numpy(images.pixels).float() / 255
            seen = model.network.backbone(pixels) if raw else model.network(pixels, features=True)
            found.append(seen.double().numpy())
        targets.append(images.targets)
        counts.append(len(images))
    return np.concatenate(found), np.concatenate(targets), counts
