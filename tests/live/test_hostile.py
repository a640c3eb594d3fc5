"""Strangers and traitors at the live gateway: each is refused with a reason, nobody else notices, no process ends."""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest, RegisterNodeFleetRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from polyclinic.client.home import Home
from polyclinic.core.governance import governance_pb2 as pb
from polyclinic.core.governance.governance_pb2_grpc import GovernanceStub
from polyclinic.core.governance.wire import CA_PATH, ENROL_PATH, enrol_request, to_wire
from polyclinic.core.pki import Authority, new_tls_key, request
from polyclinic.core.signing import SigningKey, sign
from polyclinic.core.version import VERSION
from polyclinic.server.live.home import opened
from polyclinic.simulations.live import Local, until
from tests.live.harness import (
    PATIENCE,
    Pictures,
    demand_receipts,
    demand_sound,
    gateway_answers,
    go,
    live_json,
    running,
    small_study,
    undisturbed,
)
from tests.live.processes import Process, roles

pytestmark = pytest.mark.faults

SITES = ["north", "south"]


@dataclass
class Siege:
    """A federation that is attacked.

    Attributes:
        local: with two honest sites and a third that was revoked.
        revoked: the third site's folder.
    """

    local: Local
    revoked: Home

    @property
    def port(self) -> int:
        """The public web port."""
        return self.local.coordinator.settings.fleet_port

    @property
    def governance(self) -> str:
        """Where the governance service is."""
        return f"127.0.0.1:{self.local.coordinator.settings.governance_port}"

    @property
    def authority(self) -> Path:
        """The coordinator's authority."""
        return self.local.coordinator.keys / "ca.pem"

    def tls(self) -> ssl.SSLContext:
        """As a stranger who trusts the coordinator."""
        return ssl.create_default_context(cafile=str(self.authority))

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
        """Says exactly that to the web port: the path is not tidied up."""
        connection = http.client.HTTPSConnection("127.0.0.1", self.port, context=self.tls(), timeout=40)
        try:
            connection.putrequest(method, path, skip_host=False, skip_accept_encoding=True)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


@pytest.fixture(scope="module")
def siege(pictures: Pictures, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Siege]:
    """Goes on through all tests of this module: what one of them broke, the others see."""
    with running(tmp_path_factory.mktemp("siege"), pictures, SITES) as local:
        revoked = local.join("west", pictures.of("west"))
        with opened(local.coordinator) as registry:
            registry.revoke("west")
        del local.sites["west"]
        yield Siege(local, revoked)


@pytest.fixture(autouse=True)
def unmoved(siege: Siege) -> Iterator[None]:
    """Whatever a test does: the same gateway is there afterwards, answers quickly, and has not grown."""
    before = roles(siege.local, "coordinator")["gateway"]
    yield
    begun = time.monotonic()
    assert gateway_answers(siege.local.coordinator)
    assert time.monotonic() - begun < 3.0
    assert roles(siege.local, "coordinator")["gateway"] == before, "the gateway ended"
    assert memory(before) < 1000, "the gateway has grown"


