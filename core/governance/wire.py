"""Between our types and the protocol's, and the sentences that both ends must agree on."""

from __future__ import annotations

import hashlib
import re

from polyclinic.core.errors import TrustError
from polyclinic.core.governance import governance_pb2 as pb
from polyclinic.core.signing import Signed, SigningKey

ENROL_PATH, CA_PATH = "/polyclinic/v1/enrol", "/polyclinic/v1/ca"
ENROL_LIMIT = 64 * 2**10
"""Bytes of an enrolment request, and of the answer."""
IN_LIMIT, OUT_LIMIT = 64 * 2**10 + 512, 4 * 2**20
"""Bytes of a message to the coordinator (a statement of 64 KiB and its signature fit), and from it."""
STATUS_LIMIT = 4 * 2**10
RECEIPTS, LINES = 64, 1000
"""How many a reply holds at most."""
_VERSION = re.compile(r"(\d{1,6})\.(\d{1,6})(\.[0-9A-Za-z.+-]{1,40})?")


def to_wire(signed: Signed) -> pb.Signed:
    """A statement as it travels."""
    return pb.Signed(document=signed.document, signer=signed.signer, signature=signed.signature)


def from_wire(message: pb.Signed) -> Signed:
    """A statement that arrived: nothing about it is checked yet."""
    return Signed(message.document, message.signer, message.signature)


def proof_message(token: str, site: str, csr: bytes) -> bytes:
    """What a site signs in order to show that it holds its signing key."""
    return b"polyclinic/enrol\x00" + token.encode() + site.encode() + hashlib.sha256(csr).digest()


def enrol_request(token: str, site: str, csr: bytes, node_key: bytes, key: SigningKey, version: str) -> bytes:
    """The body of a POST to ``ENROL_PATH``; sent again with the same keys, it gets the same answer."""
    request = pb.EnrolRequest(token=token, site=site, csr=csr, node_key=node_key, signing_key=key.public)
    request.proof, request.version = key.sign(proof_message(token, site, csr)), version
    return bytes(request.SerializeToString())


def demand_compatible(theirs: str, ours: str) -> None:
    """Nothing, if two versions of Polyclinic understand each other: major and minor number are the same.

    Raises:
        TrustError: naming both.
    """
    one, other = _VERSION.fullmatch(theirs), _VERSION.fullmatch(ours)
    if one is None or other is None or one.groups()[:2] != other.groups()[:2]:
        told = re.sub(r"[^0-9A-Za-z.+-]", "?", theirs)[:40]
        raise TrustError(
            f"version {told} at the site and version {ours} at the coordinator do not go together",
            remedy="install the coordinator's version",
        )
