"""A small federation of real processes, and what must be true of it whatever was done to it."""

from __future__ import annotations

import csv
import json
import os
import ssl
import subprocess
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import tomli_w

from polyclinic.client import home as site_home
from polyclinic.client.outbox import Inbox
from polyclinic.client.witness import receipt
from polyclinic.core import files
from polyclinic.core import study as studies
from polyclinic.core.book import read_entries, verify_book
from polyclinic.core.ledger import Entry
from polyclinic.core.study import Study
from polyclinic.core.verify import read_ledger, verify
from polyclinic.server.governance.runs import Run
from polyclinic.server.live import home as coordinator_home
from polyclinic.server.live.home import opened
from polyclinic.simulations.centres import Centre, write_centres
from polyclinic.simulations.demo import demo_study
from polyclinic.simulations.live import PROGRAM, Local, federation, until
from polyclinic.simulations.simulate import Options, simulate
from tests.live.processes import Process, demand_gone, descendants, everybody

PATIENTS = {"north": 30, "south": 24, "west": 36}
PIXELS = 64
SEED = 3
PATIENCE = 120.0
"""Seconds in which any of these small runs ends, on a machine that has other work to do."""


def small_study(name: str = "faults", rounds: int = 3, epochs: int = 1, **more: Any) -> Study:
    """The demo's study on small pictures; ``more``: keys of [rounds]."""
    text = tomllib.loads(demo_study().toml())
    text["study"]["name"] = name
    text["data"]["image_size"] = PIXELS
    text["training"]["epochs"] = epochs
    text["rounds"] |= {"count": rounds, **more}
    return studies.loads(tomli_w.dumps(text))


@dataclass(frozen=True)
class Pictures:
    """Made-up images of some sites."""

    folder: Path
    manifest: Path

    @staticmethod
    def make(folder: Path, patients: Mapping[str, int] = PATIENTS) -> Pictures:
        """Draws them."""
        centres = [Centre(name, number) for name, number in patients.items()]
        return Pictures(folder, write_centres(folder, centres, seed=SEED, size=PIXELS))

    def of(self, site: str) -> Path:
        """The manifest of one site."""
        with self.manifest.open(newline="") as source:
            rows = [row for row in csv.DictReader(source) if row["site"] == site]
        path = self.folder / f"{site}.csv"
        if not path.exists():
            with path.open("w", newline="") as out:
                writer = csv.DictWriter(out, rows[0].keys())
                writer.writeheader()
                writer.writerows(rows)
        return path

    def only(self, sites: list[str]) -> Path:
        """One manifest of several sites."""
        path = self.folder / f"{'+'.join(sites)}.csv"
        lines = self.manifest.read_text().splitlines(keepends=True)
        path.write_text(lines[0] + "".join(line for line in lines[1:] if line.split(",")[1] in sites))
        return path


@dataclass(frozen=True)
class Undisturbed:
    """What a study comes to when nothing happens: from a simulation in this process.

    Attributes:
        adapter: SHA-256 of the adapter.
        updates: round → site → digest of its update.
    """

    adapter: str
    updates: Mapping[int, Mapping[str, str]]


def undisturbed(study: Study, pictures: Pictures, sites: list[str], folder: Path) -> Undisturbed:
    """Simulates."""
    run = simulate(study, pictures.only(sites), folder, Options())
    return Undisturbed(str(run.summary["adapter_sha256"]), counted(run.folder))


def counted(folder: Path) -> dict[int, dict[str, str]]:
    """Round → site → digest of the update, as a run's ledger tells; no round stands there twice."""
    told = [entry.body for entry in read_ledger(folder / "ledger.jsonl") if entry.kind == "round"]
    assert len({body["round"] for body in told}) == len(told), "a round was counted twice"
    return {body["round"]: {site: part["update"] for site, part in body["sites"].items()} for body in told}


@contextmanager
def running(folder: Path, pictures: Pictures, sites: list[str], **settings: Any) -> Iterator[Local]:
    """A federation of ``sites``; none of its processes outlives the block."""
    seen: set[Process] = set()
    try:
        with federation(folder, {site: pictures.of(site) for site in sites}, **settings) as local:
            yield local
            seen |= set(everybody(local))
    finally:
        demand_gone(seen)


@contextmanager
def prepared(folder: Path, **settings: Any) -> Iterator[Local]:
    """A federation of which only the coordinator is up: sites join one by one, as a test wants them."""
    with running(folder, Pictures(folder, folder), [], **settings) as local:
        yield local


def started(
    local: Local, owner: str, *more: str, environment: Mapping[str, str] | None = None, before: Sequence[str] = ()
) -> None:
    """Starts a supervisor, perhaps in another environment, or by another command."""
    role, folder = (
        ("coordinator", local.coordinator.folder) if owner == "coordinator" else ("site", local.sites[owner].folder)
    )
    with (local.folder / f"{owner}.log").open("ab") as log:
        local.processes[owner] = subprocess.Popen(
            [*before, PROGRAM, role, "start", "--dir", str(folder), *more],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=surroundings(environment or {}),
        )  # fmt: skip


def surroundings(more: Mapping[str, str]) -> dict[str, str]:
    """This process's environment, and more."""
    return {**os.environ, **more}


