"""A sealed reply: what travels from a site over Flower, signed by the site over everything that gives it meaning.

Layout: magic (4 bytes), length of the header (uint32, little-endian), header (canonical JSON), signature (64 bytes),
body.
"""

from __future__ import annotations

import hashlib
import re
import struct
from dataclasses import dataclass, fields
from typing import Literal

import rfc8785

from polyclinic.core.errors import TrustError, UpdateError
from polyclinic.core.signing import SigningKey, canonical, check, demand_site

MAGIC = b"PLS1"
HEADER_LIMIT = 4 * 2**10
REFUSAL_LIMIT = 2 * 2**10
"""Bytes of a refusal's text."""
_CONTEXT = b"polyclinic/reply\x00"
_START = len(MAGIC) + 4
_SIGNATURE = 64
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,127}")
_WORD = re.compile(r"[\x21-\x7e]{1,128}")
_SHAPE = {"study": _DIGEST, "base": _DIGEST, "body": _DIGEST, "run": _NAME, "nonce": _WORD, "version": _WORD}


@dataclass(frozen=True)
class Seal:
    """What a site's signature is over.

    Attributes:
        site: who answers.
        study: digest of the study.
        run, round, nonce: of the instruction that is answered.
        base: digest of the global state that the site started from.
        body: SHA-256 of the body, in hexadecimal digits.
        kind: "reply" (the body is an encoded Reply) or "refusal" (the body says why, in UTF-8).
        version: of Polyclinic at the site.
    """

    site: str
    study: str
    run: str
    round: int
    nonce: str
    base: str
    body: str
    kind: Literal["reply", "refusal"]
    version: str

    def header(self) -> bytes:
        """The canonical form."""
        return rfc8785.dumps(vars(self))


def seal(
    *,
    site: str,
    study: str,
    run: str,
    round: int,  # noqa: A002 -- the field's name
    nonce: str,
    base: str,
    kind: Literal["reply", "refusal"],
    version: str,
    body: bytes,
    key: SigningKey,
) -> bytes:
    """The sealed message.

    Raises:
        UpdateError: a field is not as a reader expects it, or a refusal is longer than 2 KiB.
    """
    made = Seal(site, study, run, round, nonce, base, hashlib.sha256(body).hexdigest(), kind, version)
    _demand(vars(made), len(body))
    header = made.header()
    return b"".join((MAGIC, struct.pack("<I", len(header)), header, key.sign(_CONTEXT + header), body))


def unseal(message: bytes | memoryview) -> tuple[Seal, bytes, memoryview]:
    """The seal, its signature (unchecked: see ``verify``) and the body, which is a view of ``message``.

    Raises:
        UpdateError: it is no sealed message, its header is too long or not as agreed, or the body is another.
    """
    view = memoryview(message).cast("B")
    if len(view) < _START or view[: len(MAGIC)] != MAGIC:
        raise UpdateError("this is no sealed message of this protocol version")
    (length,) = struct.unpack("<I", view[len(MAGIC) : _START])
    if length > HEADER_LIMIT:
        raise UpdateError(f"the seal takes {length} bytes, more than anybody reads")
    if len(view) < _START + length + _SIGNATURE:
        raise UpdateError("the sealed message is cut short")
    header = bytes(view[_START : _START + length])
    signature, body = bytes(view[_START + length :][:_SIGNATURE]), view[_START + length + _SIGNATURE :]
    try:
        document = canonical(header)
    except TrustError as failure:
        raise UpdateError("the seal is no canonical JSON") from failure
    _demand(document, len(body))
    if hashlib.sha256(body).hexdigest() != document["body"]:
        raise UpdateError("the body is not the one that was sealed")
    return Seal(**document), signature, body


def verify(found: Seal, signature: bytes, public: str) -> None:
    """Nothing, if the holder of ``public`` (64 hexadecimal digits) signed this very seal.

    Raises:
        TrustError: the signature is wrong.
    """
    check(public, _CONTEXT + found.header(), signature)


def refusal_text(body: bytes | memoryview) -> str:
    """What a refusal says.

    Raises:
        UpdateError: it is no text.
    """
    try:
        return bytes(body[:REFUSAL_LIMIT]).decode()
    except UnicodeDecodeError as failure:
        raise UpdateError("the refusal is no text") from failure


def _demand(document: dict[str, object], size: int) -> None:
    if document.keys() != {field.name for field in fields(Seal)}:
        raise UpdateError("the seal has other keys than agreed")
    for name, shape in _SHAPE.items():
        value = document[name]
        if not isinstance(value, str) or shape.fullmatch(value) is None:
            raise UpdateError("is not as agreed", where=f"seal.{name}")
    number = document["round"]
    if type(number) is not int or not 0 <= number < 2**31:
        raise UpdateError("is no number of a round", where="seal.round")
    if document["kind"] not in ("reply", "refusal"):
        raise UpdateError("is neither reply nor refusal", where="seal.kind")
    if document["kind"] == "refusal" and size > REFUSAL_LIMIT:
        raise UpdateError(f"a refusal of {size} bytes is longer than {REFUSAL_LIMIT}")
    try:
        demand_site(document["site"])
    except TrustError as failure:
        raise UpdateError(failure.problem, where="seal.site", remedy=failure.remedy) from failure
