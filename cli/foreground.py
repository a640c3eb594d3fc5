"""Running in the foreground until somebody says stop: one supervisor a folder, signals, a line for what happens."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import typer


@contextmanager
def alone(*folders: Path, what: str, remedy: str) -> Iterator[None]:
    """Holds ``folders`` against a second supervisor; the system lets go when this process is gone, however it ends.

    Raises:
        RunError: another one holds one of them.
    """
    from polyclinic.core.errors import RunError

    with ExitStack() as held:
        for folder in folders:
            handle = os.open(folder, os.O_RDONLY)
            held.callback(os.close, handle)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as failure:
                raise RunError(f"{what} is running already", where=str(folder), remedy=remedy) from failure
        yield


def held(folder: Path) -> bool | None:
    """Whether a supervisor holds ``folder``; None if we may not look."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


@contextmanager
def until_stopped() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C was pressed or SIGTERM came since the block began; neither interrupts what is under way."""
    came: list[int] = []
    both = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda got, _: came.append(got)) for number in both}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def demand_free(places: Mapping[str, tuple[str, int]], where: str) -> None:
    """Nothing, if every port (meaning → address, port) can be listened on.

    Raises:
        EngineError: naming the first that cannot.
    """
    from polyclinic.core.errors import EngineError

    for meaning, (address, port) in places.items():
        try:
            found = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            family, kind, _, _, at = found[0]
            with socket.socket(family, kind) as listener:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind(at)
        except OSError as failure:
            problem = f"{address}, port {port} ({meaning}) cannot be listened on: {failure.strerror or failure}"
            remedy = f"end what listens there, or set another {meaning}"
            raise EngineError(problem, where=where, remedy=remedy) from failure


def say(line: str) -> None:
    """A line with the time of day, at once even into a pipe."""
    typer.echo(f"{time.strftime('%H:%M:%S')}  {line}")


def supervised(logs: Path) -> Callable[[str], None]:
    """Tells what a supervisor does, and where to look when a process ended."""

    def tell(line: str) -> None:
        name, _, rest = line.partition(" ")
        say(f"{line} – see {logs / name}.log" if rest.startswith(("ended", "cannot")) else line)

    return tell
