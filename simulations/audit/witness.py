"""Short runs of a study's own method and task on made-up patients, with everything noted that a check asks about.

What is noted is what the site's own code did: steps are made as the site makes them, and looked at from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from polyclinic.client.private.step import Gradients, Make, Portion, PrivateStep, Terms
from polyclinic.client.respond import Workbench
from polyclinic.core.privacy.noise import Chance, Keyed
from polyclinic.core.privacy.plan import Plan, demand, plan
from polyclinic.core.study import Study
from polyclinic.models.contracts import Batch, Objective, Views
from polyclinic.models.network import Network
from polyclinic.simulations.audit.federation import Exchange, changed, federate
from polyclinic.simulations.audit.pictures import Held, made_up

SITES = ("first", "second")
ROUNDS, STEPS, PORTION = 2, 3, 4
"""Of the short run: enough for noise to be compared over steps, rounds and sites, and for several portions a step."""
PATIENTS, DRAWN, PICTURES = 12, 6, 3
"""At each site; how many of them in a step; how many pictures the patients have who have most."""
JUDGED = 10
"""Validation and test patients: as many as a site's policy asks for before any figure may leave."""
SIZES = {"train": PATIENTS, "val": JUDGED, "test": JUDGED}
DRAWS = 400
"""Steps of which only who was drawn is looked at."""
Step = Callable[[Iterator[Portion], Views], Gradients]
"""``PrivateStep.gradient``."""
Noise = dict[str, NDArray[np.float64]]
"""Weight → what was added to its sum, in multiples of what the study says: standard Gaussian numbers."""


@dataclass(frozen=True)
class Witness:
    """Makes steps as ``make`` does, and notes the noise of each: see ``Make``.

    Attributes:
        rounds: for every round the noise of its steps.
    """

    make: Make
    rounds: list[list[Noise]] = field(default_factory=list)

    def __call__(
        self, network: Network, objective: Objective, terms: Terms, chance: Chance, *, opacus: bool = False
    ) -> PrivateStep:
        """See ``Make``."""
        step = self.make(network, objective, terms, chance, opacus=opacus)
        still = self.make(network, objective, replace(terms, noise=0.0), chance, opacus=opacus)
        true, noted = step.gradient, list[Noise]()
        self.rounds.append(noted)

        def gradient(portions: Iterator[Portion], public: Views) -> Gradients:
            held = list(portions)
            loud, quiet = true(iter(held), public), still.gradient(iter(held), public)
            noted.append(noise_between(loud, quiet, terms))
            return loud

        step.gradient = gradient  # type: ignore[method-assign]
        return step


@dataclass(frozen=True)
class Looked:
    """Makes steps as ``make`` does, and puts in place of each one's ``gradient`` what ``look`` makes of it."""

    make: Make
    look: Callable[[Step], Step]

    def __call__(
        self, network: Network, objective: Objective, terms: Terms, chance: Chance, *, opacus: bool = False
    ) -> PrivateStep:
        """See ``Make``."""
        step = self.make(network, objective, terms, chance, opacus=opacus)
        step.gradient = self.look(step.gradient)  # type: ignore[method-assign,assignment]
        return step


@dataclass(frozen=True)
class Short:
    """What a short run of two sites came to.

    Attributes:
        study: as it ran.
        noise: site → round → step → its noise.
        idle: noise of steps into which nobody was drawn.
        seen: what went to the sites and came back, evaluation included.
        twins: the same of a run of one round of which both sites hold the same images.
    """

    study: Study
    plan: Plan
    noise: Mapping[str, Sequence[Sequence[Noise]]]
    idle: Sequence[Noise]
    seen: Sequence[Exchange]
    twins: Twins


@dataclass(frozen=True)
class Twins:
    """Two sites that hold the same images and were sent the same model: what they tell differs by noise alone."""

    plan: Plan
    seen: Sequence[Exchange]