def injected(**what: object) -> dict[str, str]:
    """The environment of a process into which ``inject/sitecustomize.py`` is loaded: ``clock``, ``disorder``."""
    places = [str(Path(__file__).parent / "inject"), str(Path(__file__).parents[2])]
    return {
        "PYTHONPATH": os.pathsep.join(places),
        **{f"FAULT_{key.upper()}": str(value) for key, value in what.items()},
    }


def stopped(local: Local, owner: str) -> None:
    """Stops a supervisor and all its processes, in order."""
    process = local.processes.pop(owner)
    process.terminate()
    process.wait(30.0)


def cut_off(local: Local, owner: str) -> None:
    """Ends a supervisor and all its processes at once, as a power cut would."""
    process = local.processes.pop(owner)
    for victim in [found for found in [Process.of(process.pid)] if found] + descendants(process.pid):
        victim.kill()
    process.wait()


def repointed(local: Local, site: str, **changes: Any) -> site_home.Home:
    """Changes site.toml: ``fleet_port`` and ``governance_port`` of the coordinator, or keys of the site's own."""
    settings = local.sites[site].settings
    there = {key: changes.pop(key) for key in ("host", "fleet_port", "governance_port") if key in changes}
    settings = settings.model_copy(update={"coordinator": settings.coordinator.model_copy(update=there), **changes})
    home = site_home.Home(local.sites[site].folder)
    files.write(home.config, settings.render())
    home.config.chmod(0o640)
    local.sites[site] = home
    return home


def go(local: Local, study: Study) -> Run:
    """Publishes a study and has every site approve it, where that was not done yet, and asks for a run."""
    with opened(local.coordinator) as registry:
        known = registry.offer(study.digest)
    if known is None:
        local.publish(study)
    with opened(local.coordinator) as registry:
        decided = registry.decisions(study.digest)
    for site in local.sites:
        if site not in decided or decided[site].verb != "approve":
            local.approve(study, site)
    local.approved(study)
    return local.run(study)


def live_json(run: Run) -> dict[str, Any]:
    """What the runner says of a run; empty before it began."""
    try:
        found: dict[str, Any] = json.loads((Path(run.folder) / "live.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return found


def in_round(run: Run, number: int, seconds: float = PATIENCE) -> None:
    """Waits until a run is in a round, or past it."""
    until(lambda: live_json(run).get("round", 0) >= number, seconds, f"round {number}")


def state(local: Local, run: Run) -> tuple[str, str]:
    """(state of a run, why) as the registry has it."""
    with opened(local.coordinator) as registry:
        found = registry.run(run.name)
    assert found is not None
    return found.state, found.why


def statuses(local: Local) -> dict[str, tuple[Mapping[str, Any], float]]:
    """Site → (what its link reported, when)."""
    with opened(local.coordinator) as registry:
        return dict(registry.statuses())


def gateway_answers(home: coordinator_home.Home) -> bool:
    """Whether the public listener answers a question over TLS."""
    try:
        where = f"https://127.0.0.1:{home.settings.fleet_port}/polyclinic/v1/ca"
        trusting = ssl.create_default_context(cafile=str(home.keys / "ca.pem"))
        return httpx.get(where, verify=trusting, timeout=2.0, trust_env=False).status_code == 200
    except (httpx.HTTPError, OSError):
        return False


def demand_sound(
    local: Local, run: Run, expected: Undisturbed | None, summary: Mapping[str, Any] | None = None
) -> None:
    """Whatever happened: the same bits, everything counted once, every ledger whole, all sides telling the same.

    Args:
        summary: of the run; None: it was stopped.
    """
    folder = Path(run.folder)
    if summary is not None:
        assert list(verify(folder)), "the run folder"
    told = counted(folder)
    if expected is not None and summary is not None:
        assert summary["adapter_sha256"] == expected.adapter
        assert told == expected.updates
    verify_book(local.coordinator.book, local.coordinator.signing_key().public)
    for site, home in local.sites.items():
        verify_book(home.book, home.settings.key)
        answered = said(home, run, "answered")
        for number, sites in told.items():
            if site in sites:
                mine = {body["update"] for body in answered if body["round"] == number}
                assert mine == {sites[site]}, f"{site}'s book and the ledger differ in round {number}"


def said(home: site_home.Home, run: Run, kind: str) -> list[Mapping[str, Any]]:
    """What a site's book says of a run."""
    return [entry.body for entry in read_entries(home.book, kinds=(kind,)) if entry.body.get("run") == run.name]


def demand_receipts(local: Local, run: Run, seconds: float = 30.0) -> None:
    """Waits until every site has the receipt of every round, signed by the coordinator, and finds nothing amiss."""
    told = counted(Path(run.folder))
    for site, home in local.sites.items():
        inbox, key = Inbox(home.inbox), home.settings.coordinator.key
        until(lambda inbox=inbox: inbox.receipts(run.name).keys() >= told.keys(), seconds, f"{site}'s receipts")  # type: ignore[misc]
        for number, signed in inbox.receipts(run.name).items():
            document = receipt(signed, key, run.name, number)
            assert {name: part["update"] for name, part in document["sites"].items()} == told[number]
        assert not inbox.alarms(), inbox.alarms()


def coordinators_book(local: Local, kind: str) -> list[Entry]:
    """Entries of the coordinator's book."""
    return read_entries(local.coordinator.book, kinds=(kind,))


def logs(home: Path) -> str:
    """What all processes of a folder have said."""
    return "".join(path.read_text(errors="replace") for path in sorted((home / "logs").glob("*.log*")))
