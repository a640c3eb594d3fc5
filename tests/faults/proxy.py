"""A TCP proxy that breaks on command: latency, partition, resets, throttling, whole connections said twice.

It knows bytes alone, so it stands in front of TLS as well; only ``duplicate`` makes sense for plain text alone (TLS
refuses what was recorded). For messages said twice or out of order there is ``duplicating.py``.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from tests.faults.service import Service, closed, reset

Way = Literal["up", "down"]
"""From the client to the server, and back."""
CHUNK = 2**16
QUEUED = 64
"""Chunks on their way in one direction of one connection: a long, slow line holds 4 MiB."""
RECORDED = 64 * 2**20
"""Bytes of a connection that are kept to be said again; a longer one is not said again."""
IDLE = 3.0
"""Seconds of silence after which a connection that is said again is let go."""


class CutError(ConnectionError):
    """A connection was reset on command."""


@dataclass
class Counts:
    """What has passed."""

    connections: int = 0
    refused: int = 0
    resets: int = 0
    replays: int = 0
    up: int = 0
    down: int = 0


@dataclass(eq=False)
class Trap:
    """Resets ``left`` connections, each once ``after`` bytes have gone ``way`` in it since the trap was set."""

    way: Way
    after: int
    left: int
    seen: dict[int, int] = field(default_factory=dict)

    def room(self, connection: int) -> int:
        """Bytes that may still pass."""
        return self.after - self.seen.get(connection, 0)


class FaultProxy(Service):
    """Listens on loopback and passes everything on to ``to``; the methods below may be called from any thread.

    Args:
        to: host and port of the true server.
        listen_port: 0: any that is free, see ``port``.
        seed: of the jitter.
    """

    def __init__(self, to: tuple[str, int], listen_port: int = 0, seed: int = 0) -> None:
        super().__init__(listen_port)
        self.to, self.counts = to, Counts()
        self._random = random.Random(seed)
        self._delay: dict[Way, float] = {"up": 0.0, "down": 0.0}
        self._jitter, self._rate, self._refusing, self._again = 0.0, 0.0, False, 0
        self._free: dict[Way, float] = {"up": 0.0, "down": 0.0}
        self._traps: list[Trap] = []
        self._held: dict[int, tuple[asyncio.Task[None] | None, list[asyncio.StreamWriter]]] = {}
        self._flows: asyncio.Event

    def begin(self) -> None:
        """See ``Service``."""
        self._flows = asyncio.Event()
        self._flows.set()

    def latency(self, up: float = 0.0, down: float = 0.0, jitter: float = 0.0) -> None:
        """Milliseconds by which bytes are late in each direction, and at most how many more by chance."""

        def do() -> None:
            self._delay, self._jitter = {"up": up / 1000, "down": down / 1000}, jitter / 1000

        self.told(do)

    def throttle(self, rate: float) -> None:
        """Bytes per second in each direction, of all connections together; 0: no limit."""

        def do() -> None:
            self._rate, self._free = rate, {"up": 0.0, "down": 0.0}

        self.told(do)

    def partition(self, how: Literal["hold", "refuse"] = "hold") -> None:
        """Nothing passes until ``heal``.

        Args:
            how: "hold": connections stay, and new ones are taken, but no byte moves, as when cables are pulled;
                "refuse": connections are reset, and new ones too, as when the server is gone.
        """

        def do() -> None:
            self._refusing = how == "refuse"
            self._flows.clear()
            if self._refusing:
                self._cut()

        self.told(do)

    def heal(self) -> None:
        """Bytes pass again, those held back first."""

        def do() -> None:
            self._refusing = False
            self._flows.set()

        self.told(do)

    def reset_after(self, size: int, way: Way = "up", times: int = 1) -> None:
        """Resets the first ``times`` connections in which ``size`` more bytes have gone ``way``."""
        self.told(lambda: self._traps.append(Trap(way, size, times)))

    def cut(self) -> int:
        """Resets every connection that is open now; how many."""
        return self.told(self._cut)

    def duplicate(self, times: int = 1) -> None:
        """What the clients of the next ``times`` connections say is said again, on a connection after theirs."""

        def do() -> None:
            self._again = times

        self.told(do)

    def calm(self) -> None:
        """No fault from now on."""
        self.latency()
        self.throttle(0)
        self.heal()
        self.duplicate(0)
        self.told(self._traps.clear)

    async def converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """See ``Service``."""
        if self._refusing:
            self.counts.refused += 1
            reset(writer)
            return
        self.counts.connections += 1
        number, kept = self.counts.connections, self._recorder()
        writers = [writer]
        self._held[number] = asyncio.current_task(), writers
        try:
            await self._flows.wait()
            there, sink = await asyncio.open_connection(*self.to)
            writers.append(sink)
            await self._both(number, (reader, sink), (there, writer), kept)
        except ConnectionError:  # what one side sees, the other sees
            for each in writers:
                reset(each)
        finally:
            del self._held[number]
            for trap in self._traps:
                trap.seen.pop(number, None)
            for each in writers[1:]:
                await closed(each)
        if kept is not None and 0 < len(kept) < RECORDED:
            await self._say_again(bytes(kept))

    async def _both(
        self,
        number: int,
        up: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        down: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        kept: bytearray | None,
    ) -> None:
        ways = [
            asyncio.ensure_future(self._carry(number, "up", *up, kept)),
            asyncio.ensure_future(self._carry(number, "down", *down, None)),
        ]
        try:
            await asyncio.gather(*ways)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _carry(
        self, number: int, way: Way, source: asyncio.StreamReader, sink: asyncio.StreamWriter, kept: bytearray | None
    ) -> None:
        queue: asyncio.Queue[tuple[float, bytes | None]] = asyncio.Queue(QUEUED)
        reading = asyncio.ensure_future(self._read(way, source, queue, kept))
        try:
            while True:
                due, chunk = await queue.get()
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                await self._flows.wait()
                if chunk is None:
                    raise ConnectionResetError
                if not chunk:
                    break
                await self._write(number, way, chunk, sink)
            if sink.can_write_eof():
                sink.write_eof()
            await reading
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _read(
        self,
        way: Way,
        source: asyncio.StreamReader,
        queue: asyncio.Queue[tuple[float, bytes | None]],
        kept: bytearray | None,
    ) -> None:
        last, chunk = 0.0, b"?"
        while chunk:
            try:
                chunk = await source.read(CHUNK)
            except ConnectionError:
                await queue.put((last, None))
                return
            if kept is not None and len(kept) < RECORDED:
                kept += chunk
            last = max(last, time.monotonic() + self._delay[way] + self._random.uniform(0.0, self._jitter))
            await queue.put((last, chunk))  # in order, however late; the last one is empty

    async def _write(self, number: int, way: Way, chunk: bytes, sink: asyncio.StreamWriter) -> None:
        room = min((trap.room(number) for trap in self._traps if trap.way == way and trap.left), default=len(chunk) + 1)
        for piece in self._pieces(chunk[:room]):
            if self._rate:
                self._free[way] = max(self._free[way], time.monotonic()) + len(piece) / self._rate
                await asyncio.sleep(self._free[way] - time.monotonic())
            sink.write(piece)
            await sink.drain()
            setattr(self.counts, way, getattr(self.counts, way) + len(piece))
        for trap in self._traps:
            if trap.way == way and trap.left:
                trap.seen[number] = trap.seen.get(number, 0) + len(chunk[:room])
        if room <= len(chunk):
            self._spring(number, way)
            await asyncio.sleep(0.02)  # what was let pass is on its way before the reset overtakes it
            raise CutError

    def _spring(self, number: int, way: Way) -> None:
        self.counts.resets += 1
        for trap in self._traps:
            if trap.way == way and trap.left and trap.room(number) <= 0:
                trap.left -= 1

    def _pieces(self, chunk: bytes) -> Sequence[bytes]:
        step = max(1, int(self._rate / 20)) if self._rate else len(chunk) or 1
        return [chunk[i : i + step] for i in range(0, len(chunk), step)]

    def _recorder(self) -> bytearray | None:
        if self._again <= 0:
            return None
        self._again -= 1
        return bytearray()

    async def _say_again(self, said: bytes) -> None:
        reader, writer = await asyncio.open_connection(*self.to)
        self.counts.replays += 1
        try:
            writer.write(said)
            await writer.drain()
            while await asyncio.wait_for(reader.read(CHUNK), IDLE):
                pass
        except (OSError, TimeoutError):
            pass
        finally:
            await closed(writer)

    def _cut(self) -> int:
        self.counts.resets += len(self._held)
        for task, writers in self._held.values():
            for writer in writers:
                reset(writer)
            if task is not None:
                task.cancel()
        return len(self._held)


@dataclass(frozen=True)
class Step:
    """One fault of a plan: at ``at`` seconds ``fault`` begins, and after ``seconds`` it is over."""

    at: float
    fault: Literal["hold", "refuse", "cut", "slow", "reset"]
    seconds: float


def plan(seed: int, seconds: float, faults: int) -> list[Step]:
    """``faults`` faults, one after another, within ``seconds``: the same seed gives the same plan."""
    rng = random.Random(f"plan/{seed}")
    share = seconds / faults
    kinds: list[Literal["hold", "refuse", "cut", "slow", "reset"]] = ["hold", "refuse", "cut", "slow", "reset"]
    return [
        Step(share * (i + rng.uniform(0.0, 0.5)), rng.choice(kinds), share * rng.uniform(0.05, 0.5))
        for i in range(faults)
    ]


def play(steps: Sequence[Step], proxy: FaultProxy) -> None:
    """Carries a plan out, and returns when it is over; the proxy is calm then."""
    begun = time.monotonic()
    for step in steps:
        time.sleep(max(0.0, begun + step.at - time.monotonic()))
        if step.fault in ("hold", "refuse"):
            proxy.partition(step.fault)  # type: ignore[arg-type]
        elif step.fault == "cut":
            proxy.cut()
        elif step.fault == "slow":
            proxy.latency(300, 300, 100)
        else:
            proxy.reset_after(2000)
        time.sleep(step.seconds)
        proxy.calm()
