"""ASGI gates before Flower's SuperLink: what the open network reaches, and what only this machine's processes do."""

from __future__ import annotations

import asyncio
import gc
import hmac
import io
import tempfile
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import IO, Any

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Takeover = Callable[[bytes, bytes], bool]
"""(body of an activation that was refused, body of the refusal) → whether it is worth a second try."""

LARGEST, LARGEST_OTHER = 8 * 2**20, 2**20
"""Bytes of the body of a request that carries tensors (Flower sends them in chunks of 5 MiB), and of any other."""
BODY_SECONDS = 120.0
"""In which a request's body must have come."""
HOLD = 20.0
"""Seconds for which an empty answer is held back; a SuperNode gives up after 30."""
CALM, LONG = 0.05, 1.0
"""Seconds without news after which all of it has come, and for which that is waited for."""
PULL = "/v1/fleet/pull-messages"
ACTIVATE = "/v1/fleet/activate-node"
OBJECTS = ("/v1/fleet/push-object", "/v1/fleet/pull-object")
"""The two calls that carry tensors."""
AT_ONCE = 4
"""So many of them are with Flower at a time: each takes several times its body in memory there."""
SMALL, PIECE = 2**18, 2**16
"""Bytes of a body that memory holds while it comes or goes over a line, and that are passed on at one time."""


class Bell:
    """Wakes those who wait for news; of one event loop."""

    def __init__(self) -> None:
        self._waiting: asyncio.Event = asyncio.Event()
        self._calm: asyncio.TimerHandle | None = None
        self._coming, self._since = 0, 0.0

    def ring(self) -> None:
        """There may be news."""
        if self._calm is not None:
            self._calm.cancel()
            self._calm = None
        self._waiting.set()
        self._waiting = asyncio.Event()

    def listen(self) -> asyncio.Event:
        """Set at the next ring; take it before looking, so that no ring is missed."""
        return self._waiting

    @property
    def calm(self) -> bool:
        """Whether all that has begun to come has come."""
        return self._coming == 0 and self._calm is None

    @contextmanager
    def coming(self) -> Iterator[None]:
        """While a piece of news comes. A message comes before its tensors, and a SuperNode that sees it too early
        waits a whole second: so this rings when nothing has come for ``CALM`` seconds, or when it takes too ``LONG``.
        """
        loop = asyncio.get_running_loop()
        if self.calm:
            self._since = loop.time()
        if self._calm is not None:
            self._calm.cancel()
            self._calm = None
        self._coming += 1
        try:
            yield
        finally:
            self._coming -= 1
            if loop.time() - self._since > LONG:
                self.ring()
            elif self._coming == 0:
                self._calm = loop.call_later(CALM, self.ring)


@dataclass
class Answer:
    """What an app answered, caught whole."""

    status: int = 500
    headers: list[Any] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)

    async def catch(self, event: Event) -> None:
        """As the app's ``send``."""
        if event["type"] == "http.response.start":
            self.status, self.headers = event["status"], list(event.get("headers", ()))
        elif event["type"] == "http.response.body":
            self.body += event.get("body", b"")

    async def tell(self, send: Send) -> None:
        """Passes it on."""
        await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
        await send({"type": "http.response.body", "body": bytes(self.body)})


