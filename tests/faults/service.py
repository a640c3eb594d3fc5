"""An asyncio server on loopback in a thread of its own: what both proxies are made of."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Self, TypeVar

HOST = "127.0.0.1"
PATIENCE = 10.0
"""Seconds that a service may take to begin, to end, or to do as it is told."""
AT_ONCE = 256
"""Connections that a service holds at one time; more are reset."""
T = TypeVar("T")


class Service(ABC):
    """Serves ``converse`` for each connection; a context manager that leaves no socket and no thread behind.

    Args:
        listen_port: on 127.0.0.1; 0: any that is free, see ``port``.
    """

    def __init__(self, listen_port: int = 0) -> None:
        self.port = listen_port
        self._ready, self._failure = threading.Event(), None
        self._talks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._run, name=type(self).__name__, daemon=True)
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event

    @abstractmethod
    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, from its beginning to its end; ``writer`` is closed afterwards."""

    def begin(self) -> None:  # noqa: B027 -- most have nothing to do here
        """In the service's thread, before the first connection."""

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._ready.wait(PATIENCE):
            raise TimeoutError("the service does not begin")
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(self, *details: object) -> None:
        with suppress(RuntimeError):  # it has ended already
            self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            raise TimeoutError("the service does not end")

    @property
    def address(self) -> str:
        """As "127.0.0.1:PORT"."""
        return f"{HOST}:{self.port}"

    def told(self, what: Callable[[], T]) -> T:
        """What ``what`` gives; it is done in the service's thread, and has been done when this returns."""
        result: Future[T] = Future()

        def do() -> None:
            try:
                result.set_result(what())
            except Exception as failure:
                result.set_exception(failure)

        self._loop.call_soon_threadsafe(do)
        return result.result(PATIENCE)

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except OSError as failure:
            self._failure = failure
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        # not asyncio's own server: what it accepts while it is being closed, it forgets to close
        with socket.create_server((HOST, self.port), backlog=AT_ONCE) as listening:
            listening.setblocking(False)
            self.port = listening.getsockname()[1]
            self.begin()
            self._loop.add_reader(listening.fileno(), self._accept, listening)
            self._ready.set()
            await self._stop.wait()
            self._loop.remove_reader(listening.fileno())
        for talk in self._talks:
            talk.cancel()
        await asyncio.gather(*self._talks, return_exceptions=True)

    def _accept(self, listening: socket.socket) -> None:
        try:
            line, _ = listening.accept()
        except OSError:  # it is gone again
            return
        line.setblocking(False)
        if len(self._talks) >= AT_ONCE:
            hard(line)
            line.close()
            return
        talk = asyncio.ensure_future(self._talk(line))
        self._talks.add(talk)
        talk.add_done_callback(self._talks.discard)
        talk.add_done_callback(lambda _: line.close())  # one that is cancelled before it begins does nothing itself

    async def _talk(self, line: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=line)
        try:
            await self.converse(reader, writer)
        except (OSError, EOFError, asyncio.LimitOverrunError, asyncio.CancelledError):
            writer.transport.abort()
        finally:
            await closed(writer)


async def closed(writer: asyncio.StreamWriter) -> None:
    """Closes ``writer`` once what it holds is sent, or its peer has not taken it for a while."""
    writer.close()
    try:
        await asyncio.wait_for(writer.wait_closed(), PATIENCE / 2)
    except (OSError, TimeoutError, asyncio.CancelledError):
        writer.transport.abort()


def reset(writer: asyncio.StreamWriter) -> None:
    """Ends a connection the hard way: the other side sees ECONNRESET."""
    handle = writer.get_extra_info("socket")
    if handle is not None and handle.fileno() >= 0:
        hard(handle)
    writer.transport.abort()


def hard(line: socket.socket) -> None:
    """Has ``line`` reset when it is closed."""
    with suppress(OSError):
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
