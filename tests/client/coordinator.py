"""A coordinator for tests of the site's side: it does as it is told, honest or not, over real mutual TLS."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from polyclinic.client.credentials import make_node_key
from polyclinic.client.home import Home
from polyclinic.client.settings import Coordinator, DataPlace, Settings
from polyclinic.core import ledger
from polyclinic.core.governance import governance_pb2 as pb
from polyclinic.core.governance.governance_pb2_grpc import GovernanceServicer, add_GovernanceServicer_to_server
from polyclinic.core.governance.wire import from_wire, to_wire
from polyclinic.core.pki import Authority, new_tls_key, request, save_tls_key
from polyclinic.core.signing import Signed, SigningKey, sign

RUN, STUDY = "tiny-1", "a" * 64


class Hub(GovernanceServicer):
    """What it tells is what its attributes hold; what it is told is in ``told``, ``statuses`` and ``calls``.

    Attributes:
        failing: name of a call → (status code, details) with which it is answered.
        skew: seconds by which its clock is ahead.
    """

    def __init__(self, folder: Path, clock: Callable[[], float]) -> None:
        self.authority = Authority.create(folder / "keys", "127.0.0.1")
        self.key, self.clock, self.skew = SigningKey.new(), clock, 0.0
        self.port, self.days = 0, 90.0
        self.failing: dict[str, tuple[grpc.StatusCode, str]] = {}
        self.calls: list[str] = []
        self.told: list[Signed] = []
        self.statuses: list[bytes] = []
        self.certificates: list[bytes] = []
        self.offers: list[Signed] = []
        self.withdrawn: list[str] = []
        self.runs: list[tuple[str, str, str]] = []
        self.receipts: dict[str, list[Signed]] = {}
        self.heads: list[Signed] = []
        self.signers: dict[str, str] = {}
        self.ledgers: dict[str, list[str]] = {}
        self.version = "0.1.0"

    def _enter(self, name: str, context: Any) -> None:
        self.calls.append(name)
        self.certificates.append(context.auth_context()["x509_pem_cert"][0])
        if name in self.failing:
            context.abort(*self.failing[name])

    def Hello(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._enter("Hello", context)
        now = self.clock() + self.skew
        return pb.HelloReply(version=self.version, clock=now, certificate_not_after=now, ca_not_after=now)

    def Renew(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._enter("Renew", context)
        return pb.Certificate(certificate=self.authority.issue(request.csr, "north"), ca=self.authority.pem)

    def Studies(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._enter("Studies", context)
        runs = [pb.Run(name=name, study=study, state=state) for name, study, state in self.runs]
        return pb.StudiesReply(offers=map(to_wire, self.offers), withdrawn=self.withdrawn, runs=runs)

    def Tell(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._enter("Tell", context)
        self.told.append(from_wire(request))
        return pb.Accepted()

    def Report(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._enter("Report", context)
        self.statuses.append(request.status)
        return pb.Accepted()

    def Receipts(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._enter("Receipts", context)
        return pb.ReceiptsReply(receipts=map(to_wire, self.receipts.get(request.run, [])[request.after :]))

    def Heads(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._enter("Heads", context)
        signers = [pb.Signer(site=site, key=key) for site, key in self.signers.items()]
        return pb.HeadsReply(heads=map(to_wire, self.heads), signers=signers)

    def Lines(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._enter("Lines", context)
        lines = self.ledgers.get(request.run, [])[request.first : request.first + min(request.count, 3)]
        return pb.LinesReply(lines=lines)

    def Events(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        self._enter("Events", context)
        yield pb.Event(sequence=request.after + 1, kind="round", text="one")

    def play(self, rounds: int, sites: dict[str, tuple[str, int]], run: str = RUN, base: str = "1" * 64) -> None:
        """Adds rounds to an honest ledger, with receipts; ``sites``: site → (update, weight)."""
        lines, receipts = self.ledgers.setdefault(run, []), self.receipts.setdefault(run, [])
        chain = [ledger.Entry(**entry) for entry in map(_fields, lines)]
        if not chain:
            chain.append(ledger.entry(None, "start", {"run": run}, 1.5))
            lines.append(chain[-1].line())
        for number in range(len(receipts) + 1, len(receipts) + 1 + rounds):
            told = {"round": number, "base": base, "result": "2" * 64, "record": "3" * 64}
            parts = {site: {"update": update, "weight": weight} for site, (update, weight) in sites.items()}
            chain.append(ledger.entry(chain[-1], "round", {**told, "sites": parts, "refused": []}, 2.5))
            lines.append(chain[-1].line())
            place = {"sequence": chain[-1].sequence, "digest": chain[-1].digest, "time": 2.5}
            document = {"kind": "receipt", "run": run, "study": STUDY, **told, "sites": parts, "excluded": {}, **place}
            receipts.append(sign(document, self.key))

    def site(self, folder: Path, name: str = "north", **others: Any) -> Home:
        """A site that has joined."""
        key = SigningKey.new()
        at = Coordinator(host="127.0.0.1", fleet_port=1, governance_port=self.port, key=self.key.public)
        data = DataPlace(manifest="manifest.csv")
        made = Home.create(folder / name, Settings(name=name, key=key.public, coordinator=at, data=data, **others))
        key.save(made.signing_key)
        tls = new_tls_key()
        save_tls_key(tls, made.network / "tls.key")
        (made.network / "tls.pem").write_bytes(self.authority.issue(request(tls, name), name, self.days))
        (made.network / "ca.pem").write_bytes(self.authority.pem)
        make_node_key(made)
        return made


@contextmanager
def serving(hub: Hub, port: int = 0) -> Iterator[Hub]:
    """The hub on a port of this machine, with mutual TLS."""
    folder = hub.authority.folder
    pair = [((folder / "server.key").read_bytes(), (folder / "server.pem").read_bytes())]
    server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
    add_GovernanceServicer_to_server(hub, server)  # type: ignore[no-untyped-call]
    credentials = grpc.ssl_server_credentials(pair, hub.authority.pem, require_client_auth=True)
    hub.port = server.add_secure_port(f"127.0.0.1:{port}", credentials)
    server.start()
    try:
        yield hub
    finally:
        server.stop(0).wait()


def _fields(line: str) -> dict[str, Any]:
    import json

    found: dict[str, Any] = json.loads(line)
    return found
