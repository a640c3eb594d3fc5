"""The Flower ServerApp: takes the run folder that its configuration names, and carries that run to its end."""

from __future__ import annotations

import logging
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from polyclinic.core import study as studies
from polyclinic.core.errors import RunError
from polyclinic.core.update import Tensors, decode
from polyclinic.server import rounds
from polyclinic.server.journal import Journal
from polyclinic.server.rounds import Event, Observer
from polyclinic.server.transport import FlowerSites

INITIAL = "initial.safetensors"
"""In the run folder: the global state before round 1, made by whoever has the model, for a server that has not."""


def build(observe: Observer) -> ServerApp:
    """A ServerApp that tells ``observe`` what happens."""
    made = ServerApp()

    @made.main()
    def main(grid: Grid, context: Context) -> None:
        folder = str(context.run_config.get("run", ""))
        if not folder:
            raise RunError("no run folder is named", where="run config", remedy="""give -c 'run="FOLDER"'""")
        serve(grid, Path(folder), observe)

    return made


def serve(grid: Grid, folder: Path, observe: Observer) -> None:
    """Runs what is left of the run in ``folder``."""
    study = studies.load(folder / "study.toml")
    journal = Journal.open(folder)
    try:
        rounds.run(study, FlowerSites(grid), beginning(folder, journal), journal, observe)
    finally:
        journal.close()


def beginning(folder: Path, journal: Journal) -> Tensors:
    """Where the run stands, or the state that it starts from."""
    state = journal.state()
    if state is not None:
        return state.tensors
    try:
        return decode((folder / INITIAL).read_bytes())
    except OSError as failure:
        raise RunError(f"the initial adapter cannot be read: {failure}", where=str(folder / INITIAL)) from failure


def tell(event: Event) -> None:
    """One log line an event."""
    logging.getLogger(__name__).info("%s %d %s %s", event.kind, event.round, event.site, event.failure)


app = build(tell)
