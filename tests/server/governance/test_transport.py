"""Below the calls: TLS 1.3 alone, our certificates alone, floods, and connections that do not speak."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from polyclinic.core import pki
from polyclinic.core.governance import governance_pb2 as pb
from polyclinic.core.pki import Authority
from polyclinic.server.governance import tls
from tests.server.governance.coordinator import Coordinator, Site, private, served

Code = grpc.StatusCode
RATE = "this site asks more than 10 times a second (ask less often)"
PATH = "/polyclinic.governance.v1.Governance/"


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coordinator]:
    """One with little patience."""
    folder = tmp_path_factory.mktemp("coordinator")
    with served(
        folder, rate=10.0, burst=20, call_seconds=2.0, handshake_seconds=2.0, stream_seconds=3.0, poll=0.05
    ) as host:
        yield host


@pytest.fixture(scope="module")
def north(host: Coordinator) -> Site:
    return host.join("north")


def hello(host: Coordinator, site: Site) -> float:
    """Seconds that a call takes, over a new connection."""
    began = time.monotonic()
    with host.calls(site) as calls:
        calls.Hello(pb.HelloRequest(version="0.1.0", clock=time.time()), timeout=10)
    return time.monotonic() - began


def secured(host: Coordinator, site: Site | None, version: ssl.TLSVersion, folder: Path) -> ssl.SSLSocket:
    """A connection by OpenSSL."""
    context = ssl.create_default_context(cafile=host.authority.folder / "ca.pem")
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    context.set_ciphers("ALL:@SECLEVEL=0")  # of TLS 1.2: whatever there is
    if site is not None:
        (folder / "pair.pem").write_bytes(site.tls_key + site.certificate)
        context.load_cert_chain(folder / "pair.pem")
    with ExitStack() as stack:
        raw = stack.enter_context(socket.create_connection(("127.0.0.1", host.port), timeout=10))
        secure = context.wrap_socket(raw, server_hostname="localhost")
        stack.pop_all()
    return secure


def handshake(host: Coordinator, site: Site | None, version: ssl.TLSVersion, folder: Path) -> tuple[str, bytes]:
    """Version, and the first bytes of HTTP/2 that the service sends."""
    with secured(host, site, version, folder) as secure:
        return str(secure.version()), secure.recv(9)


def test_tls_13_is_taken_and_nothing_older(host: Coordinator, north: Site, tmp_path: Path) -> None:
    version, frame = handshake(host, north, ssl.TLSVersion.TLSv1_3, tmp_path)
    assert version == "TLSv1.3"
    assert frame[3] == 4  # SETTINGS
    with pytest.raises((ssl.SSLError, ConnectionError)):
        handshake(host, north, ssl.TLSVersion.TLSv1_2, tmp_path)


def test_no_certificate(host: Coordinator, tmp_path: Path) -> None:
    try:  # with TLS 1.3 the client learns it when it reads
        _, frame = handshake(host, None, ssl.TLSVersion.TLSv1_3, tmp_path)
    except (ssl.SSLError, ConnectionError):
        frame = b""
    assert frame == b""
    with host.channel(None, None) as channel:
        assert failure(channel) is Code.UNAVAILABLE


def failure(channel: grpc.Channel) -> grpc.StatusCode:
    """How a call over this connection ends."""
    with pytest.raises(grpc.RpcError) as raised:
        channel.unary_unary(f"{PATH}Hello")(b"", timeout=10)
    code: grpc.StatusCode = raised.value.code()
    return code


def test_a_certificate_of_another_authority(host: Coordinator, north: Site, tmp_path: Path) -> None:
    other, key = Authority.create(tmp_path / "keys", "localhost"), pki.new_tls_key()
    with host.channel(private(key), other.issue(pki.request(key, "north"), "north")) as channel:
        assert failure(channel) is Code.UNAVAILABLE


def test_an_expired_certificate(host: Coordinator, north: Site) -> None:
    past = Authority.load(host.authority.folder, lambda: time.time() - 3600)
    key = pki.new_tls_key()
    with host.channel(private(key), past.issue(pki.request(key, "north"), "north", days=0.02)) as channel:
        assert failure(channel) is Code.UNAVAILABLE


def test_plain_text(host: Coordinator) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{host.port}") as channel:
        assert failure(channel) is Code.UNAVAILABLE
    with socket.create_connection(("127.0.0.1", host.port), timeout=10) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"HTTP" not in raw.recv(100)


def test_a_client_that_trusts_another_authority_does_not_speak(host: Coordinator, north: Site, tmp_path: Path) -> None:
    other = Authority.create(tmp_path / "keys", "localhost")
    pair = grpc.ssl_channel_credentials(other.pem, north.tls_key, north.certificate)
    with grpc.secure_channel(f"localhost:{host.port}", pair) as channel:
        assert failure(channel) is Code.UNAVAILABLE


def test_half_open_connections(host: Coordinator, north: Site) -> None:
    with ExitStack() as stack:
        idle = [stack.enter_context(socket.create_connection(("127.0.0.1", host.port))) for _ in range(200)]
        for raw in idle[::2]:
            raw.sendall(b"\x16\x03\x01\x02\x00")  # the first bytes of a handshake that does not go on
        assert hello(host, north) < 2.0
        idle[0].settimeout(10)
        assert idle[0].recv(1) == b""  # after two seconds they are dropped
        idle[1].settimeout(10)
        assert idle[1].recv(1) == b""
        assert hello(host, north) < 2.0


def test_a_connection_that_does_not_speak_after_its_handshake(host: Coordinator, north: Site, tmp_path: Path) -> None:
    with secured(host, north, ssl.TLSVersion.TLSv1_3, tmp_path) as secure:
        assert drained(secure) < 8.0


def test_a_flood_of_pings_ends_the_connection(host: Coordinator, north: Site, tmp_path: Path) -> None:
    settings, ping = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]), bytes([0, 0, 8, 6, 0, 0, 0, 0, 0]) + b"pingping"
    with secured(host, north, ssl.TLSVersion.TLSv1_3, tmp_path) as secure, suppress(ConnectionError, ssl.SSLError):
        secure.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + settings + 100 * ping)
        assert drained(secure) < 1.5
    assert hello(host, north) < 2.0


def drained(secure: ssl.SSLSocket) -> float:
    """Seconds until the service closes the connection."""
    began = time.monotonic()
    with suppress(ConnectionError, ssl.SSLError):
        while secure.recv(4096):
            pass
    return time.monotonic() - began


def test_half_open_calls(host: Coordinator, north: Site) -> None:
    other = host.join("holds")
    done = threading.Event()

    def never() -> Iterator[bytes]:
        done.wait(20)
        yield b""

    with host.channel(other.tls_key, other.certificate) as channel:
        held = [channel.stream_unary(f"{PATH}Report").future(never()) for _ in range(8)]
        wait_for(lambda: over_limit(channel))
        assert hello(host, north) < 2.0  # others are not hurt
        ended = [call.exception(timeout=10) for call in held]  # by the service
        done.set()
    codes = [failure.code() for failure in ended]
    assert codes.count(Code.CANCELLED) >= 7  # a look at the limit may have come before the last one
    assert set(codes) <= {Code.CANCELLED, Code.RESOURCE_EXHAUSTED}


def over_limit(channel: grpc.Channel) -> bool:
    """Whether the site's calls are all under way."""
    try:
        channel.unary_unary(f"{PATH}Studies")(b"", timeout=0.5)
    except grpc.RpcError as failure:
        return bool(failure.code() in (Code.RESOURCE_EXHAUSTED, Code.DEADLINE_EXCEEDED))
    return False


