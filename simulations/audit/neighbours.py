"""How far one patient moves a step's sum, and whether each patient's gradient is that patient's own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch

from polyclinic.client.fit import start
from polyclinic.client.private.fit import Private, demand_exact, train
from polyclinic.client.private.step import Gradients, Make, Portion, PrivateStep, Terms
from polyclinic.client.respond import Workbench
from polyclinic.core.privacy.noise import Keyed
from polyclinic.core.privacy.plan import demand
from polyclinic.core.study import Study
from polyclinic.models.contracts import Views
from polyclinic.simulations.audit.pictures import Held
from polyclinic.simulations.audit.witness import DRAWN, ROUNDS, SITES, STEPS, Looked, Step, plain, shortened, site

HUGE = 1e4
"""By what losses are multiplied, so that every gradient is longer than any clip."""


def moved(study: Study, rng: np.random.Generator, make: Make = PrivateStep) -> dict[str, float]:
    """By how much one patient moves the sum of a step, in multiples of ``clip``: for several kinds of neighbours.

    All losses are multiplied by ``HUGE``, and no noise is added; everything else is the site's own training.
    """
    tried = shortened(study, STEPS, ROUNDS)
    bench, held = Workbench(tried), site(tried, SITES[0], rng)
    whose = held.images("train").patients
    most = max(set(whose), key=whose.count)
    one = next(patient for patient in whose if whose.count(patient) == 1)
    found = {}
    for patient, pictures in ((one, "one picture"), (most, f"{whose.count(most)} pictures")):
        for others, company in ((set(whose) - {patient}, "among others"), (set[str](), "alone")):
            sums = [_summed(bench, held, who, make) for who in (others, others | {patient})]
            apart = sum(float((sums[1][name] - sums[0][name]).double().square().sum()) for name in sums[0]) ** 0.5
            found[f"{pictures}, {company}"] = apart * DRAWN / demand(tried).clip
    return found


def exact(study: Study, rng: np.random.Generator, make: Make = PrivateStep) -> None:
    """Nothing, if the check that a site makes before every round lets the step pass.

    Raises:
        UpdateError: it does not; names the weight.
    """
    tried = shortened(study, STEPS, ROUNDS)
    bench, held = Workbench(tried), site(tried, SITES[0], rng)
    images, anchor = held.images("train"), bench.adapted.write(bench.adapted.read())
    begun = start(bench.adapted, bench.task, images, tried.training, anchor, {}, bench.frozen, torch.Generator())
    objective = bench.adapted.chain.objective(plain(bench), begun)
    privacy = demand(tried)
    terms = Terms(0.0, privacy.clip, privacy.clipping, float(privacy.expected))
    step = make(bench.adapted.network, objective, terms, Keyed(rng.bytes(32)), opacus=privacy.step == "opacus")
    demand_exact(step, bench.adapted, objective, begun.pool, bench.task)


def _summed(bench: Workbench, held: Held, patients: set[str], make: Make) -> Gradients:
    """What one step without noise gives for these patients."""
    images, study, adapted = held.images("train"), bench.study, bench.adapted
    privacy, noted = demand(study), list[Gradients]()

    def look(true: Step) -> Step:
        def gradient(portions: Iterator[Portion], public: Views) -> Gradients:
            found = true(portions, public)
            noted.append({name: tensor.clone() for name, tensor in found.items()})  # autograd goes on with the others
            return found

        return gradient

    anchor = adapted.write(adapted.read())
    begun = start(adapted, bench.task, images, study.training, anchor, {}, bench.frozen, torch.Generator())
    begun = replace(begun, labelled=torch.tensor([i for i, who in enumerate(images.patients) if who in patients]))
    inner = adapted.chain.objective(plain(bench), begun)
    terms = Terms(0.0, privacy.clip, privacy.clipping, float(privacy.expected))
    private = Private(
        terms, 1.0, 1, privacy.unit, privacy.pictures, study.training.batch_size, Keyed(bytes(32)),
        privacy.step == "opacus", Looked(make, look),
    )  # fmt: skip
    still = torch.optim.SGD(adapted.parameters(), lr=0.0)
    generator = torch.Generator().manual_seed(0)
    train(adapted, lambda model, batch: HUGE * inner(model, batch), still, begun, private, generator)
    return noted[0]
