"""The process that serves the live page, on loopback and to the token alone."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

import anyio
import uvicorn

from polyclinic.core.errors import EngineError, TrustError
from polyclinic.server.live.page.application import application
from polyclinic.server.live.page.board import Runs
from polyclinic.server.live.page.guard import LEAST

HOSTS = ("127.0.0.1", "::1", "localhost")
CONNECTIONS = 64
"""At once, streams included."""
PATIENCE = 2
"""Seconds that open streams are given to end."""


def serve(
    runs: Runs,
    *,
    port: int,
    token: str,
    host: str = "127.0.0.1",
    stop: Callable[[], bool] = lambda: False,
    ready: Callable[[int], None] = lambda port: None,
) -> None:
    """Serves until ``stop`` (or a signal that ends the process).

    Args:
        runs: the run folders, or the folder in which they lie.
        port: 0 for any that is free.
        token: what a visitor must know.
        ready: is told the port, once visitors can come.

    Raises:
        TrustError: the host is not loopback, or the token is too short to be a secret.
        EngineError: the port is taken.
    """
    if host not in HOSTS:
        raise TrustError("the live page is for this machine alone", where=host, remedy="give 127.0.0.1")
    if len(token) < LEAST:
        raise TrustError(f"the page's token has fewer than {LEAST} characters", remedy="make another")
    with listener(host, port) as listening:
        asyncio.run(serving(runs, token, listening, stop, ready))


async def serving(
    runs: Runs, token: str, listening: socket.socket, stop: Callable[[], bool], ready: Callable[[int], None]
) -> None:
    """Serves on a socket that listens already."""
    port = int(listening.getsockname()[1])
    server: uvicorn.Server | None = None

    def closing() -> bool:
        return server is not None and server.should_exit

    settings = uvicorn.Config(
        application(runs, token, port, closing),
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,  # it would hold the token
        server_header=False,
        limit_concurrency=CONNECTIONS,
        timeout_graceful_shutdown=PATIENCE,
    )
    server = uvicorn.Server(settings)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch, server, stop, lambda: ready(port))
        await server.serve(sockets=[listening])
        tasks.cancel_scope.cancel()


async def watch(server: uvicorn.Server, stop: Callable[[], bool], begun: Callable[[], None]) -> None:
    """Says when the server has started, and ends it when it is to stop."""
    while not server.started:
        await anyio.sleep(0.02)
    begun()
    while not stop():
        await anyio.sleep(0.1)
    server.should_exit = True


def listener(host: str, port: int) -> socket.socket:
    """A socket that listens on loopback."""
    family = socket.AF_INET6 if host == "::1" else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=CONNECTIONS)
    except OSError as failure:
        remedy = "choose another port for the page, or end what listens there"
        raise EngineError(f"cannot listen: {failure.strerror}", where=f"{host}:{port}", remedy=remedy) from failure
