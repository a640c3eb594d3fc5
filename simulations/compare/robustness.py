"""Domain robustness: judged at a site that was left out, and on test pictures shifted by a known amount."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from polyclinic.client.evaluate import outcome
from polyclinic.client.policy import Policy
from polyclinic.core import seeds
from polyclinic.core.statistics.monoid import Statistic, Withheld, release
from polyclinic.server import monitor
from polyclinic.simulations.compare.cells import Cohort, Json, Result
from polyclinic.simulations.compare.shifts import SHIFTS, shifted

JUDGE = "test"


def under_shift(result: Result, cohort: Cohort, policy: Policy) -> Json:
    """{"SHIFT/SIZE": figures by site and pooled} on shifted test pictures, which are one seed's for every variant."""
    return {
        f"{name}/{size:g}": judged(result, cohort, policy, (name, size))
        for name, shift in SHIFTS.items()
        for size in shift.sizes
    }


def judged(result: Result, cohort: Cohort, policy: Policy, shift: tuple[str, float] | None = None) -> Json:
    """{"sites": {site: {figure: value or None}}, "pooled": {…}} of the model on test pictures."""
    bench, told = result.bench, dict[str, Statistic | Withheld]()
    for site, held in sorted(cohort.items()):
        images = held.data.images(JUDGE)
        if len(images) == 0:
            continue
        if shift is not None:
            rng = seeds.generator(bench.study.study.seed, "shift", shift[0], f"{shift[1]:g}", site)
            images = replace(images, pixels=shifted(images.pixels, *shift, rng))
        found = outcome(result.at(site), bench.task, images, bench.study, bench.device)
        told[site] = release(found, policy.minimum_patients)
    together = monitor.merged(told)
    return {
        "sites": {site: _values(statistic) for site, statistic in told.items()},
        "pooled": {} if together is None else _values(together),
    }


def _values(statistic: Any) -> dict[str, float | None]:
    return {name: figure["value"] for name, figure in monitor.judged(statistic, None).items()}
