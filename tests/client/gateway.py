"""The coordinator's web addresses for tests of joining: the real enrolment, or whatever a test wants to be answered."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from polyclinic.core.governance.wire import CA_PATH, ENROL_PATH
from polyclinic.core.invitation import Invitation
from polyclinic.core.pki import fingerprint
from polyclinic.server.governance.enrol import answer
from tests.server.governance.coordinator import SETTINGS, Coordinator, coordinator

Answer = Callable[[str, bytes], tuple[int, bytes]]
"""(path, body) → (status, body)."""


class Gateway:
    """Attributes: ``answer`` may be replaced; ``asked``: paths; ``seen``: bodies of enrolment requests."""

    def __init__(self, hub: Coordinator) -> None:
        self.hub, self.port = hub, 0
        self.answer: Answer = self.honest
        self.asked: list[str] = []
        self.seen: list[bytes] = []

    def honest(self, path: str, body: bytes) -> tuple[int, bytes]:
        if path == CA_PATH:
            return 200, self.hub.authority.pem
        if path == ENROL_PATH:
            return answer(body, self.hub.registry, self.hub.authority, SETTINGS)
        return 404, b"not here"

    def invite(self, site: str = "north", **others: Any) -> Invitation:
        told = {
            "host": "localhost", "fleet_port": self.port, "governance_port": self.hub.port or 8444, "site": site,
            "ca": fingerprint(self.hub.authority.pem), "token": self.hub.registry.invite(site, 600.0),
            "expires": time.time() + 600.0,
        }  # fmt: skip
        return Invitation(**{**told, **others})


@contextmanager
def gateway(folder: Path, hub: Coordinator | None = None) -> Iterator[Gateway]:
    """A gateway with TLS 1.3 on a port of this machine."""
    made = Gateway(hub or coordinator(folder))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(size)
            made.asked.append(self.path)
            if body:
                made.seen.append(body)
            status, reply = made.answer(self.path, body)
            self.send_response(status)
            if status in (301, 302, 307):
                self.send_header("Location", reply.decode())
            self.send_header("Content-Length", str(len(reply)))
            self.end_headers()
            self.wfile.write(reply)

        do_POST = do_GET  # noqa: N815

        def log_message(self, *parts: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, *parts: Any) -> None:
            pass

    keys = made.hub.authority.folder
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(keys / "server.pem", keys / "server.key")
    with Server(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        made.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield made
        finally:
            server.shutdown()
            thread.join()
            if hub is None:
                made.hub.registry.close()
