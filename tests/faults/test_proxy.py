"""The fault proxy does each fault as it says, and nothing when it is calm."""

from __future__ import annotations

import socket
import socketserver
import ssl
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

import pytest

from tests.faults.proxy import FaultProxy, plan, play

BIG = bytes(range(256)) * 4096  # 1 MiB


class Echo(socketserver.ThreadingTCPServer):
    """Gives back whatever comes, and keeps it by connection."""

    daemon_threads = True

    def __init__(self) -> None:
        self.heard: list[bytearray] = []
        super().__init__(("127.0.0.1", 0), Said)
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()


class Said(socketserver.BaseRequestHandler):
    server: Echo

    def handle(self) -> None:
        mine = bytearray()
        self.server.heard.append(mine)
        try:
            while chunk := self.request.recv(65536):
                mine += chunk
                self.request.sendall(chunk)
        except OSError:
            return


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[FaultProxy]:
    with FaultProxy(echo.server_address, seed=1) as proxy:
        yield proxy


def call(proxy: FaultProxy, patience: float = 5.0) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), timeout=patience)


def talk(proxy: FaultProxy, said: bytes) -> bytes:
    """What comes back for ``said``, to the end."""
    with call(proxy) as line:
        sender = threading.Thread(target=lambda: (line.sendall(said), line.shutdown(socket.SHUT_WR)))
        sender.start()
        back = bytearray()
        while chunk := line.recv(65536):
            back += chunk
        sender.join()
        return bytes(back)


def silence(proxy: FaultProxy) -> bytes:
    """What comes back before a reset, whenever that shows; a connection that stays open is a failure."""
    back = b""
    with suppress(ConnectionError), call(proxy) as line:
        line.sendall(b"x")
        while chunk := line.recv(100):
            back += chunk
    return back


def until(holds: object, patience: float = 5.0) -> None:
    end = time.monotonic() + patience
    while not holds() and time.monotonic() < end:  # type: ignore[operator]
        time.sleep(0.01)
    assert holds()  # type: ignore[operator]


def test_calm_it_passes_every_byte_both_ways_and_counts_them(proxy: FaultProxy) -> None:
    assert talk(proxy, BIG) == BIG
    assert (proxy.counts.connections, proxy.counts.up, proxy.counts.down) == (1, len(BIG), len(BIG))