def memory(process: Process) -> float:
    """Of a process, in MiB."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024


# --- the web port: paths and bodies ---

HIDDEN = [
    "/", "/docs", "/redoc", "/openapi.json", "/health", "/v1/control/start-run", "/v1/control/list-nodes",
    "/v1/runtime/acquire-task", "/v1/fleet/../control/start-run", "/v1/fleet/../../v1/control/list-nodes",
    "/v1/fleet/%2e%2e/control/start-run", "/v1/fleet/..%2fcontrol/start-run", "/v1/fleet//../control/start-run",
    "//v1/control/start-run", "/V1/control/start-run", "/v1%2fcontrol/start-run", "/v1/fleet/\\..\\control/start-run",
    "/polyclinic/v1/../../etc/passwd", "/polyclinic/v1/%2e%2e/%2e%2e/keys/ca.key", "/polyclinic/v1/ca/../enrol",
    "/polyclinic/v1/ca%00", "/.env", "/private.token", "*",
]  # fmt: skip


@pytest.mark.parametrize("path", HIDDEN)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_nothing_but_fleet_and_enrolment_is_there(siege: Siege, method: str, path: str) -> None:
    status, body = siege.ask(method, path)
    assert status in (400, 404, 405), body
    assert b"BEGIN" not in body
    assert b"root:" not in body


def test_the_secret_path_is_not_on_the_public_port(siege: Siege) -> None:
    secret = siege.local.coordinator.secret
    for path in (f"/{secret}/v1/control/list-nodes", f"/v1/fleet/../{secret}/v1/control/list-nodes"):
        assert siege.ask("POST", path)[0] in (400, 404)


def test_the_private_port_needs_the_secret_and_is_on_loopback(siege: Siege) -> None:
    port = siege.local.coordinator.settings.private_port
    for path in ("/v1/control/list-nodes", "/wrong/v1/control/list-nodes", "/"):
        assert httpx.post(f"http://127.0.0.1:{port}{path}", trust_env=False).status_code == 404


@pytest.mark.parametrize("path", ["/v1/fleet/push-object", "/v1/fleet/activate-node", ENROL_PATH])
def test_a_body_that_is_too_long_is_not_read(siege: Siege, path: str) -> None:
    with suppress(OSError):  # it hangs up before all of it has gone
        status, _ = siege.ask("POST", path, bytes(9 * 2**20))
        assert status == 413
    with suppress(OSError):
        status, _ = siege.ask("POST", path, b"x", **{"Content-Length": str(2**40)})
        assert status in (400, 413)


@pytest.mark.parametrize("garbage", [b"", b"\x00" * 100, os.urandom(1000), b"\x0a\xff\xff\xff\xff\x0f", b"{}" * 500])
def test_garbage_is_no_enrolment(siege: Siege, garbage: bytes) -> None:
    status, body = siege.ask("POST", ENROL_PATH, garbage)
    assert status in (400, 403)
    assert body


def test_garbage_is_no_call_of_flower(siege: Siege) -> None:
    for path in ("activate-node", "pull-messages", "push-messages", "register-node", "get-run", "nonsense"):
        status, _ = siege.ask("POST", f"/v1/fleet/{path}", os.urandom(200))
        assert 400 <= status < 500, (path, status)


def test_a_token_that_nobody_gave(siege: Siege) -> None:
    key, tls = SigningKey.new(), new_tls_key()
    node = public_key_to_bytes(ec.generate_private_key(ec.SECP384R1()).public_key())
    for token, site in (("x" * 43, "mallory"), ("", "mallory"), ("x" * 43, "north"), ("x" * 43, "../north")):
        body = enrol_request(token, site, request(tls, "mallory"), node, key, VERSION)
        status, said = siege.ask("POST", ENROL_PATH, body)
        assert status in (400, 403), said
    with opened(siege.local.coordinator) as registry:
        assert {site.name for site in registry.sites()} == {*SITES, "west"}


def test_old_tls_and_none_at_all(siege: Siege) -> None:
    for port in (siege.port, siege.local.coordinator.settings.governance_port):
        old = siege.tls()
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises((ssl.SSLError, ConnectionError)), socket.create_connection(("127.0.0.1", port), 10) as raw:
            old.wrap_socket(raw, server_hostname="127.0.0.1")
        with socket.create_connection(("127.0.0.1", port), 10) as raw:
            raw.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            with suppress(ConnectionError):
                assert b"200" not in raw.recv(1000)


# --- Flower's nodes ---


def fleet(siege: Siege, key: ec.EllipticCurvePrivateKey | None) -> FleetHttpClient:
    """A node with that key, or one that signs nothing."""
    version: list[Any] = [RuntimeVersionHttpInterceptor(component_name="SuperNode")]
    guards = version + ([NodeAuthHttpInterceptor(key, key.public_key())] if key else [])
    return FleetHttpClient.from_server_address(
        f"127.0.0.1:{siege.port}", False, siege.authority.read_bytes(), interceptors=guards
    )


def node_key(home: Home) -> ec.EllipticCurvePrivateKey:
    """That of a site."""
    key = load_ssh_private_key((home.network / "node.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def declined(call: Callable[[], object]) -> int:
    """The status with which a call is declined."""
    with pytest.raises(httpx.HTTPStatusError) as refused:
        call()
    status: int = refused.value.response.status_code
    assert 400 <= status < 500
    return status


def test_nodes_that_nobody_knows_or_that_were_revoked(siege: Siege) -> None:
    for key in (ec.generate_private_key(ec.SECP384R1()), node_key(siege.revoked)):
        with fleet(siege, key) as client:
            mine = public_key_to_bytes(key.public_key())
            declined(lambda c=client, k=mine: c.ActivateNode(ActivateNodeRequest(public_key=k, heartbeat_interval=30)))  # type: ignore[misc]
            declined(lambda c=client, k=mine: c.RegisterNode(RegisterNodeFleetRequest(public_key=k)))  # type: ignore[misc]
            declined(lambda c=client: c.PullMessages(PullMessagesRequest(node=Node(node_id=1))))  # type: ignore[misc]
    with fleet(siege, None) as client:
        declined(lambda: client.PullMessages(PullMessagesRequest(node=Node(node_id=1))))


def test_a_node_that_gives_itself_out_as_another(siege: Siege) -> None:
    stranger = ec.generate_private_key(ec.SECP384R1())
    victim = public_key_to_bytes(node_key(siege.local.sites["north"]).public_key())
    with fleet(siege, stranger) as client:
        declined(lambda: client.ActivateNode(ActivateNodeRequest(public_key=victim, heartbeat_interval=30)))
    with fleet(siege, node_key(siege.local.sites["south"])) as client:
        declined(lambda: client.ActivateNode(ActivateNodeRequest(public_key=victim, heartbeat_interval=30)))
        for node in (1, 2**63 + 5, node_id(siege, "north")):
            declined(lambda n=node: client.PullMessages(PullMessagesRequest(node=Node(node_id=n))))  # type: ignore[misc]


def node_id(siege: Siege, site: str) -> int:
    """Of a site's node, as the SuperLink knows it."""
    import sqlite3

    db = sqlite3.connect(siege.local.coordinator.superlink)
    found = db.execute("SELECT node_id FROM node WHERE name = ? AND status != 'unregistered'", (site,)).fetchone()[0]
    db.close()
    return int(found) % 2**64


