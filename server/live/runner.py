"""The process that carries runs: Flower's ServerApp, begun anew as often as it takes until a run has ended.

It may be killed at any moment: what counts is in the run's journal, and the next process goes on from there.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyclinic.core import files
from polyclinic.core import study as studies
from polyclinic.core.errors import DivergedError, EngineError, PolyclinicError, RunError
from polyclinic.core.memory import peak_mb
from polyclinic.core.signing import canonical
from polyclinic.core.study import Study
from polyclinic.server import rounds
from polyclinic.server.app import INITIAL, beginning
from polyclinic.server.governance.registry import Registry
from polyclinic.server.governance.runs import Run, State
from polyclinic.server.journal import Journal
from polyclinic.server.live.cohort import RegistryCohort
from polyclinic.server.live.flower_run import Door, flower_run
from polyclinic.server.live.home import Home, opened
from polyclinic.server.live.receipts import receipts
from polyclinic.server.live.sites import LiveSites
from polyclinic.server.live.state import LiveState
from polyclinic.server.receive import LATE
from polyclinic.server.rounds import Event

ON: tuple[State, ...] = ("wanted", "running", "paused")
"""States of a run that somebody should carry."""
LONGEST = 60.0
"""Seconds of the longest pause before a run that lacks its quorum is tried again."""
LOOK = 0.5
"""Seconds between two looks at whether the run was stopped."""
ROOM = 4 * 2**20
"""Bytes that must be free on the disk, beside four times the adapter; a run that was paused wants twice as much."""


class StoppedError(PolyclinicError):
    """Somebody stopped the run."""


@dataclass
class Carrier:
    """One run, being carried."""

    home: Home
    registry: Registry
    run: Run
    study: Study
    journal: Journal
    state: LiveState
    looked: float = 0.0
    wait: float = 2.0

    def carry(self) -> None:
        """To its end, through every fault of the machinery; a run that lacks its quorum is tried again."""
        cohort = RegistryCohort(self.registry, self.study, self.state)
        overdue = late(self.journal)
        while True:
            self.halted()
            try:
                with flower_run(Door(self.home.door, self.home.secret.encode())) as (grid, _):
                    quorum, absence = self.study.rounds.quorum, self.home.settings.absence
                    sites = LiveSites(
                        grid, cohort, quorum=quorum, absence=absence, overdue=overdue, halted=self.halted,
                        coming=grid.coming,
                    )  # fmt: skip
                    self.receipt()
                    rounds.run(self.study, sites, beginning(self.folder, self.journal), self.journal, self.observe)
                self.end()
                return
            except EngineError as failure:
                self.state.event("resumed", text=str(failure))
                time.sleep(1.0)
            except DivergedError:
                raise
            except RunError as failure:  # too few sites, or a full disk: neither is the end
                self.pause(str(failure))

    @property
    def folder(self) -> Path:
        """The run's."""
        return Path(self.run.folder)

    def observe(self, event: Event) -> None:
        """Shows what happens, and gives out receipts."""
        self.state.observe(event)
        if event.kind == "round":
            self.registry.set_state(self.run.name, "running", "", only_from=ON)
        if event.kind == "done":
            self.wait = 2.0
            self.receipt()

    def receipt(self) -> None:
        """Gives out the receipts that are not given out yet."""
        given = self.registry.receipts(self.run.name, 0, 1_000_000)
        for number, signed in receipts(self.journal, self.home.signing_key(), len(given)):
            self.registry.add_receipt(self.run.name, number, signed)

    def pause(self, why: str) -> None:
        """Says why, and waits: longer from one time to the next, for each is written into the book."""
        self.state.phase("paused", why)
        with suppress(PolyclinicError):  # its disk may be the full one
            self.registry.set_state(self.run.name, "paused", why, only_from=ON)
        until = time.monotonic() + self.wait
        self.wait = min(LONGEST, 2 * self.wait)
        while time.monotonic() < until:
            self.halted()
            time.sleep(0.2)

    def halted(self) -> None:
        """Nothing, unless somebody stopped the run; while the disk is full this waits. Looked at now and then."""
        if time.monotonic() - self.looked > LOOK:
            self.look()
            need = ROOM + 4 * (self.folder / INITIAL).stat().st_size
            if shutil.disk_usage(self.folder).free < need:
                self.full(2 * need)

    def look(self) -> None:
        """Raises StoppedError if somebody stopped the run."""
        self.looked = time.monotonic()
        self.state.flush()
        now = self.registry.run(self.run.name)
        if now is None or now.state not in ON:
            raise StoppedError("the run was stopped")

    def full(self, need: int) -> None:
        """Waits until so many bytes are free, and says so: nothing that arrives now could be kept."""
        before = self.state.now()
        why = f"the disk is full: free {need / 1e6:.0f} MB where {self.folder} is; nothing is lost"
        self.state.phase("paused", why)
        with suppress(PolyclinicError):
            self.registry.set_state(self.run.name, "paused", why, only_from=ON)
        while shutil.disk_usage(self.folder).free < need:
            time.sleep(LOOK)
            self.look()
        self.state.phase(*before)
        self.registry.set_state(self.run.name, "running", "", only_from=ON)

    def end(self) -> None:
        """Leaves a finished run."""
        from polyclinic.server.finish import finish  # brings in torch, which nobody needs before

        self.state.phase("finishing", "adapter, summary and report are being written")
        backbone = self.journal.meta["backbone"]
        finish(self.study, self.journal, self.folder, engine="live", backbone=backbone, peak_rss_mb=peak_mb())
        self.receipt()
        self.registry.set_state(self.run.name, "finished", "")
        self.state.phase("finished")


