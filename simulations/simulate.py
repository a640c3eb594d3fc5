"""A whole multi-centre federation on one machine: from a study and a manifest to a run folder."""

from __future__ import annotations

import hashlib
import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from polyclinic.client.cache import Cache
from polyclinic.client.data.dataset import SiteData
from polyclinic.client.data.federation import federation_problems
from polyclinic.client.data.manifest import Row, read_manifest, sites
from polyclinic.client.keep import Keep
from polyclinic.client.policy import CACHE_MB, Policy
from polyclinic.client.respond import Site
from polyclinic.core import files
from polyclinic.core.errors import DataError, RunError
from polyclinic.core.ledger import fingerprint
from polyclinic.core.runs import Run
from polyclinic.core.study import SPLITS, Study
from polyclinic.models import network
from polyclinic.server.finish import finish
from polyclinic.server.journal import Journal
from polyclinic.server.rounds import Event, Observer
from polyclinic.simulations import baselines
from polyclinic.simulations.inprocess import Engine, engine

OWN = "own"
"""Folder of a run in which the simulated sites' own states lie: what in a live federation each keeps at home."""

CACHE = "cache"
"""Folder of a run, while it runs, in which features of frozen parts of the backbone are remembered."""


@dataclass(frozen=True)
class Options:
    """How a simulation is carried out; on CPUs of one kind none of it changes a bit of the result.

    ``cache_mb`` is how many MiB of the run folder remembered features may take while it runs; 0 for none.
    """

    engine: str = "inprocess"
    workers: int = 1
    ray_address: str | None = None
    baselines: bool = False
    resume: bool = False
    policy: Policy = field(default_factory=Policy)
    cache_mb: int = CACHE_MB


def simulate(
    study: Study, manifest: Path, folder: Path, options: Options, observe: Observer = lambda event: None
) -> Run:
    """Runs (or resumes) ``study`` on the images of ``manifest`` and leaves a finished run in ``folder``.

    Raises:
        DataError: the manifest or an image cannot be used.
        RunError: the folder holds another run, cannot be written, or too few sites gave a good reply.
        EngineError: a worker process died.
    """
    rows, cohort = gather(study, manifest, options.policy, observe, folder.absolute() / OWN)
    machine = start(study, manifest, folder, cohort, options)  # first: an unknown backbone leaves no folder behind
    policy = options.policy.model_dump_json()
    about = {"study": study.digest, "data": data_digest(rows, cohort), "backbone": machine.backbone, "policy": policy}
    try:
        prepare(study, folder, resume=options.resume)
        with files.alone(folder), closing(open_journal(about, folder)) as journal:
            machine.run(journal, observe)
            if options.baselines:
                run_baselines(machine, journal, observe)
            peak = machine.peak_mb()
            finish(study, journal, folder, engine=machine.name, backbone=machine.backbone, peak_rss_mb=peak)
    finally:
        machine.close()
        shutil.rmtree(folder / CACHE, ignore_errors=True)
    return Run(folder)


def start(study: Study, manifest: Path, folder: Path, cohort: Mapping[str, Site], options: Options) -> Engine:
    """The engine that the options name."""
    if options.engine == "inprocess":
        cache = Cache(folder.absolute() / CACHE, options.cache_mb * 2**20) if options.cache_mb else None
        return engine(study, cohort, options.workers, cache)
    from polyclinic.simulations.flower import FlowerEngine

    return FlowerEngine(study, manifest, folder, cohort, options.workers, options.ray_address, options.cache_mb)


def gather(
    study: Study,
    manifest: Path,
    policy: Policy,
    observe: Observer = lambda event: None,
    own: Path | None = None,
) -> tuple[tuple[Row, ...], dict[str, Site]]:
    """The rows of a manifest, and its sites with every image decoded; warnings are told to ``observe``.

    ``own`` is the folder in which the sites keep what is their own; without it, memory.

    Raises:
        DataError: the manifest, an image, or a whole site cannot be used.
    """
    rows = read_manifest(manifest, study.data, network.task(study), study.study.seed)
    problems = federation_problems(rows, study.training.batch_size)
    errors = [str(problem) for problem in problems if problem.severity == "error"]
    if errors:
        raise DataError("; ".join(errors), where=str(manifest))
    for problem in problems:
        observe(Event("warning", 0, failure=str(problem)))
    held = {name: SiteData(name, group, study.data, network.task(study)) for name, group in sites(rows).items()}
    keeps = {name: Keep(None if own is None else own / name) for name in held}
    cohort = {name: Site(name, data, policy, keeps[name]) for name, data in held.items()}
    for site in cohort.values():
        for split in SPLITS:
            site.data.images(split)  # decoded before anything is written or forked: workers share the memory
    return rows, cohort


def data_digest(rows: Sequence[Row], cohort: Mapping[str, Site]) -> str:
    """SHA-256 over names, sites, labels, splits, patients and pixels, so that no run is resumed on other data."""
    lines = [[row.name, row.site, row.label, row.split, row.patient] for row in rows]
    total = hashlib.sha256(json.dumps(lines).encode())
    for _, site in sorted(cohort.items()):
        for split in SPLITS:
            images = site.data.images(split)
            total.update(images.pixels.data)
            if site.data.task.needs != "label":  # a label stands in the lines
                total.update(np.ascontiguousarray(images.targets).data)
    return total.hexdigest()


def prepare(study: Study, folder: Path, *, resume: bool) -> None:
    """Makes the run folder, or refuses one that holds a run already and is not to be resumed."""
    begun = Journal.begun(folder)
    if begun and not resume:
        raise RunError("holds a run already", where=str(folder), remedy="add --resume, or choose another --run folder")
    if not begun:
        with files.explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
        files.write(folder / "study.toml", study.toml())


def open_journal(about: Mapping[str, str], folder: Path) -> Journal:
    """A new journal, or that of the run to resume, which must be about the same things."""
    if not Journal.begun(folder):
        return Journal.create(folder, {"run": uuid.uuid4().hex, **about})
    journal = Journal.open(folder)
    for what, mine in about.items():
        if mine != journal.meta.get(what):
            journal.close()
            raise RunError(f"is a run of another {what}", where=str(folder), remedy="choose another --run folder")
    return journal


def run_baselines(machine: Engine, journal: Journal, observe: Observer) -> None:
    """Those that are not yet in the journal."""
    wanted = [name for name in baselines.names(machine.names()) if journal.result(f"baseline/{name}") is None]
    observe(Event("baselines", 0, sites=tuple(wanted)))
    for name, result in machine.baselines(wanted):
        entry = {"name": name, "result": fingerprint(result)}
        journal.commit(results={f"baseline/{name}": result}, entries=[("baseline", entry)])
        observe(Event("baseline", 0, name))
