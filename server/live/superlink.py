"""Flower's SuperLink inside our gateway: its app, its node registry, its two listeners.

The internal names of flwr 1.41 that this needs are imported here and in ``flower_run`` and nowhere else.
"""

from __future__ import annotations

import asyncio
import gc
import os
import ssl
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import uvicorn
from flwr.common.constant import ISOLATION_MODE_PROCESS, NOOP_ACCOUNT_NAME, NOOP_FLWR_AID, TRANSPORT_TYPE_GRPC_RERE
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
from flwr.superlink.config_loader import SuperLinkLifespanConfig, load_control_authn_plugin
from flwr.superlink.main import create_app
from sqlalchemy import event
from sqlalchemy.pool import Pool
from uvicorn.protocols.http.h11_impl import H11Protocol

from polyclinic.server.live.gates import App, Bell, Private, Public

PATIENCE = 15.0
"""Seconds in which a new connection must have begun a request."""
CONNECTIONS = 1000
"""At most so many at once."""
QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
"""Environment of every process of ours that Flower runs in."""


class SuperLink:
    """Flower's state and app over one SQLite file.

    Args:
        database: the file; what it holds may be lost: nodes are registered anew, runs begin anew from our journal.
        secret: for whoever takes ServerApp tasks.
    """

    def __init__(self, database: str, secret: bytes) -> None:
        os.environ.update(QUIET)
        event.listen(Pool, "checkout", _lean)
        self.app = create_app(_config(database, secret), SuperLinkLifespan)
        self._state: Any = self.app.state.linkstate_factory.state()

    def register(self, nodes: Mapping[str, bytes]) -> None:
        """Makes site → public key (PEM) all that there is: others are unregistered, new ones registered."""
        present = {info.public_key: info for info in self._state.get_node_info() if not info.unregistered_at}
        for key, info in present.items():
            if nodes.get(info.name) != key:
                self._state.delete_node(NOOP_FLWR_AID, info.node_id)
        for site, key in nodes.items():
            if key not in present:
                self._state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, 30.0, name=site)

    def takeover(self, body: bytes, refusal: bytes) -> bool:
        """Puts offline the node of an activation that was refused because the node counts as online: if that is so.

        Flower says so only to whoever has the node's key; any other refusal may be a stranger's.
        """
        why = FlowerError.from_json(refusal.decode("utf-8", "replace"))
        if why is None or why.code != ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED:
            return False
        node = self._state.get_node_id_by_public_key(ActivateNodeRequest.FromString(body).public_key)
        return node is not None and bool(self._state.deactivate_node(node))


def _lean(connection: Any, record: Any, proxy: Any) -> None:
    """Flower lets each of its many connections keep 64 MB of pages and map 256 MB of the file: memory without use."""
    if not record.info.get("lean"):
        connection.execute("PRAGMA cache_size = -2000")
        connection.execute("PRAGMA mmap_size = 0")
        record.info["lean"] = True


def _config(database: str, secret: bytes) -> SuperLinkLifespanConfig:
    return SuperLinkLifespanConfig(
        control_address="", health_server_address=None, host="127.0.0.1", port=0, insecure=True, certificates=None,
        superexec_auth_secret=secret, authn_plugin=load_control_authn_plugin(), event_log_plugin=None,
        fleet_event_log_plugin=None, enable_event_log=False, artifact_provider=None, enable_supernode_auth=True,
        fleet_api_type=TRANSPORT_TYPE_GRPC_RERE, fleet_api_address=None, simulation=False, ssl_ca_certfile=None,
        ssl_certfile=None, ssl_keyfile=None, database=database, isolation=ISOLATION_MODE_PROCESS,
        runtime_dependency_install=False,
    )  # fmt: skip


class Listener(uvicorn.Server):
    """A server that leaves signals to the process that it runs in."""

    def capture_signals(self) -> AbstractContextManager[None]:  # type: ignore[override]
        return nullcontext()


class Impatient(H11Protocol):
    """Drops a connection that asks for nothing."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.loop.call_later(PATIENCE, self._tire)

    def _tire(self) -> None:
        if self.cycle is None and not self.transport.is_closing():
            self.transport.close()


def listeners(
    superlink: SuperLink,
    enrolment: App,
    *,
    private: tuple[int, str],
    public: tuple[str, int],
    certificate: Path,
    key: Path,
) -> tuple[Listener, Listener]:
    """(on loopback with everything behind the path ``private[1]``, for the open network with TLS 1.3)."""
    bell = Bell()
    inner = Private(superlink.app, private[1], bell)
    outer = Public(superlink.app, enrolment, superlink.takeover, bell)
    common: dict[str, Any] = {"log_config": None, "access_log": False, "server_header": False, "workers": 1}
    return (
        Listener(uvicorn.Config(inner, host="127.0.0.1", port=private[0], lifespan="on", **common)),
        Listener(
            uvicorn.Config(
                outer, host=public[0], port=public[1], lifespan="off", http=Impatient, timeout_keep_alive=30,
                limit_concurrency=CONNECTIONS, ssl_context_factory=_tls(certificate, key), **common,
            )
        ),
    )  # fmt: skip


def _tls(certificate: Path, key: Path) -> Callable[..., ssl.SSLContext]:
    def make(*_: Any) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(certificate, key)
        return context

    return make


async def serve(*servers: Listener, tick: Callable[[], None], stop: asyncio.Event) -> None:
    """Serves until ``stop`` is set; ``tick`` is called every second, in a thread."""
    gc.collect()
    gc.freeze()  # what is there now stays: a collection need not look at it again
    tasks = [asyncio.ensure_future(server.serve()) for server in servers]
    stopped = asyncio.ensure_future(stop.wait())
    while not stopped.done() and not any(task.done() for task in tasks):
        await asyncio.to_thread(tick)
        await asyncio.wait({stopped, *tasks}, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
    for server in servers:
        server.should_exit = True
    await asyncio.wait(tasks, timeout=10.0)
