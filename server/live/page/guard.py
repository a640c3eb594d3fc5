"""Who may see the page: a browser on this machine that has the token; and the headers that every answer carries."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
LEAST = 16
"""Characters of a token."""
NO_TOKEN = "This page is for whoever has its token: open the address that 'polyclinic coordinator watch' prints.\n"
NOT_HERE = "This page is served to this machine alone, as 127.0.0.1 or localhost.\n"
NOT_SO = "This page can be read, and nothing else.\n"
HEADERS = {
    "cache-control": "no-store",
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
"""Of every answer, beside its policy."""
NOTHING = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
"""The policy of an answer that names none of its own."""


class Guard:
    """Lets an application be reached with the token alone.

    The first visit, ``/?token=…``, is answered with a cookie; the cookie is made from the token and does not tell it.
    """

    def __init__(self, app: ASGIApp, token: str, port: int) -> None:
        self._app, self._token, self._cookie = app, token.encode(), f"polyclinic-{port}"
        self._pass = hmac.new(self._token, b"polyclinic/page-cookie", hashlib.sha256).hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return
        refusal = self._refused(scope)
        await (refusal or self._app)(scope, receive, guarded(send))

    def _refused(self, scope: Scope) -> Response | None:
        """The answer to who may not come in, or who comes in for the first time; None for everybody else."""
        headers = Headers(scope=scope)
        if not all(local(host) for host in headers.getlist("host")) or len(headers.getlist("host")) != 1:
            return PlainTextResponse(NOT_HERE, 403)
        if scope["method"] != "GET":
            return PlainTextResponse(NOT_SO, 405, {"allow": "GET"})
        if scope["path"] == "/" and (tokens := parse_qs(scope["query_string"].decode("latin-1")).get("token")):
            return self._welcome(tokens)
        cookies = cookie_parser("; ".join(headers.getlist("cookie")))
        if same(cookies.get(self._cookie, ""), self._pass):
            return None
        return PlainTextResponse(NO_TOKEN, 403)

    def _welcome(self, tokens: Iterable[str]) -> Response:
        if not all(same(token, self._token.decode()) for token in tokens):
            return PlainTextResponse(NO_TOKEN, 403)
        response = RedirectResponse("/", 303)
        response.set_cookie(self._cookie, self._pass, httponly=True, samesite="strict", path="/")
        return response


def local(host: str) -> bool:
    """Whether a Host header names this machine, so that no foreign name that leads here is served."""
    name, colon, port = host.lower().rpartition(":")
    if not colon or host.endswith("]"):
        name, port = host.lower(), "80"
    return name in LOOPBACK and port.isascii() and port.isdigit()


def same(one: str, other: str) -> bool:
    """Whether two secrets are the same, in a time that does not tell where they differ."""
    return hmac.compare_digest(one.encode("utf-8", "replace"), other.encode("utf-8", "replace"))


def guarded(send: Send) -> Send:
    """Adds the headers of every answer."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            headers.setdefault("content-security-policy", NOTHING)
        await send(message)

    return sent
