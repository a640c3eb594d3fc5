"""How gRPC is told to speak mutual TLS 1.3 alone, and to let go of whoever does not speak at all."""

from __future__ import annotations

import os
import socket
import ssl
import sys
from contextlib import suppress
from pathlib import Path

from polyclinic.core.errors import EngineError, TrustError
from polyclinic.core.governance.wire import IN_LIMIT, OUT_LIMIT
from polyclinic.core.pki import Authority
from polyclinic.server.governance.limits import Limits

# gRPC has no setting for the lowest version. Its list of suites is for TLS 1.2 only, and these want an RSA certificate,
# which we never have: no handshake of TLS 1.2 finds a suite, while those of TLS 1.3 are not in this list's power.
ENVIRONMENT = {"GRPC_SSL_CIPHER_SUITES": "ECDHE-RSA-AES128-GCM-SHA256:ECDHE-RSA-AES256-GCM-SHA384"}
"""What the process that serves must have in its environment before grpc is imported for the first time."""


def prepare() -> None:
    """Sets ``ENVIRONMENT`` where it is not too late for that; ``demand_modern`` tells whether it was."""
    if "grpc" not in sys.modules:
        os.environ.update(ENVIRONMENT)


def options(limits: Limits) -> list[tuple[str, int]]:
    """What the server grants to a connection."""
    return [
        ("grpc.max_receive_message_length", IN_LIMIT),
        ("grpc.max_send_message_length", OUT_LIMIT),
        ("grpc.max_metadata_size", 4096),
        ("grpc.absolute_max_metadata_size", 8192),
        ("grpc.compression_enabled_algorithms_bitset", 1),  # none: what is packed could unpack to anything
        ("grpc.max_concurrent_streams", limits.calls + limits.streams),
        ("grpc.max_allowed_incoming_connections", limits.connections),
        ("grpc.server_handshake_timeout_ms", round(1000 * limits.handshake_seconds)),
        ("grpc.http2.settings_timeout", round(1000 * limits.handshake_seconds)),
        ("grpc.max_connection_idle_ms", round(1000 * limits.idle_seconds)),
        ("grpc.max_connection_age_ms", round(1000 * limits.connection_seconds)),
        ("grpc.max_connection_age_grace_ms", round(1000 * limits.call_seconds)),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 20_000),
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 20_000),
        ("grpc.http2.max_ping_strikes", 3),
        ("grpc.so_reuseport", 0),  # a second server on this port must fail, not share it
    ]


class Identity:
    """The server's key and certificate as they are on the disk now, for gRPC to ask for at each handshake."""

    def __init__(self, authority: Authority) -> None:
        self._authority, self._seen = authority, (0, 0)

    def pairs(self) -> list[tuple[bytes, bytes]] | None:
        """(key, certificate), if they have changed since the last look; else None.

        Raises:
            TrustError: they cannot be read, or do not belong together (they are just being replaced).
        """
        key, certificate = (self._authority.folder / name for name in ("server.key", "server.pem"))
        try:
            now = (key.stat().st_mtime_ns, certificate.stat().st_mtime_ns)
            if now == self._seen:
                return None
            pair = (key.read_bytes(), certificate.read_bytes())
        except OSError as failure:
            raise TrustError(f"cannot be read: {failure.strerror}", where=str(self._authority.folder)) from failure
        _context(key, certificate)
        self._seen = now
        return [pair]


def demand_modern(address: str) -> None:
    """Nothing, if the server at ``address`` (HOST:PORT) takes TLS 1.3 and refuses TLS 1.2.

    Raises:
        EngineError: it would take TLS 1.2, or does not answer.
    """
    for version, wanted in ((ssl.TLSVersion.TLSv1_3, True), (ssl.TLSVersion.TLSv1_2, False)):
        try:
            taken = _greeted(address, version)
        except OSError as failure:
            raise EngineError(f"the governance service does not answer: {failure}", where=address) from failure
        if taken != wanted:
            remedy = "start it in a process of its own with tls.ENVIRONMENT set"
            raise EngineError(f"{version.name} is {'taken' if taken else 'refused'}", where=address, remedy=remedy)


def _greeted(address: str, version: ssl.TLSVersion) -> bool:
    """Whether the server answers a greeting of this version with one of its own, rather than with an alert or nothing.

    We have no certificate to show, so the handshake could not be ended; what comes first tells all the same.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    heard, said = ssl.MemoryBIO(), ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(heard, said, server_hostname="localhost").do_handshake()
    host, _, port = address.rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=10) as raw:
        raw.sendall(said.read())
        with suppress(ConnectionError):
            return raw.recv(1) == b"\x16"  # a record of the handshake
    return False


def _context(key: Path, certificate: Path) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
    except ssl.SSLError as failure:
        raise TrustError("server.key and server.pem do not belong together", where=str(key.parent)) from failure
