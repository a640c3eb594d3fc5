"""The coordinator's process that faces the network: Flower's SuperLink, enrolment, governance."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import signal

from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
    load_ssh_public_key,
)

from polyclinic.core.governance.wire import CA_PATH, ENROL_LIMIT, ENROL_PATH
from polyclinic.core.pki import Authority
from polyclinic.core.version import VERSION
from polyclinic.server.governance import enrol, service
from polyclinic.server.governance.calls import Ledgers
from polyclinic.server.governance.registry import Registry
from polyclinic.server.live.gates import App, Receive, Scope, Send, plain, whole
from polyclinic.server.live.home import Home, opened
from polyclinic.server.live.runner import ON
from polyclinic.server.live.superlink import Listener, SuperLink, listeners, serve

HOUR = 3600
"""Ticks, of a second, between two looks at the server's certificate."""
_log = logging.getLogger(__name__)


def main(home: Home) -> None:
    """Serves until SIGTERM."""
    with opened(home) as registry:
        authority = Authority.load(home.keys)
        authority.serve(home.settings.host)  # renews the server's certificate where it is about to expire
        address = f"{home.settings.bind}:{home.settings.governance_port}"
        governance = service.serve(address, authority, registry, version=VERSION, lines=Ledgers(registry, home.book))
        try:
            asyncio.run(_serve(home, authority, registry))
        finally:
            governance.stop(1.0)


async def _serve(home: Home, authority: Authority, registry: Registry) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    superlink = SuperLink(_database(home, registry), home.secret.encode())
    servers: tuple[Listener, Listener] = listeners(
        superlink,
        enrolment(home, authority, registry),
        private=(home.settings.private_port, home.secret),
        public=(home.settings.bind, home.settings.fleet_port),
        certificate=home.keys / "server.pem",
        key=home.keys / "server.key",
    )
    ticks = itertools.count(1)

    def tick() -> None:
        enlist(superlink, registry)
        if next(ticks) % HOUR == 0 and authority.serve(home.settings.host):
            _log.info("the server's certificate was renewed; the gateway starts anew with it")
            os.kill(os.getpid(), signal.SIGTERM)

    await serve(*servers, tick=tick, stop=stop)


def _database(home: Home, registry: Registry) -> str:
    """Flower's state; begun anew while no run is on, since it never shrinks."""
    if not any(run.state in ON for run in registry.runs()):
        for name in ("", "-wal", "-shm"):
            home.superlink.with_name(home.superlink.name + name).unlink(missing_ok=True)
    return str(home.superlink)


def enlist(superlink: SuperLink, registry: Registry) -> None:
    """Whoever has joined may connect, whoever was revoked may not."""
    try:
        sites = registry.sites()
        superlink.register({site.name: pem(site.node_key) for site in sites if site.revoked is None})
    except Exception:  # the next second may do better; nobody is let in meanwhile
        _log.exception("the nodes could not be registered")


def pem(key: bytes) -> bytes:
    """A public key, in OpenSSH's form or in PEM, as Flower keeps it."""
    found = load_ssh_public_key(key) if key.startswith(b"ecdsa-") else load_pem_public_key(key)
    return found.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def enrolment(home: Home, authority: Authority, registry: Registry) -> App:
    """The two addresses that a site knows before it has a certificate."""
    settings = home.settings
    told = enrol.Settings(VERSION, home.signing_key().public, settings.governance_port, settings.fleet_port)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if (scope["method"], scope["path"]) == ("GET", CA_PATH):
            await plain(send, 200, authority.pem.decode())
        elif (scope["method"], scope["path"]) == ("POST", ENROL_PATH):
            body = await whole(receive, ENROL_LIMIT)
            request = bytes(ENROL_LIMIT + 1) if body is None else body
            status, reply = await asyncio.to_thread(enrol.answer, request, registry, authority, told)
            await plain(send, status, reply)
        else:
            await plain(send, 404, "not here")

    return app
