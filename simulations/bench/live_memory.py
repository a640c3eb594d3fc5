"""Memory of a live coordinator as sites grow in number: gateway and runner, while many large updates arrive at once."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

from polyclinic.client import site as site_processes
from polyclinic.client.approvals import decide
from polyclinic.client.home import Home
from polyclinic.core.book import Book
from polyclinic.core.errors import EngineError
from polyclinic.core.memory import peak_mb
from polyclinic.core.signing import sign, write_secret
from polyclinic.core.study import Study
from polyclinic.core.version import VERSION
from polyclinic.server.live import runner
from polyclinic.server.live.home import opened
from polyclinic.simulations.bench.figure import Measured
from polyclinic.simulations.bench.live import centres, ends_well, study
from polyclinic.simulations.live import Local, federation, reachable, until

GOAL = 1.1
ROLES = ("gateway", "runner")
PATIENCE = 3600.0
"""Seconds that the rounds may take."""


def flat(counts: tuple[int, ...], megabytes: int, rounds: int) -> Measured:
    """Peak memory of gateway and runner with most sites ÷ with fewest, each federation after the other."""
    peaks = {count: peak(count, megabytes, rounds) for count in counts}
    total = {count: sum(found.values()) for count, found in peaks.items()}
    ratio = total[max(counts)] / total[min(counts)]
    detail: dict[str, float | list[float]] = {
        f"{count} sites, {role}, MiB": round(size, 1) for count, found in peaks.items() for role, size in found.items()
    }
    name = f"live, the server's memory, {max(counts)} ÷ {min(counts)} sites of {megabytes} MB updates"
    return Measured(name, round(ratio, 4), f"<= {GOAL}", ratio <= GOAL, detail=detail)


def peak(count: int, megabytes: int, rounds: int) -> dict[str, float]:
    """Role → MiB, over rounds with ``count`` sites: stock SuperNodes, and agents without a model."""
    if not Path("/proc/self/status").exists():
        raise EngineError("peak memory of other processes can only be read on Linux", where="bench live-memory")
    agreed = study(rounds, megabytes)
    with TemporaryDirectory() as place, ends_well(), federation(Path(place, "live"), {}) as local:
        local.publish(agreed)
        manifest = centres(Path(place, "images"), 12)["site000"]  # nobody reads it
        for number in range(count):
            home = local.join(f"site{number:03d}", manifest)
            approve(local, home, agreed)
            start(local, home)
        return watched(local, agreed, rounds)


def approve(local: Local, home: Home, agreed: Study) -> None:
    """Approval without a link that carries it."""
    key, name = home.key(), home.settings.name
    with opened(local.coordinator) as registry, closing(Book(home.book, key)) as book:
        offer = runner.offered(registry, agreed.digest)
        decided = decide(book, name, agreed.digest, "approve", VERSION, offer["backbone"]["sha256"])
        registry.decide(name, decided.document(), sign(decided.document(), key))


def start(local: Local, home: Home) -> None:
    """One site: a stock SuperNode and a bare agent; the next one comes when this one listens."""
    write_secret(home.shared / "runtime.secret", secrets.token_bytes(64))
    bare = [sys.executable, "-m", "polyclinic.simulations.bench.noop", "bare", str(home.folder)]
    network = site_processes.environment(home)
    for role, command in (("supernode", site_processes.supernode_command(home)), ("agent", bare)):
        with (home.logs / f"{role}.log").open("ab") as log:
            local.processes[f"{home.settings.name} {role}"] = subprocess.Popen(
                list(command), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env={**os.environ, **site_processes.QUIET, **network},
            )  # fmt: skip
    until(lambda: reachable(home.settings.local_port), 60.0, f"the SuperNode of {home.settings.name}")


def watched(local: Local, agreed: Study, rounds: int) -> dict[str, float]:
    """Runs the study, and looks at the processes until its last round of training is committed."""
    run, peaks = local.run(agreed), dict.fromkeys(ROLES, 0.0)
    records, end = Path(run.folder, "rounds.jsonl"), time.monotonic() + PATIENCE
    while not records.exists() or records.read_text().count("\n") < rounds:
        with opened(local.coordinator) as registry:
            found = registry.run(run.name)
        if found is None or found.state == "failed" or time.monotonic() > end:
            raise EngineError(f"the run failed: {found.why if found else ''}", where="bench live-memory")
        for role, pid in processes(local.processes["coordinator"].pid).items():
            peaks[role] = max(peaks[role], peak_mb(pid))
        time.sleep(0.2)
    return peaks


def processes(supervisor: int) -> dict[str, int]:
    """Role → process, of the children of a coordinator's supervisor."""
    found: dict[str, int] = {}
    for task in Path(f"/proc/{supervisor}/task").iterdir():
        for pid in _read(task / "children").split():
            words = _read(Path(f"/proc/{pid}/cmdline")).split("\0")
            found |= {role: int(pid) for role in ROLES if role in words}
    return found


def _read(path: Path) -> str:
    """What a file of a process says; nothing if the process is gone."""
    try:
        return path.read_text()
    except OSError:
        return ""
