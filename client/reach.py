"""Whether a site reaches the coordinator's two ports, and where on the way it ends: name, connection, proxy or TLS."""

from __future__ import annotations

import base64
import http.client
import socket
import ssl
import urllib.request
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from polyclinic.client.home import Home
from polyclinic.core.errors import EngineError, TrustError

DEADLINE = 10.0
"""Seconds for each step."""


def proxy_of(home: Home) -> str | None:
    """The proxy in site.toml, else the environment's."""
    return home.settings.proxy or urllib.request.getproxies().get("https")


def reach(home: Home, port: int, path: str = "") -> tuple[str, bytes]:
    """(how the port was reached, what is answered at ``path``) over TLS that the site's own authority vouches for.

    Args:
        path: asked for if given; without one, the site shows its certificate.

    Raises:
        EngineError: no such name, no connection, or a proxy that refuses.
        TrustError: TLS fails, or shows another authority's certificate.
    """
    host = home.settings.coordinator.host
    where, proxy = home.settings.coordinator.address(port), proxy_of(home)
    context = _context(home.network, show=not path)
    try:
        with closing(_connection(host, port, context, proxy)) as connection:
            connection.connect()
            how = f"{connection.sock.version()}{f' through {_shown(proxy)}' if proxy else ''}"
            if not path:
                return how, b""
            connection.request("GET", path)
            reply = connection.getresponse()
            body = reply.read(2**16)
    except (OSError, http.client.HTTPException) as failure:
        raise _explained(failure, where, proxy) from failure
    if reply.status != 200:
        raise EngineError(f"answers with status {reply.status}", where=where, remedy="ask the coordinator")
    return how, body


def _explained(failure: Exception, where: str, proxy: str | None) -> EngineError | TrustError:
    if isinstance(failure, ssl.SSLCertVerificationError):
        problem = f"shows a certificate that is not to be trusted: {failure.verify_message}"
        return TrustError(problem, where=where, remedy="somebody may stand in between: ask the coordinator")
    if isinstance(failure, ssl.SSLError):
        remedy = "a firewall or a proxy may open TLS on the way: have this host exempted"
        return TrustError(f"TLS fails: {failure.reason or failure}", where=where, remedy=remedy)
    if isinstance(failure, socket.gaierror):
        problem = f"{'the proxy' if proxy else 'the coordinator'}'s name is not known here: {failure.strerror}"
        return EngineError(problem, where=where, remedy="check the name, the DNS server, and whether a proxy is needed")
    remedy = "ask your network's people to allow it; site.toml names the proxy, if there is one"
    return EngineError(f"is not reached: {failure}", where=where, remedy=remedy)


def _context(network: Path, show: bool) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=network / "ca.pem")
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if show:
        context.load_cert_chain(network / "tls.pem", network / "tls.key")
        context.set_alpn_protocols(["h2"])
    return context


def _connection(host: str, port: int, context: ssl.SSLContext, proxy: str | None) -> http.client.HTTPSConnection:
    if not proxy:
        return http.client.HTTPSConnection(host, port, timeout=DEADLINE, context=context)
    at = urlsplit(proxy)
    connection = http.client.HTTPSConnection(at.hostname or "", at.port or 80, timeout=DEADLINE, context=context)
    secret = f"{unquote(at.username or '')}:{unquote(at.password or '')}"
    login = {"Proxy-Authorization": f"Basic {base64.b64encode(secret.encode()).decode()}"} if at.username else {}
    connection.set_tunnel(host, port, login)
    return connection


def _shown(proxy: str) -> str:
    """Without its password."""
    at = urlsplit(proxy)
    return f"{at.hostname}:{at.port or 80}"
