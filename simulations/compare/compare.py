"""The whole comparison: cells are trained or found, measured, and put together in compare.json and compare.html."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from polyclinic.client.data.manifest import read_manifest
from polyclinic.client.policy import Policy
from polyclinic.core import files
from polyclinic.core.errors import RunError
from polyclinic.core.runs import Run
from polyclinic.core.study import Study
from polyclinic.models import network
from polyclinic.simulations.compare import audit, burden, cost, depth, plan, robustness
from polyclinic.simulations.compare.cells import Cohort, key, measured, result, train
from polyclinic.simulations.compare.page import render
from polyclinic.simulations.compare.plan import AXES, Cell, Variant
from polyclinic.simulations.compare.sentences import findings
from polyclinic.simulations.compare.table import Found, table
from polyclinic.simulations.simulate import data_digest, gather

Json = dict[str, Any]
CELLS, TABLE, PAGE = "cells", "compare.json", "compare.html"


@dataclass(frozen=True)
class Settings:
    """How a comparison is carried out.

    Attributes:
        seeds: how many: the study's and those after it.
        axes: which are measured.
        most: trainings that are allowed.
        workers: processes of one training.
        resume: whether the folder may hold a comparison, whose finished cells are used again.
        policy: of every site.
    """

    seeds: int = 3
    axes: tuple[str, ...] = AXES
    most: int = 60
    workers: int = 1
    resume: bool = False
    policy: Policy = field(default_factory=Policy)


@dataclass(frozen=True)
class Step:
    """Told before every cell and at the end: how many are done of how many, which comes next, and seconds so far."""

    done: int
    of: int
    cell: str
    seconds: float


Observe = Callable[[Step], None]


def compare(
    study: Study,
    manifest: Path,
    variants: Sequence[Variant],
    folder: Path,
    settings: Settings,
    observe: Observe = lambda step: None,
) -> Json:
    """Trains and measures what is not yet there, and writes compare.json and compare.html; returns the former.

    Raises:
        StudyError: a variant is impossible, an axis unknown, or there would be too many trainings.
        DataError: the manifest or an image cannot be used.
        RunError: the folder holds something else, or cannot be written.
    """
    plan.demand_axes(settings.axes)
    plan.demand_distinct(variants)
    rows = read_manifest(manifest, study.data, network.task(study), study.study.seed)
    sites = sorted({row.site for row in rows})
    planned = plan.cells(study, variants, settings.seeds, settings.axes, sites)
    plan.demand_few(planned, settings.most)
    demand_place(folder, resume=settings.resume)
    cohorts = _Cohorts(manifest, settings.policy)
    digest = data_digest(rows, cohorts.of(study))
    with files.explained(folder):
        (folder / CELLS).mkdir(parents=True, exist_ok=True)
    files.write(folder / "study.toml", study.toml())
    found, begun = [], time.monotonic()
    with files.alone(folder):
        for i, cell in enumerate(planned):
            observe(Step(i, len(planned), str(cell), time.monotonic() - begun))
            place = Path(CELLS, key(cell, digest, settings.policy))
            run = train(cell, manifest, folder / place, settings.workers, settings.policy)
            figures = {} if isinstance(run, str) else _measure(cell, run, settings, cohorts)
            found.append(Found(cell, place.as_posix(), figures, run if isinstance(run, str) else ""))
        observe(Step(len(planned), len(planned), "", time.monotonic() - begun))
        document = table(study, variants, found, settings.axes, digest)
        document["findings"] = [vars(one) | {"more": list(one.more)} for one in findings(document)]
        files.write(folder / TABLE, json.dumps(document, indent=1, allow_nan=False))
        files.write(folder / PAGE, render(document))
    return document


def demand_place(folder: Path, *, resume: bool) -> None:
    """Refuses a folder that holds something else than a comparison, or one that is not to be resumed.

    Raises:
        RunError: naming the folder.
    """
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / CELLS).is_dir():
            what = "holds something else than a comparison"
            raise RunError(what, where=str(folder), remedy="choose another --run folder")
        if not resume:
            remedy = "add --resume (what is finished there is used again), or choose another --run folder"
            raise RunError("holds a comparison already", where=str(folder), remedy=remedy)
    elif folder.exists() and not folder.is_dir():
        raise RunError("is no folder", where=str(folder), remedy="choose another --run folder")
    elif resume and not folder.exists():
        remedy = "check the name, or begin without --resume"
        raise RunError("there is no such comparison", where=str(folder), remedy=remedy)


class _Cohorts:
    """Sites with their images decoded, once a seed: without a column of splits the seed decides who tests."""

    def __init__(self, manifest: Path, policy: Policy) -> None:
        self._manifest, self._policy = manifest, policy
        self._held: dict[int, Cohort] = {}

    def of(self, study: Study) -> Cohort:
        """As a study sees them; only those of one seed are held."""
        seed = study.study.seed
        if seed not in self._held:
            self._held.clear()
            self._held[seed] = gather(study, self._manifest, self._policy)[1]
        return self._held[seed]


def _measure(cell: Cell, run: Run, settings: Settings, cohorts: _Cohorts) -> Json:
    """What a cell's run gives: of the study itself all axes, of a part of it the leading figures alone."""
    policy = settings.policy
    if cell.without:
        cohort = {cell.without: cohorts.of(cell.study)[cell.without]}
        return {"unseen": measured(run, "unseen", lambda: robustness.judged(result(run), cohort, policy))}
    figures: Json = {"summary": run.summary}
    if not cell.whole:
        return figures
    cohort_of = partial(cohorts.of, cell.study)
    ways: dict[str, Callable[[], Json]] = {
        "depth": lambda: depth.measure(result(run), cohort_of()),
        "robustness": lambda: robustness.under_shift(result(run), cohort_of(), policy),
        "cost": lambda: cost.together(cost.measure(cell.study, cohort_of()), run),
        "audit": lambda: audit.measure(result(run)),
        "burden": lambda: burden.measure(cell.study),
    }
    return figures | {axis: measured(run, axis, way) for axis, way in ways.items() if axis in settings.axes}
