"""A live federation on one machine: a coordinator and sites in folders of their own, real processes, real TLS.

For the demo, the benchmarks and the fault tests; every process is the one that hospitals run.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from polyclinic.client import home as site_home
from polyclinic.client.approvals import Limits, decide
from polyclinic.client.join import join
from polyclinic.client.offer import read_offer
from polyclinic.client.outbox import Outbox
from polyclinic.core import files
from polyclinic.core.book import Book
from polyclinic.core.errors import EngineError
from polyclinic.core.signing import sign
from polyclinic.core.study import Study
from polyclinic.core.version import VERSION
from polyclinic.server.governance.runs import Run
from polyclinic.server.live import home as coordinator_home
from polyclinic.server.live import publish, runner
from polyclinic.server.live.home import Settings, opened

PROGRAM = str(Path(sys.executable).with_name("polyclinic"))


@dataclass
class Local:
    """The federation in ``folder``.

    Attributes:
        coordinator: its folder.
        sites: name → its folder.
        processes: name of a supervisor ("coordinator", or a site's name) → it.
    """

    folder: Path
    coordinator: coordinator_home.Home
    sites: dict[str, site_home.Home] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start_coordinator(self) -> None:
        """Starts the coordinator's supervisor, and waits until sites can reach it."""
        self._start("coordinator", "coordinator", "start", "--dir", str(self.coordinator.folder))
        settings = self.coordinator.settings
        until(lambda: all(map(reachable, (settings.fleet_port, settings.governance_port))), 60.0, "the gateway")

    def start_site(self, name: str, *more: str) -> None:
        """Starts a site's supervisor."""
        self._start(name, "site", "start", "--dir", str(self.sites[name].folder), *more)

    def join(self, name: str, manifest: Path, **settings: Any) -> site_home.Home:
        """Invites a site and lets it join."""
        with opened(self.coordinator) as registry:
            token = registry.invite(name, 3600.0)
        invitation = self.coordinator.invitation(name, token, time.time() + 3600.0)
        local = settings.pop("local_port", None) or free_ports(1)[0]
        home = join(invitation.text(), self.folder / name, manifest, local_port=local, **settings)
        self.sites[name] = home
        return home

    def publish(self, study: Study) -> None:
        """Offers a study."""
        place = self.coordinator.folder / "initial" / study.digest
        place.parent.mkdir(exist_ok=True)
        signed, _ = publish.publish(study, place, self.coordinator.signing_key())
        with opened(self.coordinator) as registry:
            registry.publish(signed, study.digest)

    def approve(self, study: Study, name: str, limits: Limits = Limits()) -> None:
        """Has a site approve a study, once its link has brought the offer."""
        home = self.sites[name]
        until((home.studies / f"{study.digest}.json").exists, 60.0, f"{name}'s link")
        offer, key = read_offer(home, study.digest), home.key()
        book = Book(home.book, key)
        decided = decide(book, name, study.digest, "approve", VERSION, offer.backbone_sha256, limits)
        book.close()
        Outbox(home.outbox).put(sign(decided.document(), key))

    def approved(self, study: Study) -> None:
        """Waits until the coordinator knows that every site approved."""
        with opened(self.coordinator) as registry:
            until(lambda: registry.decisions(study.digest).keys() >= self.sites.keys(), 60.0, "the sites' approval")

    def run(self, study: Study) -> Run:
        """Asks for a run of a published study."""
        with opened(self.coordinator) as registry:
            return runner.want(self.coordinator, registry, study.digest)

    def wait(self, run: Run, seconds: float, observe: Callable[[str], None] = lambda state: None) -> dict[str, Any]:
        """The summary of a run, once it has finished.

        Raises:
            EngineError: it failed, or took longer than ``seconds``.
        """
        end = time.monotonic() + seconds
        with opened(self.coordinator) as registry:
            while time.monotonic() < end:
                found = registry.run(run.name)
                assert found is not None
                observe(found.state)
                if found.state == "finished":
                    summary: dict[str, Any] = json.loads((Path(run.folder) / "summary.json").read_text())
                    return summary
                if found.state == "failed":
                    raise EngineError(f"the run failed: {found.why}", where=run.name)
                time.sleep(0.2)
        raise EngineError(f"the run has not finished within {seconds:.0f} s", where=run.name)

    def stop(self) -> None:
        """Ends every process."""
        for process in reversed(self.processes.values()):
            process.terminate()
        for process in self.processes.values():
            try:
                process.wait(30.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _start(self, name: str, *command: str) -> None:
        log = (self.folder / f"{name}.log").open("ab")
        with log:
            self.processes[name] = subprocess.Popen(
                [PROGRAM, *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )


@contextmanager
def federation(folder: Path, manifests: Mapping[str, Path], **settings: Any) -> Iterator[Local]:
    """A running federation of the sites that ``manifests`` names; all processes end with the block."""
    with files.explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
    ports = dict(zip(("fleet_port", "governance_port", "page_port", "private_port"), free_ports(4), strict=True))
    chosen = Settings(**{"host": "127.0.0.1", "bind": "127.0.0.1", **ports, **settings})
    local = Local(folder, coordinator_home.Home.create(folder / "coordinator", chosen))
    try:
        local.start_coordinator()
        for name, manifest in manifests.items():
            local.join(name, manifest)
            local.start_site(name)
        yield local
    finally:
        local.stop()


def simple_run(local: Local, study: Study, seconds: float) -> tuple[Run, dict[str, Any]]:
    """Publishes, approves everywhere, runs, waits: the run and its summary."""
    local.publish(study)
    for name in local.sites:
        local.approve(study, name)
    local.approved(study)
    run = local.run(study)
    return run, local.wait(run, seconds)


def free_ports(count: int) -> Sequence[int]:
    """Ports of this machine that nobody listens on now."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [found.getsockname()[1] for found in sockets]
    for found in sockets:
        found.close()
    return ports


def reachable(port: int) -> bool:
    """Whether somebody listens on a port of this machine."""
    try:
        socket.create_connection(("127.0.0.1", port), 1.0).close()
    except OSError:
        return False
    return True


def until(true: Callable[[], bool], seconds: float, what: str) -> None:
    """Waits.

    Raises:
        EngineError: ``what`` did not come in time.
    """
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            raise EngineError(f"{what} did not come within {seconds:.0f} s")
        time.sleep(0.1)