def test_many_connections_at_once_do_not_mix(proxy: FaultProxy) -> None:
    answers: dict[int, bytes] = {}
    threads = [
        threading.Thread(target=lambda i=i: answers.__setitem__(i, talk(proxy, bytes([i]) * 50_000))) for i in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {i: bytes([i]) * 50_000 for i in range(20)}


def test_latency_delays_each_direction_and_keeps_order(proxy: FaultProxy) -> None:
    proxy.latency(up=120, down=80, jitter=30)
    begun = time.monotonic()
    assert talk(proxy, BIG) == BIG
    assert 0.2 <= time.monotonic() - begun < 3.0  # late, not slow: the line holds many chunks at a time


def test_throttle_bounds_what_passes_in_a_second(proxy: FaultProxy) -> None:
    proxy.throttle(200_000)
    begun = time.monotonic()
    assert talk(proxy, BIG[:100_000]) == BIG[:100_000]
    assert time.monotonic() - begun >= 0.45


def test_a_partition_holds_bytes_back_and_healed_gives_them_all(proxy: FaultProxy) -> None:
    with call(proxy, 0.3) as line:
        line.sendall(b"before")
        assert line.recv(10) == b"before"
        proxy.partition()
        line.sendall(b"within")
        with pytest.raises(TimeoutError):
            line.recv(10)
        with call(proxy, 0.2) as other:  # taken, and silent
            other.sendall(b"other")
            with pytest.raises(TimeoutError):
                other.recv(10)
            proxy.heal()
            line.settimeout(5)
            other.settimeout(5)
            assert (line.recv(10), other.recv(10)) == (b"within", b"other")


def test_a_refusing_partition_resets_old_and_new_connections_until_healed(proxy: FaultProxy) -> None:
    with call(proxy) as line:
        line.sendall(b"x")
        assert line.recv(1) == b"x"
        proxy.partition("refuse")
        with pytest.raises(ConnectionError):
            line.recv(1)
    assert silence(proxy) == b""
    proxy.heal()
    assert talk(proxy, b"again") == b"again"


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_reset_comes_after_so_many_bytes_and_only_so_often(proxy: FaultProxy, echo: Echo, way: str) -> None:
    proxy.reset_after(100_000, way, times=2)  # type: ignore[arg-type]
    for _ in range(2):
        with pytest.raises(ConnectionError):
            talk(proxy, BIG)
    assert talk(proxy, BIG) == BIG
    assert proxy.counts.resets == 2
    passed = [len(heard) for heard in echo.heard]
    assert passed[-1] == len(BIG)
    if way == "up":
        assert passed[:2] == [100_000, 100_000]


def test_a_reset_counts_from_when_it_is_ordered(proxy: FaultProxy) -> None:
    with call(proxy) as line:
        line.sendall(BIG[:50_000])
        back = 0
        while back < 50_000:
            back += len(line.recv(65536))
        proxy.reset_after(10)
        line.sendall(b"123456789")
        assert line.recv(100) == b"123456789"
        line.sendall(b"0 and more")
        assert line.recv(1) == b"0"
        with pytest.raises(ConnectionError):
            line.recv(1)


def test_cut_resets_whatever_is_open(proxy: FaultProxy) -> None:
    with call(proxy) as line:
        line.sendall(b"x")
        assert line.recv(1) == b"x"
        assert proxy.cut() == 1
        with pytest.raises(ConnectionError):
            line.recv(1)
    assert talk(proxy, b"next") == b"next"


def test_what_a_client_said_is_said_again_once_on_a_connection_of_its_own(proxy: FaultProxy, echo: Echo) -> None:
    proxy.duplicate()
    assert talk(proxy, b"pay ten euros") == b"pay ten euros"
    until(lambda: len(echo.heard) == 2 and len(echo.heard[1]) == 13)
    assert bytes(echo.heard[0]) == bytes(echo.heard[1])
    assert talk(proxy, b"once") == b"once"
    time.sleep(0.05)
    assert (len(echo.heard), proxy.counts.replays) == (3, 1)


def test_the_servers_reset_is_passed_on(proxy: FaultProxy) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        proxy.to = server.getsockname()
        with call(proxy) as line:
            there, _ = server.accept()
            there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            there.close()
            with pytest.raises(ConnectionError):
                line.recv(1)


def test_a_server_that_is_not_there_is_a_reset(proxy: FaultProxy) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        proxy.to = gone.getsockname()
    assert silence(proxy) == b""


def test_a_plan_is_the_same_for_a_seed_and_plays_to_a_calm_end(proxy: FaultProxy) -> None:
    assert plan(3, 1.0, 5) == plan(3, 1.0, 5) != plan(4, 1.0, 5)
    steps = plan(3, 1.0, 5)
    assert all(0 <= a.at <= a.at + a.seconds <= b.at + 0.2 for a, b in pairwise(steps))
    play(steps, proxy)
    assert talk(proxy, b"calm") == b"calm"


def test_it_closes_everything_at_the_end_even_in_a_partition(echo: Echo) -> None:
    before = threading.active_count()
    with FaultProxy(echo.server_address) as proxy:
        lines = [call(proxy) for _ in range(5)]
        proxy.partition()
        for line in lines:
            line.sendall(b"held")
    for line in lines:
        with suppress(ConnectionError):
            assert line.recv(1) == b""
        line.close()
    with pytest.raises(ConnectionError):
        socket.create_connection(("127.0.0.1", proxy.port), timeout=1).close()
    assert threading.active_count() <= before + 5  # the echo's own


def test_a_port_that_is_taken_is_an_error_and_not_a_hang(echo: Echo) -> None:
    with pytest.raises(OSError, match="in use"), FaultProxy(echo.server_address, listen_port=echo.server_address[1]):
        pass


def test_tls_goes_through_and_a_reset_in_its_middle_is_seen(tmp_path: Path, echo: Echo) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate(tmp_path))
    trusting = ssl.create_default_context(cafile=str(tmp_path / "cert.pem"))

    def serve(server: socket.socket) -> None:
        for _ in range(2):
            line, _ = server.accept()
            try:
                with context.wrap_socket(line, server_side=True) as secure:
                    while chunk := secure.recv(65536):
                        secure.sendall(chunk)
            except OSError:
                line.close()

    with socket.create_server(("127.0.0.1", 0)) as server, FaultProxy(server.getsockname()) as proxy:
        thread = threading.Thread(target=serve, args=(server,))
        thread.start()
        with trusting.wrap_socket(call(proxy), server_hostname="localhost") as secure:
            secure.sendall(b"secret")
            assert secure.recv(10) == b"secret"
        proxy.reset_after(4000)
        with trusting.wrap_socket(call(proxy), server_hostname="localhost") as secure:
            assert passed(secure) < 10_000
        thread.join(5)


def passed(line: socket.socket) -> int:
    """Bytes that came back until the line broke."""
    back = 0
    with suppress(OSError):
        for _ in range(50):
            line.sendall(b"x" * 1000)
            back += len(line.recv(1000))
    return back


def certificate(folder: Path) -> Path:
    """A certificate and its key, for localhost, in one file; ``cert.pem`` beside it is the certificate alone."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now().astimezone()
    signed = (
        x509.CertificateBuilder()
        .subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )  # fmt: skip
    pem = signed.public_bytes(serialization.Encoding.PEM)
    (folder / "cert.pem").write_bytes(pem)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "both.pem").write_bytes(pem + secret)
    return folder / "both.pem"
