"""A TCP relay on loopback that counts what passes, each way."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

PIECE = 2**16


@dataclass
class Relay:
    """Passes on every connection to ``port`` of this machine to ``target``.

    Attributes:
        up: bytes from those who connect.
        down: bytes to them.
    """

    target: int
    up: int = 0
    down: int = 0
    listener: socket.socket = field(default_factory=lambda: socket.create_server(("127.0.0.1", 0)))
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def port(self) -> int:
        """On which it listens."""
        return int(self.listener.getsockname()[1])

    def serve(self) -> None:
        """Until the listener is closed."""
        with suppress(OSError):
            while True:
                caller, _ = self.listener.accept()
                threading.Thread(target=self._carry, args=(caller,), daemon=True).start()

    def _carry(self, caller: socket.socket) -> None:
        with suppress(OSError), caller, socket.create_connection(("127.0.0.1", self.target)) as callee:
            for end in (caller, callee):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            back = threading.Thread(target=self._pass, args=(callee, caller, "down"), daemon=True)
            back.start()
            self._pass(caller, callee, "up")
            back.join()

    def _pass(self, source: socket.socket, sink: socket.socket, way: str) -> None:
        try:
            while piece := source.recv(PIECE):
                with self.lock:
                    setattr(self, way, getattr(self, way) + len(piece))
                sink.sendall(piece)
            sink.shutdown(socket.SHUT_WR)
        except OSError:  # one end is gone: so is the connection
            for end in (source, sink):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)


@contextmanager
def relays(*targets: int) -> Iterator[list[Relay]]:
    """One relay a target."""
    found = [Relay(target) for target in targets]
    for relay in found:
        threading.Thread(target=relay.serve, daemon=True).start()
    try:
        yield found
    finally:
        for relay in found:
            with suppress(OSError):
                relay.listener.shutdown(socket.SHUT_RDWR)
            relay.listener.close()
