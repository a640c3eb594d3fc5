"""The web proxy tunnels as a stock client expects, asks for its password, and goes nowhere else."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator

import httpx
import pytest

from tests.faults.http_proxy import ConnectProxy


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"hello")

    def log_message(self, *words: object) -> None: ...


@pytest.fixture
def web() -> Iterator[int]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def asked(proxy: ConnectProxy, request: bytes) -> bytes:
    """What the proxy answers, to the end of the head."""
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as line:
        line.sendall(request)
        back = b""
        while b"\r\n\r\n" not in back and (chunk := line.recv(4096)):
            back += chunk
        return back


def connect(target: str, *lines: str) -> bytes:
    return "\r\n".join([f"CONNECT {target} HTTP/1.1", f"Host: {target}", *lines, "", ""]).encode()


def through(proxy: ConnectProxy, target: str, *lines: str) -> bytes:
    """A page fetched by hand through a tunnel."""
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as line:
        line.sendall(connect(target, *lines))
        assert line.recv(100).startswith(b"HTTP/1.1 200")
        line.sendall(b"GET / HTTP/1.0\r\n\r\n")
        back = b""
        while chunk := line.recv(4096):
            back += chunk
        return back


def test_it_tunnels_and_counts(web: int) -> None:
    with ConnectProxy() as proxy:
        for name in ("127.0.0.1", "localhost"):
            assert through(proxy, f"{name}:{web}").endswith(b"hello")
        assert proxy.connections == 2
        assert proxy.targets == [f"127.0.0.1:{web}", f"localhost:{web}"]
        assert proxy.carried > 100


def test_it_resolves_names_of_its_own(web: int) -> None:
    with ConnectProxy(hosts={"coordinator.example": "127.0.0.1"}) as proxy:
        assert through(proxy, f"coordinator.example:{web}").endswith(b"hello")


def test_without_the_password_nothing_goes_through(web: int) -> None:
    target = f"127.0.0.1:{web}"
    with ConnectProxy(("site", "pass")) as proxy:
        said = asked(proxy, connect(target))
        assert said.startswith(b"HTTP/1.1 407")
        assert b'Proxy-Authenticate: Basic realm="proxy"' in said
        assert asked(proxy, connect(target, "Proxy-Authorization: Basic c2l0ZTp3cm9uZw==")).startswith(b"HTTP/1.1 407")
        assert through(proxy, target, "Proxy-Authorization: Basic c2l0ZTpwYXNz").endswith(b"hello")
        assert (proxy.refusals, len(proxy.targets)) == ([407, 407], 1)


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (connect("example.org:443"), 403),
        (connect("10.0.0.1:443"), 403),
        (connect("127.0.0.1:0"), 403),
        (connect("127.0.0.1"), 403),
        (connect("127.0.0.1:1"), 502),
        (b"GET http://127.0.0.1/ HTTP/1.1\r\n\r\n", 405),
        (b"nonsense\r\n\r\n", 400),
        (connect("127.0.0.1:1", "X: " + "y" * 9000), 400),
    ],
)
def test_it_goes_nowhere_else(request_: bytes, status: int) -> None:
    with ConnectProxy() as proxy:
        assert asked(proxy, request_).startswith(f"HTTP/1.1 {status}".encode())
        assert proxy.targets == []


def test_httpx_uses_it_as_any_proxy() -> None:
    with ConnectProxy(("site", "pass")) as proxy:
        url = "https://127.0.0.1:1/"  # nobody is there: what counts is that the proxy was asked, and said so
        with pytest.raises(httpx.ProxyError, match="502"), httpx.Client(proxy=proxy.url("site", "pass")) as client:
            client.get(url)
        with pytest.raises(httpx.ProxyError, match="407"), httpx.Client(proxy=proxy.url()) as client:
            client.get(url)
        assert proxy.refusals == [502, 407]