# --- the governance service ---


def channel(siege: Siege, certificate: bytes, key: bytes, authority: bytes | None = None) -> grpc.Channel:
    """A connection with that certificate."""
    pair = grpc.ssl_channel_credentials(authority or siege.authority.read_bytes(), key, certificate)
    return grpc.secure_channel(siege.governance, pair, [("grpc.enable_retries", 0)])


def of(home: Home) -> tuple[bytes, bytes]:
    """(certificate, key) of a site: as a thief has them."""
    return (home.network / "tls.pem").read_bytes(), (home.network / "tls.key").read_bytes()


def code(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    """With what a call is declined."""
    with pytest.raises(grpc.RpcError) as refused:
        call()
    failure: Any = refused.value
    return failure.code(), str(failure.details())


def hello(through: grpc.Channel, version: str = VERSION) -> Any:
    """The first thing that a link says."""
    stub = GovernanceStub(through)  # type: ignore[no-untyped-call]
    return stub.Hello(pb.HelloRequest(version=version, clock=time.time()), timeout=10)


def test_certificates_that_are_not_good_enough(siege: Siege, tmp_path: Path) -> None:
    with channel(siege, *of(siege.revoked)) as through:
        found, why = code(lambda: hello(through))
        assert found == grpc.StatusCode.UNAUTHENTICATED
        assert "revoked" in why
    foreign = Authority.create(tmp_path / "keys", "127.0.0.1")
    key = new_tls_key()
    pem = foreign.issue(request(key, "north"), "north")
    from polyclinic.core.pki import save_tls_key

    save_tls_key(key, tmp_path / "tls.key")
    with channel(siege, pem, (tmp_path / "tls.key").read_bytes()) as through:
        assert code(lambda: hello(through))[0] == grpc.StatusCode.UNAVAILABLE
    ours = Authority.load(siege.local.coordinator.keys)  # issued by the right authority, but known to nobody
    for site, sentence in (("mallory", "has not joined"), ("north", "not the one that the site was given last")):
        with channel(siege, ours.issue(request(key, site), site), (tmp_path / "tls.key").read_bytes()) as through:
            found, why = code(lambda: hello(through))
            assert found == grpc.StatusCode.UNAUTHENTICATED
            assert sentence in why
    nobody = grpc.secure_channel(siege.governance, grpc.ssl_channel_credentials(siege.authority.read_bytes()))
    with nobody:
        assert code(lambda: hello(nobody))[0] == grpc.StatusCode.UNAVAILABLE


def test_another_version_is_named(siege: Siege) -> None:
    with channel(siege, *of(siege.local.sites["south"])) as through:
        for version in ("9.9.9", "0.0.1", "", "x" * 1000):
            found, why = code(lambda: hello(through, version))  # noqa: B023
            assert found in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT)
            assert VERSION in why