class Public:
    """Shows Flower's Fleet API and our enrolment; everything else is not there.

    A pull that would come back empty is held until there is news, so that a stock SuperNode need not be waited for; an
    activation that is refused because the node counts as online (its process was killed a moment ago) gets a second
    try once ``takeover`` has put the node offline.

    However many sites there are, memory holds few tensors: what is on its way over a line waits in a file.
    """

    def __init__(self, fleet: App, enrolment: App, takeover: Takeover, bell: Bell) -> None:
        self._fleet, self._enrolment, self._takeover, self._bell = fleet, enrolment, takeover, bell
        self._turn = asyncio.Semaphore(AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] != "http":
            return
        if declared(scope) > LARGEST:
            await plain(send, 413, "too long")
        elif path.startswith("/polyclinic/v1/"):
            await self._enrolment(scope, receive, send)
        elif not path.startswith("/v1/fleet/"):
            await plain(send, 404, "not here")
        elif path in OBJECTS:
            await self._object(scope, receive, send)
        elif (body := await whole(receive, LARGEST_OTHER)) is None:
            await plain(send, 413, "too long, or too slow")
        elif path == PULL:
            await self._pull(scope, body, receive, send)
        elif path == ACTIVATE:
            await self._activate(scope, body, send)
        else:
            await self._fleet(scope, replay(body), send)

    async def _object(self, scope: Scope, receive: Receive, send: Send) -> None:
        with tempfile.SpooledTemporaryFile(SMALL) as body, tempfile.SpooledTemporaryFile(SMALL) as answered:
            if not await spooled(receive, body, LARGEST):
                await plain(send, 413, "too long, or too slow")
                return
            async with self._turn:
                answer = await ask(self._fleet, scope, read(body))
                answered.write(answer.body)
                if max(body.tell(), len(answer.body)) > SMALL:
                    gc.collect()  # Starlette's requests hold themselves, and their bodies
            await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
            del answer  # its body waits in the file
            answered.seek(0)
            while piece := answered.read(PIECE):
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})

    async def _pull(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        gone = asyncio.ensure_future(receive())  # nothing but a disconnection can come now
        end = asyncio.get_running_loop().time() + HOLD
        look = self._bell.calm
        try:
            while not gone.done():
                news = self._bell.listen()
                answer = await ask(self._fleet, scope, body) if look else Answer(200)
                left = end - asyncio.get_running_loop().time()
                if answer.status != 200 or answer.body or left <= 0:
                    await answer.tell(send)
                    return
                waiting = asyncio.ensure_future(news.wait())
                await asyncio.wait({waiting, gone}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                look = True
        finally:
            gone.cancel()

    async def _activate(self, scope: Scope, body: bytes, send: Send) -> None:
        answer = await ask(self._fleet, scope, body)
        if answer.status not in (200, 401) and await asyncio.to_thread(self._takeover, body, bytes(answer.body)):
            answer = await ask(self._fleet, scope, body)
        await answer.tell(send)


class Private:
    """Everything of the SuperLink, under a path that only those know who may read the coordinator's folder."""

    def __init__(self, everything: App, secret: str, bell: Bell) -> None:
        self._everything, self._prefix, self._bell = everything, f"/{secret}/", bell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._everything(scope, receive, send)
            return
        path = str(scope.get("path", ""))
        if not hmac.compare_digest(path[: len(self._prefix)].encode(), self._prefix.encode()):
            await plain(send, 404, "not here")
            return
        rest = path[len(self._prefix) - 1 :]
        inner = dict(scope, path=rest, raw_path=rest.encode())
        with self._bell.coming() if "/push-" in path else nullcontext():
            await self._everything(inner, receive, send)


def declared(scope: Scope) -> int:
    """Bytes that a request says it has; the server makes sure that it has no more."""
    lengths = [value for name, value in scope.get("headers", ()) if name == b"content-length"]
    return max((int(value) for value in lengths if value.isdigit()), default=0)


async def whole(receive: Receive, limit: int) -> bytes | None:
    """A request's body; None if it is longer than ``limit``, or slower than anybody honest's."""
    body = io.BytesIO()
    return body.getvalue() if await spooled(receive, body, limit) else None


async def spooled(receive: Receive, body: IO[bytes], limit: int) -> bool:
    """Writes a request's body to a file; whether it came whole, not longer than ``limit`` nor too slowly."""
    with suppress(TimeoutError):
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                event = await receive()
                body.write(event.get("body", b""))
                if event["type"] != "http.request" or body.tell() > limit:
                    return False
                if not event.get("more_body"):
                    return True
    return False


def read(body: IO[bytes]) -> bytes:
    """All that was written to a file."""
    body.seek(0)
    return body.read()


async def ask(app: App, scope: Scope, body: bytes) -> Answer:
    """The app's whole answer to a request whose body is known."""
    answer = Answer()
    await app(dict(scope, state=dict(scope.get("state", {}))), replay(body), answer.catch)
    return answer


def replay(body: bytes) -> Receive:
    """A ``receive`` that gives ``body``, and then waits for a disconnection that does not come."""
    events: list[Event] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Event:
        if not events:
            await asyncio.Event().wait()
        return events.pop()

    return receive


async def plain(send: Send, status: int, content: str | bytes) -> None:
    """A short answer: text, or bytes."""
    kind = b"text/plain" if isinstance(content, str) else b"application/octet-stream"
    await send({"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]})
    await send({"type": "http.response.body", "body": content.encode() if isinstance(content, str) else content})
