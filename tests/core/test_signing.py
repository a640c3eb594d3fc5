"""Statements and keys, against cryptography's own verifier and the curve's arithmetic."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest
import rfc8785
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from polyclinic.core import signing
from polyclinic.core.errors import RunError, TrustError
from polyclinic.core.signing import Signed, SigningKey, check, demand_key, demand_site, kind_of, opened, sign

KEY = SigningKey.new()
P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P


def test_statement_round_trip() -> None:
    document = {"kind": "head", "site": "north", "sequence": 7, "time": 1.5, "more": {"a": [1, None, True, "é"]}}
    signed = sign(document, KEY)
    assert opened(signed, "head", KEY.public) == document
    assert signed.document == rfc8785.dumps(document)
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(KEY.public))
    public.verify(signed.signature, b"polyclinic/statement\x00" + signed.document)  # raises if wrong
    assert kind_of(signed) == "head"


@pytest.mark.parametrize("document", [{}, {"kind": 1}, {"kind": "x", "a": float("nan")}, {"kind": "x", "a": {1}}])
def test_what_is_no_statement_is_not_signed(document: dict[str, object]) -> None:
    with pytest.raises(TrustError):
        sign(document, KEY)


def test_a_long_statement_is_neither_signed_nor_opened() -> None:
    with pytest.raises(TrustError, match="longer"):
        sign({"kind": "x", "a": "a" * signing.LIMIT}, KEY)
    with pytest.raises(TrustError, match="too long"):
        opened(Signed(b" " * (signing.LIMIT + 1), KEY.public, b""), "x", KEY.public)


def test_each_flaw_has_its_reason() -> None:
    signed, other = sign({"kind": "head", "a": 1}, KEY), SigningKey.new()
    with pytest.raises(TrustError, match="another key"):
        opened(signed, "head", other.public)
    with pytest.raises(TrustError, match="signature is wrong"):
        opened(replace(signed, signer=other.public), "head", other.public)
    with pytest.raises(TrustError, match="no receipt"):
        opened(signed, "receipt", KEY.public)
    for text in (b'{"kind": "head"}', b'{"kind":"head","kind":"head"}', b'["head"]', b"\xff", b"[" * 5000):
        forged = Signed(text, KEY.public, KEY.sign(b"polyclinic/statement\x00" + text))
        with pytest.raises(TrustError, match="JSON"):
            opened(forged, "head", KEY.public)


def test_a_signature_for_something_else_does_not_pass() -> None:
    document = rfc8785.dumps({"kind": "head"})
    with pytest.raises(TrustError, match="signature is wrong"):
        opened(Signed(document, KEY.public, KEY.sign(document)), "head", KEY.public)


@given(st.integers(0, 10**6), st.integers(1, 255))
def test_no_mutation_of_a_statement_passes(place: int, flip: int) -> None:
    signed = sign({"kind": "head", "site": "north", "sequence": 12, "time": 5.25}, KEY)
    whole = bytearray(signed.document + signed.signature)
    whole[place % len(whole)] ^= flip
    cut = len(signed.document)
    with pytest.raises(TrustError):
        opened(Signed(bytes(whole[:cut]), KEY.public, bytes(whole[cut:])), "head", KEY.public)


def test_keys_are_kept_for_their_owner_alone(tmp_path: Path) -> None:
    path, before = tmp_path / "signing.key", os.umask(0)
    try:
        KEY.save(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SigningKey.load(path).public == KEY.public
    assert [file.name for file in tmp_path.iterdir()] == ["signing.key"]
    path.chmod(0o640)
    with pytest.raises(TrustError, match="read by others"):
        SigningKey.load(path)


def test_keys_that_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(TrustError, match="cannot be read"):
        SigningKey.load(tmp_path / "nowhere")
    path = tmp_path / "key"
    signing.write_secret(path, b"no key")
    with pytest.raises(TrustError, match="no private key"):
        SigningKey.load(path)
    other = ec.generate_private_key(ec.SECP384R1())
    signing.write_secret(path, other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(TrustError, match="no Ed25519 key"):
        SigningKey.load(path)


def test_a_secret_is_written_over_what_a_killed_process_left(tmp_path: Path) -> None:
    (tmp_path / f".key.{os.getpid()}.part").write_bytes(b"half")
    signing.write_secret(tmp_path / "key", b"whole")
    assert (tmp_path / "key").read_bytes() == b"whole"
    with pytest.raises(RunError, match="cannot be written"):
        signing.write_secret(tmp_path / "no" / "key", b"")


@pytest.mark.parametrize("public", ["", "0" * 63, "G" * 64, KEY.public.upper(), "0" * 65, KEY.public + "\n"])
def test_what_is_no_public_key(public: str) -> None:
    with pytest.raises(TrustError, match="64 hexadecimal"):
        check(public, b"", bytes(64))


def _add(one: tuple[int, int], other: tuple[int, int]) -> tuple[int, int]:
    (a, b), (c, d) = one, other
    t = D * a * c * b * d % P
    return (a * d + b * c) * pow(1 + t, -1, P) % P, (b * d + a * c) * pow(1 - t, -1, P) % P


def _small_order() -> set[bytes]:
    """Every encoding, canonical or not, of a point that eight additions bring to nothing."""
    found = set()
    for y in [*range(64), *range(P - 64, P), *(int(half, 16) for half in _halves())]:
        square = (y * y - 1) * pow(D * y * y + 1, -1, P) % P
        x = pow(square, (P + 3) // 8, P)
        x = x if x * x % P == square else x * pow(2, (P - 1) // 4, P) % P
        if x * x % P != square:
            continue
        point = eight = (x, y)
        for _ in range(3):
            eight = _add(eight, eight)
        if eight == (0, 1):
            found |= {
                (value | sign << 255).to_bytes(32, "little")
                for value in (point[1], point[1] + P)
                for sign in (0, 1)
                if value < 2**255
            }
    return found


def _halves() -> list[str]:
    """y of the points of order 8: their double has y = 0, so x² = −y², which lies on the curve if 2 y² = 1 − D y⁴."""
    root = _root((1 + D) % P)
    squares = [(-1 + sign * root) * pow(D, -1, P) % P for sign in (1, -1)]
    ys = [_root(s) for s in squares if pow(s, (P - 1) // 2, P) == 1]
    return [hex(y) for y in ys] + [hex(P - y) for y in ys]


def _root(square: int) -> int:
    x = pow(square, (P + 3) // 8, P)
    return x if x * x % P == square else x * pow(2, (P - 1) // 4, P) % P


def test_keys_of_small_order_are_refused_and_no_others() -> None:
    small = _small_order()
    assert len(small) == 14  # eight points, some with more than one encoding
    for key in small:
        with pytest.raises(TrustError, match="small order"):
            demand_key(key.hex())
    assert demand_key(KEY.public) == KEY.public


@pytest.mark.parametrize(
    "name", ["", " a", "../a", "a/b", "a\\b", ".", "..", "a\x00", "a\n", "é", "a" * 65, 7, None, "-a", "a%2e"]
)
def test_names_that_no_site_bears(name: object) -> None:
    with pytest.raises(TrustError, match="no name for a site"):
        demand_site(name)


@settings(max_examples=50)
@given(st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}\Z"))
def test_names_that_sites_bear(name: str) -> None:
    assert demand_site(name) == name
    assert json.loads(sign({"kind": "x", "site": name}, KEY).document)["site"] == name
