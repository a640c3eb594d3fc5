"""The pages and their streams, as an ASGI application."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import anyio
from markupsafe import Markup
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from polyclinic.server.live.page.board import Board, Runs
from polyclinic.server.live.page.fragments import Renderer, View, quoted, short
from polyclinic.server.live.page.guard import NOTHING, Guard
from polyclinic.server.live.page.stream import Source, Streams

NO_RUN = "There is no such run: see the list at /runs.\n"
NO_REPORT = "This run has no report yet: it is written when the run has finished.\n"
REPORT_POLICY = f"{NOTHING}; style-src 'unsafe-inline'"
"""A report holds its style and no script."""
BIGGEST = 2**26
"""Bytes of a report."""


class Pages:
    """What is answered to whom."""

    def __init__(self, board: Board, renderer: Renderer, closing: Callable[[], bool]) -> None:
        self._board, self._renderer, self._closing, self._streams = board, renderer, closing, Streams()
        source = partial(renderer.templates.loader.get_source, renderer.templates)  # type: ignore[union-attr]
        self._script = source("live.js")[0]
        self._style = source("style.css")[0] + source("live.css")[0]
        self._assets = short(self._script + self._style + source("page.html")[0])
        policy = f"script-src '{hashed(self._script)}'; style-src '{hashed(self._style)}'; connect-src 'self'"
        self._policy = f"{NOTHING}; {policy}"

    async def home(self, request: Request) -> Response:
        """To the run that is on, or to the list."""
        name = await anyio.to_thread.run_sync(self._board.on)
        return RedirectResponse("/runs" if name is None else f"/runs/{quoted(name)}", 303)

    async def runs(self, request: Request) -> Response:
        """The list of runs."""
        return self._page(await anyio.to_thread.run_sync(self._board.runs), "/events", listed=True)

    async def run(self, request: Request) -> Response:
        """The page of a run."""
        name = request.path_params["name"]
        view = await anyio.to_thread.run_sync(self._board.run, name)
        return missing(NO_RUN) if view is None else self._page(view, f"/runs/{quoted(name)}/events")

    async def runs_events(self, request: Request) -> Response:
        """What changes in the list."""
        return self._stream(request, "", self._board.runs)

    async def run_events(self, request: Request) -> Response:
        """What changes in a run."""
        name = request.path_params["name"]
        if self._board.folder(name) is None:
            return missing(NO_RUN)
        return self._stream(request, name, partial(self._board.run, name))

    async def report(self, request: Request) -> Response:
        """The report of a finished run: the same parts, frozen."""
        folder = self._board.folder(request.path_params["name"])
        if folder is None:
            return missing(NO_RUN)
        content = await anyio.to_thread.run_sync(contents, folder / "report.html")
        if content is None:
            return missing(NO_REPORT)
        return HTMLResponse(content, headers={"content-security-policy": REPORT_POLICY})

    def _page(self, view: View, events: str, *, listed: bool = False) -> Response:
        text = self._renderer.templates.get_template("page.html").render(
            view=view,
            html={f.id: Markup(f.html) for f in view.fragments},  # rendered, and escaped, by templates
            list=listed,
            events=events,
            assets=self._assets,
            style=Markup(self._style),
            script=Markup(self._script),
        )
        return HTMLResponse(text.encode("utf-8", "replace"), headers={"content-security-policy": self._policy})

    def _stream(self, request: Request, name: str, view: Callable[[], View | None]) -> Response:
        seen = request.headers.get("last-event-id") or request.query_params.get("seen", "")
        since = partial(self._board.since, name)
        return self._streams.response(Source(view, since, self._closing, self._assets), seen[:64])


def application(runs: Runs, token: str, port: int, closing: Callable[[], bool]) -> ASGIApp:
    """The live page of ``runs`` for whoever has ``token``, until ``closing``."""
    renderer = Renderer()
    pages = Pages(Board(runs, renderer), renderer, closing)
    routes = [
        Route("/", pages.home),
        Route("/runs", pages.runs),
        Route("/events", pages.runs_events),
        Route("/runs/{name}", pages.run),
        Route("/runs/{name}/events", pages.run_events),
        Route("/runs/{name}/report", pages.report),
    ]
    return Guard(Starlette(routes=routes), token, port)


def missing(sentence: str) -> Response:
    """Not found, and why."""
    return PlainTextResponse(sentence, 404)


def contents(path: Path) -> bytes | None:
    """What a file holds, if it is there and not too big."""
    try:
        return path.read_bytes() if path.stat().st_size <= BIGGEST else None
    except OSError:
        return None


def hashed(text: str) -> str:
    """What a content security policy calls an inline script or style by."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