def test_statements_in_anothers_name_or_of_no_kind(siege: Siege) -> None:
    south = siege.local.sites["south"]
    decision = {
        "kind": "decision", "site": "north", "study": "a" * 64, "verb": "withdraw", "version": VERSION,
        "backbone_sha256": "b" * 64, "limits": {"rounds": None, "until": None, "hours": None}, "time": time.time(),
        "sequence": 10**6,
    }  # fmt: skip
    head = {"kind": "head", "site": "south", "run": "../../etc", "sequence": 0, "digest": "d" * 64, "time": 1.0}
    with channel(siege, *of(south)) as through:
        stub = GovernanceStub(through)  # type: ignore[no-untyped-call]
        for document, key in (
            (decision, south.key()),
            (decision | {"site": "south"}, SigningKey.new()),
            (decision | {"site": "south", "study": "c" * 64}, south.key()),
            ({"kind": "receipt", "site": "south"}, south.key()),
            (head, south.key()),
        ):
            found, why = code(lambda: stub.Tell(to_wire(sign(document, key)), timeout=10))  # noqa: B023
            assert found in (
                grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.INVALID_ARGUMENT,
                grpc.StatusCode.FAILED_PRECONDITION,
            ), why  # fmt: skip
        for run in ("../../../etc/passwd", "no such run", "a" * 5000):
            found, _ = code(lambda: stub.Lines(pb.LinesRequest(run=run, first=0, count=10), timeout=10))  # noqa: B023
            assert found in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.INVALID_ARGUMENT)
        long = pb.ReportRequest(status=bytes(5 * 2**20))
        assert code(lambda: stub.Report(long, timeout=10))[0] in (
            grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNAVAILABLE,
        )  # fmt: skip


# --- floods, while an honest run is on ---


def test_floods_and_half_open_streams_while_a_run_goes_on(siege: Siege, pictures: Pictures, tmp_path: Path) -> None:
    study = small_study("siege", rounds=4)
    expected = undisturbed(study, pictures, SITES, tmp_path / "simulated")
    with ExitStack() as held:
        silent = [held.enter_context(socket.create_connection(("127.0.0.1", siege.port), 10)) for _ in range(200)]
        slow = [slowly(siege, held) for _ in range(200)]
        for address in (siege.port, siege.local.coordinator.settings.governance_port):
            for _ in range(50):
                raw = held.enter_context(socket.create_connection(("127.0.0.1", address), 10))
                raw.sendall(b"\x16\x03\x01\x02\x00\x01")  # the first bytes of a greeting whose rest never comes
        stop, told = threading.Event(), Counter[str]()
        attackers = [
            threading.Thread(target=flood, args=(siege, stop, told), daemon=True),
            threading.Thread(target=dribble, args=(slow, stop), daemon=True),
        ]
        for attacker in attackers:
            attacker.start()
        run = go(siege.local, study)
        summary = siege.local.wait(run, 2 * PATIENCE)
        begun = time.monotonic()
        until(lambda: all(map(hung_up, slow)), 30.0, "the end of slow connections")
        print(f"{len(slow)} slow connections were gone {time.monotonic() - begun:.0f} s after the run's end")
        stop.set()
        for attacker in attackers:
            attacker.join(30.0)
        print(f"{len(silent)} silent connections; the flood was told: {dict(told)}")
    demand_sound(siege.local, run, expected, summary)
    demand_receipts(siege.local, run)
    assert live_json(run)["phase"] == "finished"
    assert told["RESOURCE_EXHAUSTED"] > 50


def slowly(siege: Siege, held: ExitStack) -> ssl.SSLSocket:
    """A connection that has begun a request."""
    raw = held.enter_context(socket.create_connection(("127.0.0.1", siege.port), 10))
    connection = held.enter_context(siege.tls().wrap_socket(raw, server_hostname="127.0.0.1"))
    connection.sendall(f"GET {CA_PATH} HTTP/1.1\r\nHost: ".encode())
    connection.setblocking(False)
    return connection


def dribble(connections: list[ssl.SSLSocket], stop: threading.Event) -> None:
    """A byte a second on each."""
    while not stop.wait(1.0):
        for connection in connections:
            with suppress(OSError):
                connection.send(b"x")


def hung_up(connection: ssl.SSLSocket) -> bool:
    """Whether the other side has ended it."""
    try:
        return connection.recv(1000) == b""
    except ssl.SSLWantReadError:
        return False
    except OSError:
        return True


def flood(siege: Siege, stop: threading.Event, told: Counter[str]) -> None:
    """A traitor who asks as often as possible, and holds as many streams open as it is let."""
    with channel(siege, *of(siege.local.sites["south"])) as through:
        stub = GovernanceStub(through)  # type: ignore[no-untyped-call]
        streams = [stub.Events(pb.EventsRequest(after=0)) for _ in range(20)]
        while not stop.is_set():
            calls = [stub.Studies.future(pb.StudiesRequest(), timeout=10) for _ in range(50)]
            for call in calls:
                told[call.code().name] += 1
                if call.code() == grpc.StatusCode.UNAVAILABLE:
                    stop.wait(0.05)  # the connection was ended: without a pause, nothing would reach the server
        for stream in streams:
            stream.cancel()
