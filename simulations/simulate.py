"""A whole multi-centre federation on one machine: from a study and a manifest to a run folder."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from polyclinic.client.data.dataset import SiteData
from polyclinic.client.data.federation import federation_problems
from polyclinic.client.data.manifest import Row, read_manifest, sites
from polyclinic.client.policy import Policy
from polyclinic.client.respond import Site
from polyclinic.core import files
from polyclinic.core.errors import DataError, RunError
from polyclinic.core.runs import Run
from polyclinic.core.study import SPLITS, Study
from polyclinic.models import network
from polyclinic.models.export import write_adapter
from polyclinic.server.journal import Journal
from polyclinic.server.report.page import write_report
from polyclinic.server.rounds import Event, Observer
from polyclinic.server.summary import summarise
from polyclinic.simulations import baselines
from polyclinic.simulations.inprocess import Engine, engine


@dataclass(frozen=True)
class Options:
    """How a simulation is carried out; none of it changes a bit of the result."""

    engine: str = "inprocess"
    workers: int = 1
    ray_address: str | None = None
    baselines: bool = False
    resume: bool = False
    policy: Policy = field(default_factory=Policy)


def simulate(
    study: Study, manifest: Path, folder: Path, options: Options, observe: Observer = lambda event: None
) -> Run:
    """Runs (or resumes) ``study`` on the images of ``manifest`` and leaves a finished run in ``folder``.

    Raises:
        DataError: the manifest or an image cannot be used.
        RunError: the folder holds another run, cannot be written, or too few sites gave a good reply.
        EngineError: a worker process died.
    """
    rows, cohort = gather(study, manifest, options.policy)
    for problem in federation_problems(rows, study.training.batch_size):
        observe(Event("warning", 0, failure=str(problem)))  # errors have been raised
    machine = start(study, manifest, folder, cohort, options)  # first: an unknown backbone leaves no folder behind
    try:
        journal = open_journal(study, data_digest(rows), folder, resume=options.resume)
        try:
            machine.run(journal, observe)
            if options.baselines:
                run_baselines(machine, journal, observe)
            finish(study, journal, folder, machine.name, machine.peak_mb())
        finally:
            journal.close()
    finally:
        machine.close()
    return Run(folder)


def start(study: Study, manifest: Path, folder: Path, cohort: Mapping[str, Site], options: Options) -> Engine:
    """The engine that the options name."""
    if options.engine == "inprocess":
        return engine(study, cohort, options.workers)
    from polyclinic.simulations.flower import FlowerEngine

    return FlowerEngine(study, manifest, folder, cohort, options.workers, options.ray_address)


def gather(study: Study, manifest: Path, policy: Policy) -> tuple[tuple[Row, ...], dict[str, Site]]:
    """The rows of a manifest, and its sites with every image decoded.

    Raises:
        DataError: the manifest, an image, or a whole site cannot be used.
    """
    rows = read_manifest(manifest, study.data, network.task(study), study.study.seed)
    problems = federation_problems(rows, study.training.batch_size)
    errors = [str(problem) for problem in problems if problem.severity == "error"]
    if errors:
        raise DataError("; ".join(errors), where=str(manifest))
    cohort = {name: Site(name, SiteData(name, group, study.data), policy) for name, group in sites(rows).items()}
    for site in cohort.values():
        for split in SPLITS:
            site.data.images(split)  # decoded before anything is written or forked: workers share the memory
    return rows, cohort


def data_digest(rows: Sequence[Row]) -> str:
    """SHA-256 over names, sites, labels, splits and patients, so that a run is not resumed on other data."""
    lines = [[row.name, row.site, row.label, row.split, row.patient] for row in rows]
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()


def open_journal(study: Study, data: str, folder: Path, *, resume: bool) -> Journal:
    """A new journal, or that of the run to resume."""
    begun = Journal.begun(folder)
    if resume and begun:
        journal = Journal.open(folder)
        for what, mine, theirs in (
            ("study", study.digest, journal.meta["study"]),
            ("data", data, journal.meta["data"]),
        ):
            if mine != theirs:
                journal.close()
                raise RunError(f"is a run of another {what}", where=str(folder), remedy="choose another --run folder")
        return journal
    with files.explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    if begun:
        raise RunError("holds a run already", where=str(folder), remedy="add --resume, or choose another --run folder")
    files.write(folder / "study.toml", study.toml())
    return Journal.create(folder, {"run": uuid.uuid4().hex, "study": study.digest, "data": data})


def run_baselines(machine: Engine, journal: Journal, observe: Observer) -> None:
    """Those that are not yet in the journal."""
    wanted = [name for name in baselines.names(machine.names()) if journal.result(f"baseline/{name}") is None]
    observe(Event("baselines", 0, sites=tuple(wanted)))
    for name, result in machine.baselines(wanted):
        journal.commit(results={f"baseline/{name}": result})
        observe(Event("baseline", 0, name))


def finish(study: Study, journal: Journal, folder: Path, engine_name: str, peak_mb: float) -> None:
    """Adapter, summary and report, from the journal."""
    state = journal.state()
    assert state is not None
    sha256 = write_adapter(study, state.tensors, folder / "adapter")
    if journal.result("adapter") != sha256:
        journal.commit(results={"adapter": sha256}, entries=[("end", {"adapter_sha256": sha256})])
    summary = summarise(study, journal, engine=engine_name, adapter_sha256=sha256, peak_rss_mb=peak_mb)
    files.write(folder / "summary.json", json.dumps(summary, indent=1))
    write_report(folder)
