"""One training of a comparison: a run folder that is made once, and what is measured on it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polyclinic.client.keep import Keep
from polyclinic.client.policy import Policy
from polyclinic.client.respond import PERSONAL, Site, Workbench
from polyclinic.core import files, runs
from polyclinic.core.errors import DivergedError, QuorumError, RunError
from polyclinic.core.runs import Run
from polyclinic.core.update import Tensors
from polyclinic.models.network import Network
from polyclinic.server.journal import Journal
from polyclinic.simulations.compare.plan import Cell
from polyclinic.simulations.simulate import OWN, Options, simulate

Json = dict[str, Any]
Cohort = Mapping[str, Site]


def key(cell: Cell, data: str, policy: Policy) -> str:
    """What names a cell: a digest of all that its run depends on. ``data`` is the digest of all images."""
    about = [cell.study.digest, cell.without, data, policy.model_dump(mode="json")]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:20]


def train(cell: Cell, manifest: Path, folder: Path, workers: int, policy: Policy) -> Run | str:
    """The cell's finished run, made, resumed, or found; or why there can be none: its training diverged.

    Raises:
        PolyclinicError: whatever would stop every cell.
    """
    if (folder / "report.html").is_file():  # the last thing that a run writes
        return runs.read(folder)
    without = (cell.without,) if cell.without else ()
    options = Options(workers=workers, resume=True, policy=policy, without=without)
    try:
        return simulate(cell.study, manifest, folder, options)
    except (QuorumError, DivergedError) as failure:
        return failure.problem


def measured(run: Run, what: str, measure: Callable[[], Json]) -> Json:
    """What was measured on a run, or else is now; kept beside it."""
    path = run.folder / f"{what}.json"
    if path.is_file():
        try:
            found: Json = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as failure:
            raise RunError(f"is damaged: {failure}", where=str(path), remedy="delete it: it is made anew") from failure
        return found
    found = measure()
    files.write(path, json.dumps(found, indent=1, allow_nan=False))
    return found


@dataclass(frozen=True)
class Result:
    """A finished run's model as each site has it.

    Attributes:
        bench: with the model.
        start: the global state before round 1.
        tensors: the global state at the end.
        own: site → what is its own.
    """

    bench: Workbench
    start: Tensors
    tensors: Tensors
    own: Mapping[str, Mapping[str, Tensor]]

    def at(self, site: str = "") -> Network:
        """The network as ``site`` has it; as a site that never trained would have it, where nothing is its own."""
        self.bench.adapted.write(self.tensors, self.own.get(site))
        return self.bench.adapted.network.eval()


def result(run: Run) -> Result:
    """The model that a finished run left.

    Raises:
        RunError: the run's journal is damaged.
    """
    study = run.study
    torch.set_num_threads(study.training.threads)
    with closing(Journal.open(run.folder)) as journal:
        state, name = journal.state(), journal.meta["run"]
    if state is None:
        raise RunError("has no state", where=str(run.folder), remedy="delete the folder: it is made anew")
    bench = Workbench(study)
    own: dict[str, Mapping[str, Tensor]] = {}
    for place in sorted((run.folder / OWN).glob("*")):
        kept = Keep(place).before(name, study.rounds.count + 1) or {}
        personal = {full.removeprefix(PERSONAL): tensor for full, tensor in kept.items() if full.startswith(PERSONAL)}
        if personal:
            own[place.name] = personal
    return Result(bench, bench.adapted.read(), state.tensors, own)