def short(study: Study, rng: np.random.Generator, make: Make = PrivateStep) -> Short:
    """A short run of the study at two sites of made-up patients, through the code of a federation.

    Raises:
        QuorumError: a site refused; with its reason.
    """
    tried = shortened(study, STEPS, ROUNDS)
    witnesses = {name: Witness(make) for name in SITES}
    held = {name: site(tried, name, rng) for name in SITES}
    bench = Workbench(tried)
    idle = list(without_anybody(bench, make, rng))
    seen = federate(bench, held, witnesses, judged=True)
    noise = {name: one.rounds for name, one in witnesses.items()}
    return Short(tried, plan(tried, SIZES), noise, idle, seen, twins(study, int(rng.integers(2**32)), make))


def twins(study: Study, seed: int, make: Make) -> Twins:
    """One round, in which the model is judged before and after."""
    tried = changed(shortened(study, 1, 1), {"privacy": {"judged": 2}})
    held = {name: site(tried, name, np.random.default_rng(seed)) for name in SITES}
    return Twins(plan(tried, SIZES), federate(Workbench(tried), held, dict.fromkeys(SITES, make), judged=True))


def without_anybody(bench: Workbench, make: Make, rng: np.random.Generator, times: int = 16) -> Iterator[Noise]:
    """The noise of steps into which nobody was drawn."""
    privacy = demand(bench.study)
    terms = Terms(privacy.noise or 1.0, privacy.clip, privacy.clipping, float(privacy.expected))
    images = made_up(bench.study, SITES[0], {"train": [1]}, rng).images("train")
    pixels, target = torch.from_numpy(images.pixels).float() / 255.0, torch.from_numpy(images.targets)
    public = Views(pixels.to(bench.device), target.to(bench.device))
    step = make(bench.adapted.network, plain(bench), terms, Keyed(rng.bytes(32)))
    still = make(bench.adapted.network, plain(bench), replace(terms, noise=0.0), Keyed(rng.bytes(32)))
    for _ in range(times):
        yield noise_between(step.gradient(iter(()), public), still.gradient(iter(()), public), terms)


def drawn(study: Study, rng: np.random.Generator, make: Make = PrivateStep) -> tuple[NDArray[np.bool_], float]:
    """[steps, units] who was drawn in each of many steps of a run, and the rate that the ledger was told."""
    tried = changed(shortened(study, DRAWS, 1), {"privacy": {"epsilon": None, "noise": 1.0}})
    held, roll = site(tried, SITES[0], rng), list[set[int]]()

    def look(true: Step) -> Step:
        def gradient(portions: Iterator[Portion], public: Views) -> Gradients:
            roll.append({place for portion in portions for place in portion.places})
            return {}  # nothing is learned

        return gradient

    federate(Workbench(tried), {SITES[0]: held}, {SITES[0]: Looked(make, look)})
    whose = held.images("train").patients
    units = list(dict.fromkeys(whose))
    who = [{units.index(whose[place]) for place in places} for places in roll]
    return np.array([[unit in there for unit in range(len(units))] for there in who]), DRAWN / PATIENTS


def shortened(study: Study, steps: int, rounds: int) -> Study:
    """The study with so many steps and rounds, few patients a step, and no limit of its own."""
    sections: dict[str, dict[str, Any]] = {
        "training": {"steps": steps, "batch_size": PORTION, "warmup_rounds": 0},
        "rounds": {"count": rounds},
        "privacy": {"expected": DRAWN, "pictures": PICTURES, "limit": None},
    }
    return changed(study, sections)


def noise_between(loud: Gradients, quiet: Gradients, terms: Terms) -> Noise:
    """What was added, in multiples of noise · clip / expected."""
    scale = terms.expected / (terms.noise * terms.clip)
    return {name: ((loud[name].double() - quiet[name].double()) * scale).cpu().numpy().reshape(-1) for name in loud}


def site(study: Study, name: str, rng: np.random.Generator) -> Held:
    """A made-up site of ``PATIENTS`` training patients; where images are the unit, one image each."""
    several = demand(study).unit == "patient"
    counts = [1 + i % PICTURES if several else 1 for i in range(PATIENTS)]
    return made_up(study, name, {"train": counts, "val": [1] * JUDGED, "test": [1] * JUDGED}, rng)


def plain(bench: Workbench) -> Objective:
    """The task's own loss."""

    def objective(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        return bench.task.loss(batch.output, batch.target)

    return objective
