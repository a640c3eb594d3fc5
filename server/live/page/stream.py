"""Server-sent events: what changed on a page, as it changes."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import anyio
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from polyclinic.server.live.page.fragments import Fragment, View

LOOK = 0.3
"""Seconds between two looks at the files."""
BEAT = 10.0
"""Seconds after which a stream that has nothing to say shows that it is alive."""
RETRY = 1000
"""Milliseconds after which a browser tries again."""
STREAMS = 16
FULL = "Too many pages are open: close one of them. This one tries again by itself.\n"


@dataclass
class Source:
    """Where a stream has its news from.

    Attributes:
        view: the page now; None once it is not there any more.
        since: what of a view changed since a version; all of it where that version is not known.
        closing: whether the server is about to end.
        assets: digest of script and style, at whose change a page loads itself again.
    """

    view: Callable[[], View | None]
    since: Callable[[View, str], list[Fragment]]
    closing: Callable[[], bool]
    assets: str
    clock: Callable[[], float] = time.time


@dataclass
class Streams:
    """Counts the streams that are open."""

    open: int = 0

    def response(self, source: Source, seen: str) -> Response:
        """A stream that begins after the version ``seen``, or a refusal where there are too many."""
        if self.open >= STREAMS:
            return PlainTextResponse(FULL, 503, {"retry-after": "5"})
        return Counted(self, news(source, seen), media_type="text/event-stream")


class Counted(StreamingResponse):
    """A stream that counts for as long as it is open, however it ends."""

    def __init__(self, streams: Streams, content: AsyncIterator[bytes], media_type: str) -> None:
        super().__init__(content, media_type=media_type)
        self._streams = streams

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends until either side ends it."""
        if self._streams.open >= STREAMS:  # another came between
            await PlainTextResponse(FULL, 503, {"retry-after": "5"})(scope, receive, send)
            return
        self._streams.open += 1
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._streams.open -= 1


async def news(source: Source, seen: str) -> AsyncIterator[bytes]:
    """The stream: hello, then fragments whenever the page says something else, and a beat while it does not."""
    yield f"retry: {RETRY}\n\n".encode() + event("hello", {"now": source.clock(), "assets": source.assets})
    quiet = 0.0
    while not source.closing():
        view = await anyio.to_thread.run_sync(source.view)
        if view is None:
            return
        if view.version != seen:
            yield batch(source.since(view, seen), view.version)
            seen, quiet = view.version, 0.0
        elif quiet >= BEAT:
            yield b": beat\n\n" + event("beat", {"now": source.clock()})
            quiet = 0.0
        await anyio.sleep(LOOK)
        quiet += LOOK


def batch(fragments: list[Fragment], version: str) -> bytes:
    """Fragments as events; only the last bears the version, so that whoever was cut off before it gets all again."""
    last = len(fragments) - 1
    sent = [
        event("fragment", {"id": f.id, "html": f.html}, version if i == last else "") for i, f in enumerate(fragments)
    ]
    return b"".join(sent)


def event(kind: str, content: dict[str, Any], identifier: str = "") -> bytes:
    """One event; its content is one line of JSON, in ASCII so that no separator of lines can stand in it."""
    head = f"id: {identifier}\n" if identifier else ""
    return f"{head}event: {kind}\ndata: {json.dumps(content)}\n\n".encode("ascii")