def wait_for(condition: Any) -> None:
    """Until it holds."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_flood_is_answered_with_its_reason(host: Coordinator, north: Site) -> None:
    flooder = host.join("flooder")
    seen = []
    with host.channel(flooder.tls_key, flooder.certificate) as channel:
        call = channel.unary_unary(f"{PATH}Studies")
        calls = [call.future(b"", timeout=20) for _ in range(300)]
        assert hello(host, north) < 5.0
        for answer in calls:
            error = answer.exception()
            seen.append((error.code(), error.details()) if error else "answered")
    assert 1 <= seen.count("answered") <= 20 + 10 * 20
    reasons = {found for found in seen if found != "answered"}
    streams = {said for code, said in reasons if code is Code.UNAVAILABLE}  # HTTP/2's own limit on open streams
    assert all("error code 7" in said for said in streams)  # REFUSED_STREAM
    assert {code for code, _ in reasons} <= {Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE}
    said = {reason for code, reason in reasons if code is Code.RESOURCE_EXHAUSTED}
    assert said <= {RATE, "this site has 8 calls under way (wait until one of them has ended)"}


def test_whoever_asks_too_often_is_told_so(host: Coordinator) -> None:
    site = host.join("hurries")
    with host.channel(site.tls_key, site.certificate) as channel:
        call = channel.unary_unary(f"{PATH}Studies")
        one_after_another = (call(b"", timeout=20) for _ in range(500))  # so that it is the rate that is met
        with pytest.raises(grpc.RpcError) as raised:
            list(one_after_another)
        assert (raised.value.code(), raised.value.details()) == (Code.RESOURCE_EXHAUSTED, RATE)
        time.sleep(0.3)
        call(b"", timeout=20)


def test_event_streams_are_few_and_end(host: Coordinator) -> None:
    site = host.join("listens")
    with host.calls(site) as calls:
        streams = [calls.Events(pb.EventsRequest(after=0), timeout=20) for _ in range(4)]
        for stream in streams:
            assert next(stream).sequence >= 1
        with pytest.raises(grpc.RpcError) as raised:
            next(calls.Events(pb.EventsRequest(after=0), timeout=20))
        assert raised.value.code() is Code.RESOURCE_EXHAUSTED
        assert raised.value.details() == "this site has 4 event streams under way (wait until one of them has ended)"
        began = time.monotonic()
        for stream in streams:
            with suppress(grpc.RpcError):  # ended by the loop or by the guard, whichever comes first
                list(stream)
        assert time.monotonic() - began < 8
        next(calls.Events(pb.EventsRequest(after=0), timeout=20))


def test_a_renewed_server_certificate_is_shown_without_a_restart(host: Coordinator, north: Site) -> None:
    def shown() -> str:
        return pki.fingerprint(ssl.get_server_certificate(("127.0.0.1", host.port)).encode())

    before = shown()
    later = Authority.load(host.authority.folder, lambda: time.time() + 370 * 86400)
    assert later.serve("localhost")
    Authority.load(host.authority.folder).serve("127.0.0.1")  # in force now, for another name
    Authority.load(host.authority.folder).serve("localhost")
    assert shown() != before
    assert shown() == pki.fingerprint((host.authority.folder / "server.pem").read_bytes())
    hello(host, north)


def test_it_does_not_start_where_tls_12_would_be_taken(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "import grpc\n"
        "from polyclinic.core.errors import EngineError\n"
        "from polyclinic.core.pki import Authority\n"
        "from polyclinic.server.governance import service\n"
        "from polyclinic.server.governance.registry import Registry\n"
        "home = Path(sys.argv[1])\n"
        "authority, registry = Authority.create(home / 'keys', 'localhost'), Registry(home / 'registry.db')\n"
        "try: service.serve('127.0.0.1:0', authority, registry, version='0.1.0', lines=lambda *_: [])\n"
        "except EngineError as failure: print(failure.problem)\n"
    )
    environment = {name: value for name, value in os.environ.items() if name not in tls.ENVIRONMENT}
    for extra, said in (({}, "TLSv1_2 is taken"), (tls.ENVIRONMENT, "")):
        folder = tmp_path / f"home{len(extra)}"
        folder.mkdir()
        command = [sys.executable, "-c", program, str(folder)]
        found = subprocess.run(command, env=environment | extra, capture_output=True, text=True, timeout=60, check=True)
        assert found.stdout.strip() == said


def test_a_port_that_is_taken(host: Coordinator, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from polyclinic.core.errors import EngineError\n"
        "from polyclinic.core.pki import Authority\n"
        "from polyclinic.server.governance import service\n"
        "from polyclinic.server.governance.registry import Registry\n"
        "home = Path(sys.argv[1])\n"
        "authority, registry = Authority.create(home / 'keys', 'localhost'), Registry(home / 'registry.db')\n"
        "try: service.serve(sys.argv[2], authority, registry, version='0.1.0', lines=lambda *_: [])\n"
        "except EngineError as failure: print(failure.problem)\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path), f"127.0.0.1:{host.port}"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout.strip() == "cannot listen there: the port is taken"
