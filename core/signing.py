"""Signed statements: small JSON documents that anybody can check against a public key, now and years later."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from polyclinic.core import files
from polyclinic.core.errors import TrustError

LIMIT = 64 * 2**10
"""Bytes of a statement's document."""
_CONTEXT = b"polyclinic/statement\x00"
_KEY = re.compile(r"[0-9a-f]{64}")
_SMALL = {
    bytes.fromhex(low.ljust(62, fill) + high)
    for low, fill, high in (
        ("00", "0", "00"),
        ("01", "0", "00"),
        ("ec", "f", "7f"),
        ("ed", "f", "7f"),
        ("ee", "f", "7f"),
        ("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc", "0", "05"),
        ("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03", "0", "7a"),
    )
}
"""Encodings of all points whose order divides 8, less the bit for the sign."""
_SITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}")


class SigningKey:
    """An Ed25519 key: whoever holds it can sign, everybody can check."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private

    @staticmethod
    def new() -> SigningKey:
        """A fresh key from the operating system's randomness."""
        return SigningKey(Ed25519PrivateKey.generate())

    @staticmethod
    def load(path: Path) -> SigningKey:
        """Raises TrustError if ``path`` cannot be read, is no Ed25519 key, or may be read by others."""
        private = load_private_key(path)
        if not isinstance(private, Ed25519PrivateKey):
            raise TrustError("is no Ed25519 key", where=str(path))
        return SigningKey(private)

    def save(self, path: Path) -> None:
        """Writes the key to ``path``, readable by its owner alone."""
        write_secret(path, self._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))

    @property
    def public(self) -> str:
        """The public key: 64 hexadecimal digits."""
        return self._private.public_key().public_bytes_raw().hex()

    def sign(self, message: bytes) -> bytes:
        """The signature: 64 bytes."""
        return self._private.sign(message)


@dataclass(frozen=True)
class Signed:
    """A statement and who made it; nothing is known about it before ``opened``.

    Attributes:
        document: canonical JSON (RFC 8785).
        signer: public key, 64 hexadecimal digits.
        signature: 64 bytes.
    """

    document: bytes
    signer: str
    signature: bytes


def sign(document: Mapping[str, Any], key: SigningKey) -> Signed:
    """A statement of ``document``, whose "kind" says what it is; whole floats come back as integers.

    Raises:
        TrustError: it has no kind, is no JSON, or is longer than 64 KiB.
    """
    if not isinstance(document.get("kind"), str):
        raise TrustError("a statement needs a kind")
    try:
        text = rfc8785.dumps(dict(document))
    except (rfc8785.CanonicalizationError, RecursionError) as failure:
        raise TrustError(f"a statement must be JSON data: {failure}") from failure
    if len(text) > LIMIT:
        raise TrustError(f"a statement of {len(text)} bytes is longer than {LIMIT}")
    return Signed(text, key.public, key.sign(_CONTEXT + text))


def opened(signed: Signed, kind: str, signer: str) -> dict[str, Any]:
    """What the statement says, after everything about it was checked.

    Raises:
        TrustError: too long, another signer, a wrong signature, no canonical JSON, another kind.
    """
    if len(signed.document) > LIMIT:
        raise TrustError("the statement is too long")
    if signed.signer != signer:
        raise TrustError("the statement is signed by another key than expected")
    check(signer, _CONTEXT + signed.document, signed.signature)
    document = canonical(signed.document)
    if document.get("kind") != kind:
        raise TrustError(f"the statement is no {kind}")
    return document


def kind_of(signed: Signed) -> str:
    """The kind that a statement claims to be of, unchecked but for its form; "" if it has none."""
    kind = canonical(signed.document).get("kind") if len(signed.document) <= LIMIT else None
    return kind if isinstance(kind, str) else ""


def check(public: str, message: bytes, signature: bytes) -> None:
    """Nothing, if ``signature`` over ``message`` is by the key ``public`` (64 hexadecimal digits).

    Raises:
        TrustError: the signature is wrong, or the key is none.
    """
    try:
        _public(public).verify(signature, message)
    except InvalidSignature as failure:
        raise TrustError("the signature is wrong") from failure


def demand_key(public: str) -> str:
    """``public``, if it is a key under which a signature proves anything.

    Raises:
        TrustError: it is no public key, or one of the few of small order, for which anybody can sign.
    """
    _public(public)
    content = bytes.fromhex(public)
    if content[:-1] + bytes([content[-1] & 0x7F]) in _SMALL:
        raise TrustError("the signing key is of small order: anybody can sign for it")
    return public


def demand_site(name: object) -> str:
    """``name``, if a site may bear it.

    Raises:
        TrustError: it is no text of 1 to 64 letters, digits, spaces, dots, dashes and underscores.
    """
    if not isinstance(name, str) or _SITE.fullmatch(name) is None:
        remedy = "1 to 64 letters, digits, spaces, dots, dashes and underscores; a letter or digit comes first"
        raise TrustError("is no name for a site", where=repr(name)[:80], remedy=remedy)
    return name


def canonical(text: bytes) -> dict[str, Any]:
    """The JSON object that ``text`` is the canonical form of.

    Raises:
        TrustError: it is no JSON object, or not in the one form that RFC 8785 allows.
    """
    try:
        document = json.loads(text)
        same = isinstance(document, dict) and rfc8785.dumps(document) == text
    except (ValueError, RecursionError) as failure:
        raise TrustError("the document is no JSON") from failure
    if not same:
        raise TrustError("the document is no canonical JSON object")
    found: dict[str, Any] = document
    return found


def write_secret(path: Path, content: bytes) -> None:
    """Replaces ``path`` atomically by a file that its owner alone may read.

    Raises:
        RunError: the place cannot be written.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    with files.explained(path):
        try:
            beside.unlink(missing_ok=True)  # left by a process of this number that was killed
            handle = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with os.fdopen(handle, "wb") as out:
                out.write(content)
                out.flush()
                os.fsync(out.fileno())
            beside.replace(path)
            files.sync_folder(path.parent)
        finally:
            beside.unlink(missing_ok=True)


def load_private_key(path: Path) -> object:
    """The private key in ``path``.

    Raises:
        TrustError: it cannot be read, is no key, or others may read it.
    """
    try:
        with path.open("rb") as source:
            if os.fstat(source.fileno()).st_mode & 0o077:
                raise TrustError("may be read by others", where=str(path), remedy=f"chmod 600 {path}")
            return load_pem_private_key(source.read(LIMIT), None)
    except OSError as failure:
        raise TrustError(f"cannot be read: {failure.strerror or failure}", where=str(path)) from failure
    except (ValueError, TypeError) as failure:
        raise TrustError("is no private key", where=str(path)) from failure


def _public(public: str) -> Ed25519PublicKey:
    if _KEY.fullmatch(public) is None:
        raise TrustError("a public key is 64 hexadecimal digits in lower case")
    return Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))
