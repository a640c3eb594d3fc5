"""The two web addresses of a coordinator that a site asks before it has a certificate: over TLS 1.3, or not at all."""

from __future__ import annotations

import http.client
import ssl
import urllib.error
import urllib.request
from typing import Any

from google.protobuf.message import DecodeError

from polyclinic.core.errors import EngineError, TrustError
from polyclinic.core.governance import governance_pb2 as pb
from polyclinic.core.governance.wire import CA_PATH, ENROL_LIMIT, ENROL_PATH
from polyclinic.core.pki import LIMIT, fingerprint

DEADLINE = 30.0
"""Seconds until an answer begins, and between two parts of it."""


def fetch_authority(address: str, expected: str, proxy: str | None) -> bytes:
    """The authority's certificate (PEM) of the coordinator at ``address`` (HOST:PORT).

    Nothing that is said on this connection is believed but a certificate with the ``expected`` fingerprint.

    Raises:
        TrustError: it is another one, or none.
        EngineError: nobody answers there.
    """
    unverified = _context(None)
    status, body = _asked(urllib.request.Request(f"https://{address}{CA_PATH}"), unverified, proxy, address, LIMIT)
    if status != 200:
        raise EngineError(f"answers with status {status}: no coordinator's address", where=address)
    if fingerprint(body) != expected:
        remedy = "somebody may stand in between, or the invitation is of another coordinator: ask for a new one"
        raise TrustError("shows another authority than the invitation names", where=address, remedy=remedy)
    return body


def enrol(address: str, request: bytes, authority: bytes, proxy: str | None) -> pb.EnrolReply:
    """Sends an enrolment request over TLS that ``authority`` (PEM) vouches for.

    Raises:
        TrustError: the coordinator declines, in its own words; or it shows a certificate by another authority.
        EngineError: nobody answers, or with something else.
    """
    posted = urllib.request.Request(f"https://{address}{ENROL_PATH}", request, method="POST")
    posted.add_header("Content-Type", "application/octet-stream")
    status, body = _asked(posted, _context(authority), proxy, address, ENROL_LIMIT)
    try:
        if status == 200:
            reply: pb.EnrolReply = pb.EnrolReply.FromString(body)
            return reply
        told = pb.ErrorReply.FromString(body)
    except DecodeError as failure:
        raise EngineError(f"answers with status {status} and no sentence", where=address) from failure
    problem, where, remedy = (_printable(text) for text in (told.problem, told.where, told.remedy))
    if 400 <= status < 500 and problem:
        raise TrustError(problem, where=where or address, remedy=remedy)
    raise EngineError(problem or f"answers with status {status}", where=address, remedy=remedy)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A coordinator has one address."""

    def redirect_request(self, *parts: Any) -> None:
        return None


def _context(authority: bytes | None) -> ssl.SSLContext:
    context = ssl.create_default_context(cadata=authority.decode() if authority else "")
    if authority is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def _asked(
    request: urllib.request.Request, context: ssl.SSLContext, proxy: str | None, where: str, limit: int
) -> tuple[int, bytes]:
    """(status, body); through ``proxy``, else as the environment says."""
    through = urllib.request.ProxyHandler({"https": proxy} if proxy else None)
    opener = urllib.request.build_opener(through, urllib.request.HTTPSHandler(context=context), _NoRedirect)
    try:
        try:
            reply = opener.open(request, timeout=DEADLINE)
        except urllib.error.HTTPError as refusal:
            reply = refusal
        with reply:
            status, body = int(reply.status or 0), reply.read(limit + 1)
    except (OSError, http.client.HTTPException, ValueError) as failure:
        reason = getattr(failure, "reason", failure)
        if isinstance(reason, ssl.SSLCertVerificationError):
            problem = f"its certificate is not to be trusted: {reason.verify_message}"
            raise TrustError(problem, where=where) from failure
        remedy = "check the address, the firewall, and --proxy if there is one"
        raise EngineError(f"does not answer: {_printable(str(reason))}", where=where, remedy=remedy) from failure
    if len(body) > limit:
        raise TrustError(f"answers with more than {limit} bytes", where=where)
    return status, body


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)[:500]
