"""A coordinator for tests: its folder, and its service in a process of its own, as in earnest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from polyclinic.core import pki
from polyclinic.core.governance import governance_pb2 as pb
from polyclinic.core.governance import governance_pb2_grpc
from polyclinic.core.governance.wire import enrol_request
from polyclinic.core.pki import Authority
from polyclinic.core.signing import Signed, SigningKey, sign
from polyclinic.server.governance import tls
from polyclinic.server.governance.enrol import Settings, enrol
from polyclinic.server.governance.registry import Registry

VERSION = "0.1.0"
STUDY, WEIGHTS = "5" * 64, "b" * 64
COORDINATOR = SigningKey.new()
SETTINGS = Settings(VERSION, COORDINATOR.public, 8444, 8443)


@dataclass(frozen=True)
class Site:
    """A site that has joined."""

    name: str
    key: SigningKey
    tls_key: bytes
    certificate: bytes

    def says(self, **document: Any) -> Signed:
        """A statement of the site's, now."""
        return sign({"site": self.name, "time": time.time(), **document}, self.key)

    def decides(self, sequence: int, verb: str = "approve", **changes: Any) -> Signed:
        """A decision as agreed, but for some changes."""
        limits = {"rounds": 3, "until": None, "hours": None}
        rest = {"version": VERSION, "backbone_sha256": WEIGHTS, "limits": limits}
        return self.says(**{"kind": "decision", "study": STUDY, "verb": verb, "sequence": sequence, **rest, **changes})


@dataclass(frozen=True)
class Coordinator:
    """Its folder, as this process sees it, and the port of its service, if that is up."""

    folder: Path
    authority: Authority
    registry: Registry
    port: int = 0

    def join(self, name: str) -> Site:
        """Takes in a site that makes its keys itself."""
        key, tls_key = SigningKey.new(), pki.new_tls_key()
        token = self.registry.invite(name, 60.0)
        request = enrol_request(token, name, pki.request(tls_key, name), node_key(), key, VERSION)
        reply = pb.EnrolReply.FromString(enrol(request, self.registry, self.authority, SETTINGS))
        return Site(name, key, private(tls_key), reply.certificate)

    @contextmanager
    def channel(self, tls_key: bytes | None, certificate: bytes | None) -> Iterator[grpc.Channel]:
        """A connection with any certificate, or none."""
        pair = grpc.ssl_channel_credentials(self.authority.pem, tls_key, certificate)
        options = [("grpc.enable_retries", 0), ("grpc.use_local_subchannel_pool", 1)]
        with grpc.secure_channel(f"localhost:{self.port}", pair, options) as channel:
            yield channel

    @contextmanager
    def calls(self, site: Site) -> Iterator[Any]:
        """The service's calls, as ``site``."""
        with self.channel(site.tls_key, site.certificate) as channel:
            yield governance_pb2_grpc.GovernanceStub(channel)  # type: ignore[no-untyped-call]


def coordinator(folder: Path) -> Coordinator:
    """A new one; STUDY is on offer."""
    authority = Authority.create(folder / "keys", "localhost")
    (folder / "book").mkdir()
    registry = Registry(folder / "registry.db")
    registry.publish(sign({"kind": "offer", "study": STUDY}, COORDINATOR), STUDY)
    return Coordinator(folder, authority, registry)


@contextmanager
def served(folder: Path, **limits: float) -> Iterator[Coordinator]:
    """A new coordinator whose service is up, in a process of its own, for as long as the context lasts."""
    made = coordinator(folder)
    command = [sys.executable, "-W", "error", __file__, str(folder), json.dumps(limits)]
    environment = os.environ | tls.ENVIRONMENT
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
        ) as process,
    ):
        try:
            assert process.stdout is not None
            yield Coordinator(folder, made.authority, made.registry, int(process.stdout.readline()))
        finally:
            made.registry.close()
            process.communicate(timeout=20)  # closes its input, upon which it ends
    assert process.returncode == 0


def node_key() -> bytes:
    """The public half of a new Flower node key, as ssh-keygen writes it."""
    return pki.new_tls_key().public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)


def private(key: Any) -> bytes:
    """A private key in PEM."""
    return bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def wire(signed: Signed) -> pb.Signed:
    """A statement as it travels, made here and not by the code under test."""
    return pb.Signed(document=signed.document, signer=signed.signer, signature=signed.signature)


def _main(folder: Path, limits: dict[str, Any]) -> None:
    import logging

    from polyclinic.core.book import Book
    from polyclinic.server.governance import service
    from polyclinic.server.governance.calls import Ledgers
    from polyclinic.server.governance.limits import Limits

    logging.basicConfig(level=logging.INFO)
    book = Book(folder / "book", SigningKey.new())
    registry = Registry(folder / "registry.db", note=book.append)
    authority, lines = Authority.load(folder / "keys"), Ledgers(registry, folder / "book")
    serving = service.serve("127.0.0.1:0", authority, registry, version=VERSION, lines=lines, limits=Limits(**limits))
    print(serving.port, flush=True)
    sys.stdin.read()
    serving.stop()
    registry.close()
    book.close()


if __name__ == "__main__":
    _main(Path(sys.argv[1]), json.loads(sys.argv[2]))
