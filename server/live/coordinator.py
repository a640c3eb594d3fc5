"""All processes of a coordinator, kept alive: gateway, runner while a run is on, page."""

from __future__ import annotations

import importlib
import logging
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from polyclinic.core.errors import PolyclinicError
from polyclinic.core.supervise import Child, supervise
from polyclinic.server.governance import tls
from polyclinic.server.governance.registry import Registry
from polyclinic.server.live.home import Home

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "HF_HUB_OFFLINE": "1",
}
"""Nothing calls home, nothing is installed at run time, nothing is fetched from a hub."""
LEAN = {"MALLOC_ARENA_MAX": "2", "MALLOC_MMAP_THRESHOLD_": str(2**20)}
"""For glibc: tensors that were let go of are given back at once, instead of being kept by each thread for later."""
ON = ("wanted", "running", "paused")
LEAVE = 15.0
"""Seconds in which a runner whose run has ended, or was stopped, says so and ends by itself."""


def start(home: Home, tell: Callable[[str], None], stop: Callable[[], bool]) -> None:
    """Keeps the coordinator's processes alive until ``stop``."""
    registry = Registry(home.registry)
    supervise(children(home, lambda: any(run.state in ON for run in registry.runs())), home.logs, tell, stop)


def children(home: Home, on: Callable[[], bool]) -> Sequence[Child]:
    """The processes; the runner is there only while a run is ``on``."""
    us = [sys.executable, "-m", "polyclinic.server.live.coordinator"]
    environment = QUIET | LEAN | tls.ENVIRONMENT | {"FLWR_HOME": str(home.folder / "flower")}
    return [
        Child("gateway", [*us, "gateway", str(home.folder)], environment | {"TMPDIR": str(home.folder)}),
        Child("runner", [*us, "runner", str(home.folder)], environment, wanted=now_and_then(on), leave=LEAVE),
        Child("page", [*us, "page", str(home.folder)], environment),
    ]


def now_and_then(on: Callable[[], bool], every: float = 0.5) -> Callable[[], bool]:
    """``on``, asked no more often than every so many seconds; what was true stays true while nobody can tell."""
    last = [-every, 0.0]

    def asked() -> bool:
        if time.monotonic() - last[0] >= every:
            last[0] = time.monotonic()
            with suppress(PolyclinicError):  # a full disk must not end the supervisor
                last[1] = float(on())
        return bool(last[1])

    return asked


def main(role: str, folder: Path) -> None:
    """Runs one process of the coordinator in ``folder``."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    process = importlib.import_module(f"polyclinic.server.live.{role}")  # each brings in more than the others need
    for loud in ("flwr", "alembic", "httpx"):  # now that they are there: Flower sets its own level when it is imported
        logging.getLogger(loud).setLevel(logging.WARNING)
    process.main(Home.open(folder))


if __name__ == "__main__":
    try:
        main(sys.argv[1], Path(sys.argv[2]))
    except PolyclinicError as failure:
        sys.exit(f"polyclinic: {failure}")
