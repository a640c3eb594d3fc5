"""A web proxy as hospitals have one: HTTP CONNECT and nothing else, perhaps with a password."""

from __future__ import annotations

import asyncio
import base64
import ipaddress
from collections.abc import Mapping

from tests.faults.service import PATIENCE, Service, closed

HEAD = 8 * 2**10
"""Bytes of a request's head."""
CHUNK = 2**16


class ConnectProxy(Service):
    """Tunnels to hosts on loopback, counts, and writes down who asked for what.

    Args:
        credentials: user and password that a request must bring (HTTP basic); None: anybody may.
        hosts: names that only the proxy can resolve, such as {"coordinator.example": "127.0.0.1"}.

    Attributes:
        connections: that were made to the proxy.
        targets: "host:port" of every tunnel that was opened, in order.
        refusals: status code of every request that was refused, in order.
        carried: bytes through tunnels, both ways.
    """

    def __init__(
        self,
        credentials: tuple[str, str] | None = None,
        hosts: Mapping[str, str] | None = None,
        listen_port: int = 0,
    ) -> None:
        super().__init__(listen_port)
        self._secret = None if credentials is None else base64.b64encode(":".join(credentials).encode()).decode()
        self._hosts = dict(hosts or {})
        self.connections, self.carried = 0, 0
        self.targets: list[str] = []
        self.refusals: list[int] = []

    def url(self, user: str = "", password: str = "") -> str:
        """What goes into https_proxy."""
        return f"http://{user}:{password}@{self.address}" if user else f"http://{self.address}"

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """See ``Service``."""
        self.connections += 1
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), PATIENCE)
        status, target = self._judged(head)
        if status != 200:
            self.refusals.append(status)
            ask = 'Proxy-Authenticate: Basic realm="proxy"\r\n' if status == 407 else ""
            writer.write(f"HTTP/1.1 {status} no\r\n{ask}Content-Length: 0\r\nConnection: close\r\n\r\n".encode())
            return
        host, port = target
        try:
            there, sink = await asyncio.open_connection(host, port)
        except OSError:
            self.refusals.append(502)
            writer.write(b"HTTP/1.1 502 no\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            return
        self.targets.append(head.split(b" ", 2)[1].decode())
        writer.write(b"HTTP/1.1 200 here you are\r\n\r\n")
        try:
            await asyncio.gather(self._carry(reader, sink), self._carry(there, writer))
        finally:
            await closed(sink)

    def _judged(self, head: bytes) -> tuple[int, tuple[str, int]]:
        """Status and where to."""
        nowhere = "", 0
        request, *lines = head.decode("latin-1").split("\r\n")
        words = request.split(" ")
        if len(head) > HEAD or len(words) != 3 or not words[2].startswith("HTTP/1."):
            return 400, nowhere
        if words[0] != "CONNECT":
            return 405, nowhere
        given = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        if self._secret is not None and given.get("proxy-authorization", "") != f"Basic {self._secret}":
            return 407, nowhere
        name, _, port = words[1].rpartition(":")
        host = self._hosts.get(name, "127.0.0.1" if name == "localhost" else name.strip("[]"))
        try:
            allowed = ipaddress.ip_address(host).is_loopback and 0 < int(port) < 2**16
        except ValueError:
            allowed = False
        return (200, (host, int(port))) if allowed else (403, nowhere)

    async def _carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while chunk := await source.read(CHUNK):
            self.carried += len(chunk)
            sink.write(chunk)
            await sink.drain()
        if sink.can_write_eof():
            sink.write_eof()
