"""An invitation: everything that a site needs in order to join, in one text that is handed over in private."""

from __future__ import annotations

import base64
import hashlib
import ipaddress
import math
import re
import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import rfc8785

from polyclinic.core.errors import TrustError
from polyclinic.core.signing import canonical, demand_site

PREFIX = "polyclinic-invitation-1:"
LIMIT = 4 * 2**10
"""Characters of an invitation."""
_TEXT = re.compile(r"([A-Za-z0-9_-]+)\.([0-9a-f]{16})")
_LABEL = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")
_REMEDY = "copy it whole, or ask the coordinator for another one"


@dataclass(frozen=True)
class Invitation:
    """What the coordinator tells a site that may join.

    Attributes:
        host: DNS name or address of the coordinator.
        fleet_port, governance_port: the only two ports that the site connects to.
        ca: SHA-256 of the certificate (DER) of the coordinator's authority, in hexadecimal digits.
        site: the name under which the site joins.
        token: 43 characters, good once.
        expires: seconds since the epoch.
    """

    host: str
    fleet_port: int
    governance_port: int
    ca: str
    site: str
    token: str
    expires: float

    def text(self) -> str:
        """In one line; its last 16 characters tell whether it was copied whole."""
        body = rfc8785.dumps({"v": 1, **asdict(self)})
        return f"{PREFIX}{base64.urlsafe_b64encode(body).decode().rstrip('=')}.{_sum(body)}"

    def file_text(self) -> str:
        """As ``text``, wrapped for a file or a letter."""
        return "\n".join(textwrap.wrap(self.text(), 76, break_on_hyphens=False)) + "\n"

    def demand_valid(self, now: float) -> None:
        """Raises TrustError if the invitation has expired at ``now`` (seconds since the epoch)."""
        if now >= self.expires:
            raise TrustError("the invitation has expired", remedy="ask the coordinator for another one")


def read_invitation(source: str | Path) -> Invitation:
    """The invitation in a text, or in the file of that name; whether it has expired is for the caller to ask.

    Raises:
        TrustError: it cannot be read, is too long or damaged, or says something impossible.
    """
    text = source if isinstance(source, str) and source.lstrip().startswith(PREFIX) else _read(Path(source))
    if len(text) > LIMIT:
        raise TrustError("the invitation is too long", remedy=_REMEDY)
    text = "".join(text.split())
    if not text.startswith(PREFIX):
        raise TrustError("this is no invitation", remedy=f"it starts with {PREFIX}")
    found = _TEXT.fullmatch(text[len(PREFIX) :])
    if found is None:
        raise TrustError("the invitation is damaged", remedy=_REMEDY)
    body = _decoded(found[1])
    if _sum(body) != found[2]:
        raise TrustError("the invitation is damaged: it does not match its check sum", remedy=_REMEDY)
    return _checked(canonical(body))


def _read(path: Path) -> str:
    try:
        with path.open("rb") as source:
            return source.read(LIMIT + 1).decode("ascii")
    except (OSError, ValueError) as failure:  # ValueError: not ASCII, or no path at all
        where = str(path)[:80]
        raise TrustError("is neither an invitation nor a file with one", where=where, remedy=_REMEDY) from failure


def _decoded(text: str) -> bytes:
    try:
        body = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError as failure:
        raise TrustError("the invitation is damaged", remedy=_REMEDY) from failure
    if base64.urlsafe_b64encode(body).decode().rstrip("=") != text:
        raise TrustError("the invitation is damaged", remedy=_REMEDY)
    return body


def _checked(document: dict[str, Any]) -> Invitation:
    if document.keys() != {"v", *Invitation.__dataclass_fields__}:
        raise TrustError("the invitation has other keys than agreed", remedy=_REMEDY)
    if type(document["v"]) is not int or document.pop("v") != 1:
        raise TrustError("the invitation is of another version", remedy="install the coordinator's version")
    host, expires = document["host"], document["expires"]
    if not isinstance(host, str) or not is_host(host):
        raise TrustError("is neither a DNS name nor an address", where="host", remedy=_REMEDY)
    for name in ("fleet_port", "governance_port"):
        if type(document[name]) is not int or not 1 <= document[name] <= 65535:
            raise TrustError("is no port", where=name, remedy=_REMEDY)
    for name, shape in (("ca", r"[0-9a-f]{64}"), ("token", r"[A-Za-z0-9_-]{43}")):
        if not isinstance(document[name], str) or re.fullmatch(shape, document[name]) is None:
            raise TrustError("is not as agreed", where=name, remedy=_REMEDY)
    demand_site(document["site"])
    if type(expires) not in (int, float) or not math.isfinite(expires) or not 0 < expires < 2**40:
        raise TrustError("is no time", where="expires", remedy=_REMEDY)
    return Invitation(**{**document, "expires": float(expires)})


def demand_host(host: str) -> str:
    """``host``, if it is a DNS name or an address; else a TrustError."""
    if not is_host(host):
        raise TrustError("is neither a DNS name nor an address", where=repr(host)[:80])
    return host


def is_host(host: str) -> bool:
    """Whether ``host`` is a DNS name (ASCII) or an IP address."""
    try:
        return "%" not in str(ipaddress.ip_address(host))
    except ValueError:
        labels = host.split(".")
        return len(host) <= 253 and all(map(_LABEL.fullmatch, labels)) and not labels[-1].isdigit()


def _sum(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()[:16]
