"""Sealed replies: what was sealed comes out, and nothing else does."""

from __future__ import annotations

import hashlib
import json
import struct
from typing import Any

import pytest
import rfc8785
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from polyclinic.core.envelope import refusal_text, seal, unseal, verify
from polyclinic.core.errors import TrustError, UpdateError
from polyclinic.core.signing import SigningKey

KEY = SigningKey.new()
FIELDS: dict[str, Any] = {
    "site": "St Mary 2",
    "study": "a" * 64,
    "run": "chest-0a1b2c3d",
    "round": 3,
    "nonce": "f" * 32,
    "base": "b" * 64,
    "kind": "reply",
    "version": "0.1.0",
}
MESSAGE = seal(**FIELDS, body=b"what was learned", key=KEY)


def forged(header: bytes, body: bytes = b"") -> bytes:
    """A message with any header, signed all the same."""
    signature = KEY.sign(b"polyclinic/reply\x00" + header)
    return b"PLS1" + struct.pack("<I", len(header)) + header + signature + body


def accept(message: bytes) -> None:
    """What a server does with a message."""
    found, signature, _ = unseal(message)
    verify(found, signature, KEY.public)


def header(body: bytes = b"", **changes: Any) -> bytes:
    """A header as it should be, but for some changes; None takes a key away."""
    fields = FIELDS | {"body": hashlib.sha256(body).hexdigest()} | changes
    return rfc8785.dumps({key: value for key, value in fields.items() if value is not None})


@given(st.binary(max_size=300))
def test_what_was_sealed_comes_out(body: bytes) -> None:
    found, signature, view = unseal(memoryview(seal(**FIELDS, body=body, key=KEY)))
    verify(found, signature, KEY.public)
    assert bytes(view) == body
    assert vars(found) == FIELDS | {"body": hashlib.sha256(body).hexdigest()}


def test_layout_and_signature_as_documented() -> None:
    (length,) = struct.unpack("<I", MESSAGE[4:8])
    text, signature, body = MESSAGE[8 : 8 + length], MESSAGE[8 + length :][:64], MESSAGE[72 + length :]
    assert (MESSAGE[:4], body) == (b"PLS1", b"what was learned")
    assert json.loads(text)["body"] == hashlib.sha256(body).hexdigest()
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(KEY.public))
    public.verify(signature, b"polyclinic/reply\x00" + text)  # raises if wrong


def test_the_body_is_a_view_and_no_copy() -> None:
    buffer = bytearray(MESSAGE)
    _, _, body = unseal(memoryview(buffer))
    buffer[-1] ^= 1
    assert bytes(body) == b"what was learnee"


@given(st.integers(0, 10**6), st.integers(1, 255))
def test_no_flipped_byte_passes(place: int, flip: int) -> None:
    message = bytearray(MESSAGE)
    message[place % len(message)] ^= flip
    with pytest.raises((UpdateError, TrustError)):
        accept(bytes(message))


@given(st.data())
def test_no_cut_insertion_or_repetition_passes(data: st.DataObject) -> None:
    a, b = sorted(data.draw(st.tuples(st.integers(0, len(MESSAGE)), st.integers(0, len(MESSAGE)))))
    message = MESSAGE[:a] + data.draw(st.binary(max_size=8)) + MESSAGE[b:] * data.draw(st.integers(0, 2))
    if message == MESSAGE:
        return
    with pytest.raises((UpdateError, TrustError)):
        accept(message)


def test_swapped_body() -> None:
    with pytest.raises(UpdateError, match="not the one that was sealed"):
        unseal(MESSAGE[: -len(b"what was learned")] + b"something else!!")


def test_another_sites_signature() -> None:
    found, signature, _ = unseal(MESSAGE)
    with pytest.raises(TrustError, match="signature is wrong"):
        verify(found, signature, SigningKey.new().public)


def test_a_seal_taken_from_another_message() -> None:
    other = unseal(seal(**FIELDS | {"round": 4}, body=b"what was learned", key=KEY))
    with pytest.raises(TrustError, match="signature is wrong"):
        verify(unseal(MESSAGE)[0], other[1], KEY.public)


@pytest.mark.parametrize("message", [b"", b"PLS", b"PLS2" + MESSAGE[4:], b"\x80\x04pickle", MESSAGE[1:]])
def test_no_message_of_ours(message: bytes) -> None:
    with pytest.raises(UpdateError, match="no sealed message"):
        unseal(message)


def test_lying_lengths() -> None:
    with pytest.raises(UpdateError, match="more than anybody reads"):
        unseal(b"PLS1" + struct.pack("<I", 2**32 - 1) + MESSAGE[8:])
    with pytest.raises(UpdateError, match="cut short"):
        unseal(b"PLS1" + struct.pack("<I", 4096) + MESSAGE[8:])
    with pytest.raises(UpdateError, match="cut short"):
        unseal(MESSAGE[:100])


@pytest.mark.parametrize("text", [b"", b"{}  ", b"null", b"[" * 4000, b"\xff\xff", header() + b" ", b'{"a":1,"a":1}'])
def test_headers_that_are_no_canonical_json(text: bytes) -> None:
    with pytest.raises(UpdateError, match="JSON"):
        unseal(forged(text))


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"site": "../etc"}, "seal.site"),
        ({"site": "a" * 65}, "seal.site"),
        ({"site": 3}, "seal.site"),
        ({"study": "A" * 64}, "seal.study"),
        ({"run": "../runs"}, "seal.run"),
        ({"run": "a/b"}, "seal.run"),
        ({"run": ""}, "seal.run"),
        ({"round": -1}, "seal.round"),
        ({"round": True}, "seal.round"),
        ({"round": 2**31}, "seal.round"),
        ({"round": 1.5}, "seal.round"),
        ({"nonce": "a b"}, "seal.nonce"),
        ({"base": "b" * 63}, "seal.base"),
        ({"kind": "order"}, "seal.kind"),
        ({"version": "v" * 129}, "seal.version"),
    ],
)
def test_fields_that_are_not_as_agreed(changes: dict[str, Any], where: str) -> None:
    with pytest.raises(UpdateError) as raised:
        unseal(forged(header(**changes)))
    assert raised.value.where == where
    with pytest.raises(UpdateError):  # nor can it be sealed by mistake
        seal(**FIELDS | changes, body=b"", key=KEY)


@pytest.mark.parametrize("changes", [{"extra": 1}, {"nonce": None}])
def test_other_keys(changes: dict[str, Any]) -> None:
    with pytest.raises(UpdateError, match="other keys"):
        unseal(forged(header(**changes)))


def test_refusals_are_short_texts() -> None:
    said = FIELDS | {"kind": "refusal"}
    _, _, body = unseal(seal(**said, body="zu früh".encode(), key=KEY))
    assert refusal_text(body) == "zu früh"
    with pytest.raises(UpdateError, match="longer"):
        seal(**said, body=b"a" * 2049, key=KEY)
    long = b"a" * 2049
    with pytest.raises(UpdateError, match="longer"):
        unseal(forged(header(long, kind="refusal"), long))
    with pytest.raises(UpdateError, match="no text"):
        refusal_text(b"\xff")
