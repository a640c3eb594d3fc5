"""What runs on this machine, as /proc tells it: whose child, which role, which connections."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from polyclinic.simulations.live import Local, until

ESTABLISHED, LISTEN = "01", "0A"
GONE = "Z"


@dataclass(frozen=True)
class Process:
    """A process, told from a later one with the same id by when it was born (clock ticks since the boot)."""

    pid: int
    born: int

    @staticmethod
    def of(pid: int) -> Process | None:
        """The process of that id; None if there is none, or nothing but its exit code."""
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return None if fields[0] == GONE else Process(pid, int(fields[19]))

    @property
    def alive(self) -> bool:
        """Whether it is still there."""
        return Process.of(self.pid) == self

    @property
    def command(self) -> list[str]:
        """Its arguments."""
        try:
            return Path(f"/proc/{self.pid}/cmdline").read_text().split("\0")[:-1]
        except OSError:
            return []

    def kill(self) -> None:
        """Ends it, as a power cut would."""
        if self.alive:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)


def children(pid: int) -> list[Process]:
    """The children of all threads of a process."""
    found: list[Process] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += [child for word in task.read_text().split() if (child := Process.of(int(word)))]
    return found


def descendants(pid: int) -> list[Process]:
    """Children, their children, and so on."""
    found = children(pid)
    return found + [deeper for child in found for deeper in descendants(child.pid)]


def role(command: Iterable[str]) -> str:
    """What a process of ours is there for: "gateway", "runner", "page", "agent", "link", "supernode"; "" for others."""
    words = list(command)
    for module in ("polyclinic.server.live.coordinator", "polyclinic.client.processes"):
        if module in words:
            return words[words.index(module) + 1]
    return "supernode" if any(Path(word).name == "flower-supernode" for word in words) else ""


def roles(local: Local, owner: str) -> dict[str, Process]:
    """Role → process, of the coordinator or of a site, "supervisor" included."""
    supervisor = local.processes.get(owner)
    if supervisor is None or (found := Process.of(supervisor.pid)) is None:
        return {}
    return {"supervisor": found} | {name: child for child in children(found.pid) if (name := role(child.command))}


def everybody(local: Local) -> list[Process]:
    """All processes of a federation."""
    found = [Process.of(started.pid) for started in local.processes.values()]
    return [each for top in found if top for each in [top, *descendants(top.pid)]]


def demand_gone(seen: Iterable[Process], seconds: float = 15.0) -> None:
    """Waits until none of ``seen`` is there; what stays is ended, by its id, and is a fault."""
    end = time.monotonic() + seconds
    left = [process for process in seen if process.alive]
    while left and time.monotonic() < end:
        time.sleep(0.1)
        left = [process for process in left if process.alive]
    stayed = [f"{process.pid} {role(process.command)}" for process in left]
    for process in left:
        process.kill()
    assert not stayed, f"processes outlived their supervisor: {stayed}"


@dataclass(frozen=True)
class Socket:
    """A TCP socket of a process: "ADDRESS:PORT" here and there."""

    here: str
    there: str
    state: str


def sockets(pid: int) -> Iterator[Socket]:
    """The TCP sockets that a process holds, of both families."""
    held = set()
    for link in Path(f"/proc/{pid}/fd").glob("*"):
        with suppress(OSError):
            target = str(link.readlink())
            if target.startswith("socket:["):
                held.add(target[8:-1])
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                words = line.split()
                if words[9] in held:
                    yield Socket(_address(words[1]), _address(words[2]), words[3])


def _address(text: str) -> str:
    """From the kernel's hexadecimal form."""
    host, port = text.split(":")
    raw = b"".join(bytes.fromhex(host[i : i + 8])[::-1] for i in range(0, len(host), 8))
    if len(raw) == 16 and raw[:12] == bytes(10) + b"\xff\xff":
        raw = raw[12:]
    shown = ".".join(map(str, raw)) if len(raw) == 4 else raw.hex()
    return f"{shown}:{int(port, 16)}"


def appeared(local: Local, owner: str, name: str, unlike: Process | None = None, seconds: float = 90.0) -> Process:
    """The process of a role, once it is there and another than ``unlike``."""
    found: list[Process] = []

    def there() -> bool:
        now = roles(local, owner).get(name)
        found[:] = [now] if now and now != unlike else []
        return bool(found)

    until(there, seconds, f"{owner}'s {name}")
    return found[0]
