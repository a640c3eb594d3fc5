"""What stands around a simulation on Ray: the session itself, and quiet on the terminal."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from polyclinic.core.errors import EngineError

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@contextmanager
def cluster(address: str | None, cpus: int, scratch: Path) -> Iterator[None]:
    """A Ray of our own for the time, or a connection to the one at ``address``."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        try:
            _connect(address, cpus, scratch)
        except Exception as failure:
            problem = f"no Ray cluster answers: {failure}" if address else f"Ray did not start: {failure}"
            remedy = "give HOST:PORT of its head, as 'ray start' names it" if address else "flower.log may say more"
            raise EngineError(problem, where=address or "", remedy=remedy) from failure
        yield
    finally:
        ray.shutdown()
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)  # Ray puts its own in place


def _connect(address: str | None, cpus: int, scratch: Path) -> None:
    where: dict[str, Any] = {"address": address}
    if address is None:
        where = {"address": "local", "num_cpus": cpus, "include_dashboard": False, "_temp_dir": str(scratch)}
    elif found := re.fullmatch(r"([^:/]+):([0-9]+)", address):  # Ray itself would try for many minutes
        socket.create_connection((found[1], int(found[2])), 30.0).close()
    ray.init(log_to_driver=False, logging_level=logging.CRITICAL, **where)


@contextmanager
def quiet(log: Path) -> Iterator[Path]:
    """A scratch folder, no telemetry, and Flower's log lines in a file instead of on the terminal."""
    # the paths of Ray's sockets lie below and may have about 100 characters: a run folder's would be too long
    scratch = Path(tempfile.mkdtemp(prefix="plc", dir="/tmp" if os.name == "posix" else None))
    logger = logging.getLogger("flwr")
    kept, propagate = logger.handlers[:], logger.propagate
    before = {name: os.environ.get(name) for name in (*QUIET, "FLWR_HOME")}
    os.environ.update(QUIET, FLWR_HOME=str(scratch))
    logger.handlers[:], logger.propagate = [logging.FileHandler(log, encoding="utf-8")], False
    try:
        yield scratch
    finally:
        logger.handlers[0].close()
        logger.handlers[:], logger.propagate = kept, propagate
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        shutil.rmtree(scratch, ignore_errors=True)
