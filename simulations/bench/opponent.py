"""Flower as it comes, on one machine: a SuperLink, SuperNodes, and our plain FedAvg app, with TLS and node keys."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from polyclinic.core.errors import EngineError
from polyclinic.core.pki import Authority
from polyclinic.simulations.live import free_ports, reachable, until

QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}
"""Nothing calls home, nothing is installed at run time."""
START = 60.0
"""Seconds in which a process must be ready."""


@dataclass(frozen=True)
class Times:
    """What the server app noted: beginnings of rounds and the end (seconds since the epoch); slowest site's seconds."""

    begun: list[float]
    worked: list[float]

    def rounds(self) -> list[float]:
        """Seconds of each round."""
        return [after - before for before, after in zip(self.begun, self.begun[1:], strict=False)]

    def beyond(self) -> list[float]:
        """Seconds of each round beyond its slowest site's work."""
        return [whole - work for whole, work in zip(self.rounds(), self.worked, strict=True)]


@dataclass
class Stock:
    """The running federation in ``folder``."""

    folder: Path
    port: int
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, nodes: Mapping[str, Mapping[str, str]]) -> None:
        """SuperLink and SuperNodes: name → its node configuration; each is registered by its key."""
        keys, address = self.folder / "keys", f"127.0.0.1:{self.port}"
        keys.mkdir(parents=True)
        Authority.create(keys, "127.0.0.1")
        home = self.folder / "home"
        home.mkdir()
        told = f'[superlink]\ndefault = "bench"\n[superlink.bench]\naddress = "{address}"\n'
        (home / "config.toml").write_text(f'{told}root-certificates = "{keys / "ca.pem"}"\n')
        tls = ["--ssl-ca-certfile", keys / "ca.pem", "--ssl-certfile", keys / "server.pem"]
        self._begin(
            "superlink", program("flower-superlink"), *tls, "--ssl-keyfile", keys / "server.key",
            "--enable-supernode-auth", "--disable-runtime-dependency-installation",
            "--host", "127.0.0.1", "--port", self.port,
        )  # fmt: skip
        until(lambda: reachable(self.port), START, "Flower's SuperLink")
        for (name, configuration), port in zip(nodes.items(), free_ports(len(nodes)), strict=True):
            private, public = _node_key()
            (keys / name).write_bytes(private)
            (keys / f"{name}.pub").write_bytes(public)
            self._flwr("supernode", "register", keys / f"{name}.pub", "bench", "--name", name)
            self._begin(
                name, program("flower-supernode"), "--superlink", address, "--root-certificates", keys / "ca.pem",
                "--auth-supernode-private-key", keys / name, "--port", port,
                "--node-config", " ".join(f"{key}={json.dumps(value)}" for key, value in configuration.items()),
            )  # fmt: skip

    def run(self, seconds: float, **config: str | int) -> Times:
        """One run of the app to its end.

        Raises:
            EngineError: it failed, or took longer than ``seconds``.
        """
        out = self.folder / f"times-{time.monotonic_ns()}.json"
        told = " ".join(f"{key}={json.dumps(value)}" for key, value in {**config, "out": str(out)}.items())
        app = files("polyclinic.simulations.bench").joinpath("flower_app")
        self._flwr("run", app, "bench", "-c", told)
        until(out.exists, seconds, "the end of Flower's run")
        times = json.loads(out.read_text())
        if why := times.get("why"):
            raise EngineError(f"Flower's run failed: {why[-600:]}", where="bench live")
        return Times(**times)

    def stop(self) -> None:
        """Ends every process, and what each began."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in self.processes:
                try:
                    os.killpg(process.pid, number)
                except ProcessLookupError:
                    continue
            end = time.monotonic() + 10.0
            while time.monotonic() < end and any(process.poll() is None for process in self.processes):
                time.sleep(0.05)

    def _begin(self, name: str, *command: object) -> None:
        with (self.folder / f"{name}.log").open("wb") as log:
            self.processes.append(
                subprocess.Popen(
                    list(map(str, command)), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                    env=self._environment(), start_new_session=True,
                )
            )  # fmt: skip

    def _flwr(self, *arguments: object) -> None:
        command = [program("flwr"), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=self._environment())
        if done.returncode:
            raise EngineError(f"flwr {arguments[0]} failed: {(done.stdout + done.stderr)[-600:]}", where="bench live")

    def _environment(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        return {**os.environ, **QUIET, "FLWR_HOME": str(self.folder / "home"), "PATH": path}


@contextmanager
def stock(folder: Path, nodes: Mapping[str, Mapping[str, str]]) -> Iterator[Stock]:
    """A running federation; all its processes end with the block."""
    federation = Stock(folder, free_ports(1)[0])
    try:
        federation.start(nodes)
        yield federation
    finally:
        federation.stop()


def program(name: str) -> str:
    """A program that came with flwr, beside this Python."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        raise EngineError(f"{name} is not there", where="bench live", remedy="install flwr as the package demands it")
    return found


def _node_key() -> Sequence[bytes]:
    """(private, public) as ssh-keygen writes them."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    return private, key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
