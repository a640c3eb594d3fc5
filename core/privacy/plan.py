"""What a run will cost a site: its rate, its noise, and the event of everything that will leave."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from polyclinic.core.errors import PolicyError, StudyError
from polyclinic.core.privacy import accounting
from polyclinic.core.privacy.config import Privacy
from polyclinic.core.privacy.events import Event
from polyclinic.core.study import Study

UPDATE = "update"
DESCRIBED = ("describe/kernel", "describe/labels")
"""What is told, once a run, of how validation patients' images are spread; in the first round that asks for it."""
TOLD = ("outcome", "kernel", "labels")
"""Kinds of figures that can be told with noise; a site's policy may leave some out."""


@dataclass(frozen=True)
class Release:
    """One thing that leaves: what it is, on which split, in which round (1 …), and what that costs."""

    what: str
    split: str
    round: int
    event: Event


@dataclass(frozen=True)
class Plan:
    """A study at one site.

    Attributes:
        units: split → how many patients (or images, where these are the unit) the site has in it.
        rate: with which each unit that trains is drawn.
        noise: multiplier of the update's noise.
        epsilon: split → what the whole run costs those in it, at ``delta``.
        releases: everything that leaves in the run, in order, if the site takes part in every round.
    """

    units: Mapping[str, int]
    delta: float
    rate: float
    noise: float
    epsilon: Mapping[str, float]
    releases: tuple[Release, ...]

    def of_round(self, number: int, *names: str) -> tuple[Release, ...]:
        """What leaves in a round (count + 1 is the last evaluation); of it those of ``names``, or all."""
        return tuple(one for one in self.releases if one.round == number and (not names or one.what in names))

    def after(self, number: int) -> tuple[Release, ...]:
        """What is still to leave once a round is over."""
        return tuple(one for one in self.releases if one.round > number)


def plan(study: Study, units: Mapping[str, int], site: str = "", tell: Collection[str] = TOLD) -> Plan:
    """The plan of a site; the same study, sizes and kinds give the same plan.

    Args:
        units: split ("train", "val", "test") → units in it; a split that is absent is empty.
        tell: kinds of figures that the site tells; they share the budget.

    Raises:
        StudyError: the study has no ``[privacy]``.
        PolicyError: the site has too few patients for the study's delta or its expected number a step.
    """
    privacy = demand(study)
    held = {split: units.get(split, 0) for split in ("train", "val", "test")}
    _demand_size(privacy, held, site)
    steps, rounds = study.training.steps or 1, study.rounds.count
    rate = privacy.expected / held["train"]
    noise = privacy.noise or accounting.noise_for(privacy.epsilon or 0.0, privacy.delta, rate, steps * rounds)
    update = Event("poisson_gaussian", noise, rate, steps, privacy.unit)
    whole = Event("poisson_gaussian", noise, rate, steps * rounds, privacy.unit)
    spent = {"train": accounting.epsilon([whole], privacy.delta)}
    budget = privacy.statistics_share * (privacy.epsilon or spent["train"])
    releases = [Release(UPDATE, "train", number, update) for number in range(1, rounds + 1)]
    for split in ("val", "test"):
        figures = [*_figures(study, split, tell)] if held[split] and budget else []
        events = _events(privacy, figures, budget)
        releases += [Release(what, split, number, events[what]) for what, number in figures]
        spent[split] = accounting.epsilon([events[what] for what, _ in figures], privacy.delta)
    ordered = sorted(releases, key=lambda one: (one.round, one.what != UPDATE, one.what))
    return Plan(held, privacy.delta, rate, noise, spent, tuple(ordered))


def demand(study: Study) -> Privacy:
    """The study's ``[privacy]``.

    Raises:
        StudyError: it has none.
    """
    if study.privacy is None:
        remedy = "add [privacy] with epsilon = 4.0, say: docs/privacy.md"
        raise StudyError("the study has no section [privacy]", where=study.study.name, remedy=remedy)
    return study.privacy


def _demand_size(privacy: Privacy, held: Mapping[str, int], site: str) -> None:
    units, name = held["train"], "images" if privacy.unit == "image" else "patients"
    if privacy.expected > units:
        problem = f"privacy.expected is {privacy.expected} a step, and {units} {name} train here"
        raise PolicyError(problem, where=site, remedy=f"lower it to {units} or less, or leave the site out")
    for split, count in held.items():
        if count and privacy.delta * count >= 1.0 and (split == "train" or privacy.statistics_share):
            problem = f"privacy.delta is {privacy.delta:g}, which must be below 1 / {count} ({name} in {split})"
            raise PolicyError(problem, where=site, remedy="lower privacy.delta")


def judged(study: Study) -> tuple[int, ...]:
    """Rounds whose incoming model is judged on validation patients; count + 1 is the last evaluation."""
    every = (study.rounds.count + 1) / demand(study).judged
    return tuple(sorted({math.ceil(every * (i + 1) - 1e-9) for i in range(demand(study).judged)} - {0}))


def _figures(study: Study, split: str, tell: Collection[str]) -> Iterator[tuple[str, int]]:
    """(name, round) of every figure on a split: see ``polyclinic.server.receive.KNOWN``."""
    if split == "val":
        yield from ((what, 1) for what in DESCRIBED if what.removeprefix("describe/") in tell)
    if "outcome" in tell and study.task.discloses:
        rounds = judged(study) if split == "val" else (study.rounds.count + 1,)
        yield from ((f"incoming/{split}", number) for number in rounds)


def _events(privacy: Privacy, figures: list[tuple[str, int]], budget: float) -> dict[str, Event]:
    """Every name gets the same share of the budget, spread evenly over its rounds.

    Gaussian releases with noise s_i are together one with noise s, 1/s² = Σ 1/s_i²: shares are of 1/s².
    """
    if not figures:
        return {}
    names = [what for what, _ in figures]
    whole = accounting.noise_for(budget, privacy.delta, 1.0, 1)
    kinds = len(set(names))
    noise = {what: accounting.rounded_up(whole * (kinds * names.count(what)) ** 0.5) for what in set(names)}
    return {what: Event("gaussian", noise[what], unit=privacy.unit) for what in noise}