def run(home: Home, registry: Registry, stop: Callable[[], bool]) -> None:
    """Carries the oldest run that is on, one after another, until ``stop``."""
    while not stop():
        on = [found for found in registry.runs() if found.state in ON]
        if not on:
            return
        carry(home, registry, min(on, key=lambda found: found.created))


def carry(home: Home, registry: Registry, found: Run) -> None:
    """Carries one run until it ends, is stopped, or cannot go on."""
    folder = Path(found.folder)
    study = studies.load(folder / "study.toml")
    state = LiveState(folder, found.name, study)
    with files.alone(folder), closing(open_journal(folder, found, study, registry)) as journal:
        carrier = Carrier(home, registry, found, study, journal, state)
        try:
            carrier.carry()
        except StoppedError:
            state.phase("stopped", "by the coordinator")
        except PolyclinicError as failure:
            logging.getLogger(__name__).exception("the run cannot go on")
            state.phase("failed", str(failure))
            registry.set_state(found.name, "failed", str(failure), only_from=ON)


def open_journal(folder: Path, found: Run, study: Study, registry: Registry) -> Journal:
    """The run's journal, begun if it is not there."""
    if Journal.begun(folder):
        return Journal.open(folder)
    offer = offered(registry, study.digest)
    about = {"run": found.name, "study": study.digest, "backbone": offer["backbone"]["sha256"], "engine": "live"}
    return Journal.create(folder, about)


def offered(registry: Registry, digest: str) -> dict[str, Any]:
    """What the published offer of a study says.

    Raises:
        RunError: there is none.
    """
    signed = registry.offer(digest)
    if signed is None:
        raise RunError("no such study is published", where=digest, remedy="polyclinic coordinator publish STUDY.toml")
    return canonical(signed.document)


def late(journal: Journal) -> set[str]:
    """Sites that did not answer in the last round."""
    records = journal.rounds()
    return {site for site, why in records[-1]["excluded"].items() if why.startswith(LATE)} if records else set()


def want(home: Home, registry: Registry, digest: str) -> Run:
    """A new run of a published study, which the runner then carries.

    Raises:
        RunError: no such study is published.
    """
    offer = offered(registry, digest)
    folder = home.new_run(offer["name"])
    folder.mkdir(parents=True)
    files.write(folder / "study.toml", offer["toml"])
    files.write(folder / INITIAL, (home.folder / "initial" / digest).read_bytes())
    return registry.want(folder.name, digest, str(folder))


def main(home: Home) -> None:
    """Carries runs until there is none left; being ended at any moment loses nothing."""
    with opened(home) as registry:
        run(home, registry, lambda: False)
