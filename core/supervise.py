"""Keeps the processes of one machine alive: what dies is started again, what must stop is stopped, all of it logged."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

STOP_SECONDS = 10.0
"""After which a process that was asked to end is ended."""
CALM = 30.0
"""Seconds of life after which a process counts as sound, and its next restart comes at once again."""
MOST = 8.0
"""Seconds of the longest pause before a restart."""
LOG_LIMIT = 16 * 2**20
"""Bytes of a log; the one before it is kept once."""

Tell = Callable[[str], None]


@dataclass
class Child:
    """One process that is to be there.

    Attributes:
        name: in messages; the log is NAME.log.
        command: program and arguments; or, called at each start, what makes them.
        environment: beside the supervisor's own.
        wanted: whether it should be there now (looked at several times a second).
        together: names of others that are restarted whenever this one dies.
        user: operating-system user under which it runs (the supervisor must be root); None: the supervisor's.
        leave: seconds in which it ends by itself once it is not wanted any more; after that it is ended.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    wanted: Callable[[], bool] = lambda: True
    together: tuple[str, ...] = ()
    user: str | None = None
    leave: float = 0.0
    process: subprocess.Popen[bytes] | None = None
    born: float = 0.0
    due: float = 0.0
    pause: float = 0.0
    unwanted: float | None = None


def supervise(children: Sequence[Child], logs: Path, tell: Tell, stop: Callable[[], bool]) -> None:
    """Runs ``children`` until ``stop``; they end with the supervisor, however that ends."""
    by_name = {child.name: child for child in children}
    try:
        while not stop():
            for child in children:
                _tend(child, by_name, logs, tell)
            time.sleep(0.1)
    finally:
        for child in reversed(children):
            _end(child)


def _tend(child: Child, all_of_them: Mapping[str, Child], logs: Path, tell: Tell) -> None:
    now = time.monotonic()
    if child.process is not None and (code := child.process.poll()) is not None:
        child.process = None
        child.pause = min(MOST, 2 * child.pause or 0.25) if now - child.born < CALM else 0.25
        child.due = now + (child.pause if child.wanted() else 0.0)
        if child.wanted():
            tell(f"{child.name} ended ({_reason(code)}); it starts again in {child.pause:g} s")
        for name in child.together:
            _end(all_of_them[name])
    if child.wanted():
        child.unwanted = None
    elif child.process is not None:
        child.unwanted = now if child.unwanted is None else child.unwanted
        if now - child.unwanted >= child.leave:
            _end(child)
    if child.process is None and child.wanted() and now >= child.due:
        try:
            child.process, child.born = _start(child, logs), now
            tell(f"{child.name} started, process {child.process.pid}")
        except (OSError, subprocess.SubprocessError) as failure:
            child.pause = min(MOST, 2 * child.pause or 0.25)
            child.due = now + child.pause
            tell(f"{child.name} cannot be started: {failure}; the next try is in {child.pause:g} s")


def _start(child: Child, logs: Path) -> subprocess.Popen[bytes]:
    path = logs / f"{child.name}.log"
    if path.exists() and path.stat().st_size > LOG_LIMIT:
        path.replace(path.with_suffix(".log.1"))
    parent = os.getpid()
    with path.open("ab") as log:
        return subprocess.Popen(
            list(child.command), stdin=subprocess.DEVNULL, stdout=log, stderr=log, user=child.user,
            group=_group(child.user), extra_groups=[] if child.user else None,
            env={**os.environ, **child.environment}, preexec_fn=lambda: _die_with(parent),  # noqa: PLW1509 -- this process has one thread
            start_new_session=True,
        )  # fmt: skip


def _end(child: Child) -> None:
    process, child.process = child.process, None
    if process is None or process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _die_with(parent: int) -> None:
    """On Linux, has the new process ended when its supervisor dies, even by SIGKILL: nobody would tend it any more.

    At once, not in its own time: its ports and locks must be free when the supervisor is started again a second later,
    and each process of ours can be killed at any moment.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def _group(user: str | None) -> int | None:
    if user is None:
        return None
    import pwd

    return pwd.getpwnam(user).pw_gid


def _reason(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
