"""Targets under a signature or a check sum: nothing but the original may pass."""

from __future__ import annotations

import base64
import hashlib
import json
import struct
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from polyclinic.core import envelope, pki, signing
from polyclinic.core.book import Book, verify_book
from polyclinic.core.invitation import PREFIX, Invitation, read_invitation
from polyclinic.core.signing import Signed, SigningKey
from tests.faults.fuzzing import mutate
from tests.faults.fuzzing.certificates import AUTHORITY, CERTIFICATE, NOW, REQUEST
from tests.faults.fuzzing.data import asked
from tests.faults.fuzzing.mutate import Rng
from tests.faults.fuzzing.target import OTHER, SAME, Target, demand, refusing
from tests.faults.hostile.bench import honest

INVITATION = Invitation("coordinator.example", 9443, 9444, "ab" * 32, "eve", "t" * 43, 1.9e9)


def key() -> SigningKey:
    """The same key every time."""
    return SigningKey(Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"a site's key").digest()))


def sealed(body: bytes, kind: Any) -> bytes:
    """``body`` under a seal."""
    of = honest("eve", asked()[0])
    return envelope.seal(
        site="eve", study=of.study, run="run", round=1, nonce=of.nonce, base=of.base, kind=kind, version="0.1.0",
        body=body, key=key(),
    )  # fmt: skip


def sealed_target(name: str, share: int, body: bytes, kind: str) -> Target:
    """A sealed message: nothing but the original, to the byte, may pass."""
    original, public = sealed(body, kind), key().public

    def judge(data: bytes) -> str:
        found, signature, content = envelope.unseal(data)
        envelope.verify(found, signature, public)
        demand(data == original, f"a changed message was accepted as {found}")
        demand(bytes(content) == body, "the body is another")
        return SAME

    return Target(name, share, original, damaged_seal, refusing(judge))


def damaged_seal(data: bytes, rng: Rng) -> bytes:
    """Damage anywhere; in the header with its length mended; in the body, half the time with its digest mended."""
    (size,) = struct.unpack("<I", data[4:8])
    head, signature, body = data[8 : 8 + size], data[8 + size : 72 + size], data[72 + size :]
    way = rng.randrange(8)
    if way < 2:
        return mutate.blind(data, rng)
    if way < 4:
        head = mutate.json_text(head, rng)
    elif way == 4:
        signature = mutate.blind(signature, rng)
    else:
        body = mutate.message(body, rng) if body[:4] == b"PLC1" else mutate.blind(body, rng)
        if way > 5:
            mended = json.loads(head) | {"body": hashlib.sha256(body).hexdigest()}
            head = json.dumps(mended, separators=(",", ":"), sort_keys=True).encode()
    return data[:4] + struct.pack("<I", len(head)) + head + signature + body


def statement_target() -> Target:
    """A signed statement: nothing but the original passes, and never as another kind."""
    document = {
        "kind": "decision", "site": "eve", "study": "0" * 64, "verb": "approve", "version": "0.1.0", "time": 1.5,
        "backbone_sha256": "1" * 64, "limits": {"rounds": 3, "until": None, "hours": None}, "sequence": 4,
    }  # fmt: skip
    signed = signing.sign(document, key())
    original = signed.signature + signed.document

    def damage(data: bytes, rng: Rng) -> bytes:
        return mutate.blind(data, rng) if rng.random() < 0.3 else data[:64] + mutate.json_text(data[64:], rng)

    def judge(data: bytes) -> str:
        found = Signed(data[64:], key().public, data[:64])
        signing.kind_of(found)
        signing.opened(found, "decision", key().public)
        demand(data == original, "a changed statement was accepted")
        return SAME

    return Target("statement", 6, original, damage, refusing(judge))


def invitation_target() -> Target:
    """An invitation's text: blanks may be added, nothing else changed."""

    def judge(data: bytes) -> str:
        found = read_invitation(data.decode("latin-1"))
        demand(found == INVITATION, f"a changed invitation was accepted as {found}")
        return SAME

    def damage(data: bytes, rng: Rng) -> bytes:
        return mutate.blind(INVITATION.file_text().encode() if rng.random() < 0.2 else data, rng)

    return Target("invitation", 9, INVITATION.text().encode(), damage, refusing(judge))


def forged_invitation_target() -> Target:
    """An invitation that somebody made who knows the form: read as what it says, or refused."""

    def damage(data: bytes, rng: Rng) -> bytes:
        body = data[len(PREFIX) :].split(b".")[0]
        text = mutate.json_text(base64.urlsafe_b64decode(body + b"=" * (-len(body) % 4)), rng)
        total = hashlib.sha256(text).hexdigest()[:16].encode()
        return PREFIX.encode() + base64.urlsafe_b64encode(text).rstrip(b"=") + b"." + total

    def judge(data: bytes) -> str:
        found = read_invitation(data.decode("latin-1"))
        demand(read_invitation(found.text()) == found == read_invitation(found.file_text()), "it does not come back")
        demand(found.host.isprintable() and found.site.isprintable(), f"it holds control characters: {found}")
        return SAME if found == INVITATION else OTHER

    return Target("forged invitation", 6, INVITATION.text().encode(), damage, refusing(judge))


def request_target() -> Target:
    """A signing request in PEM: accepted, it is for the same key; whoever changes the key cannot sign."""
    public = pki.demand_request(REQUEST, "eve")

    def judge(data: bytes) -> str:
        demand(pki.demand_request(data, "eve") == public, "another key was accepted")
        return SAME

    return Target("signing request", 3, REQUEST, damaged_pem, refusing(judge))


def certificate_target() -> Target:
    """A site's certificate in PEM: accepted, it is the one that was issued."""
    unused: Any = None
    authority = pki.Authority(Path(), pki.read_certificate(AUTHORITY), unused, lambda: NOW)
    whole = pki.fingerprint(CERTIFICATE)

    def judge(data: bytes) -> str:
        demand(authority.demand(data) == "eve", "the certificate is for another site")
        demand(pki.fingerprint(data) == whole, "a changed certificate was accepted")
        return SAME

    return Target("certificate", 3, CERTIFICATE, damaged_pem, refusing(judge))


def damaged_pem(data: bytes, rng: Rng) -> bytes:
    """Damage to the text, or to the bytes behind it with their armour mended."""
    if rng.random() < 0.3:
        return mutate.blind(data, rng)
    lines = data.decode().splitlines()
    body = mutate.blind(base64.b64decode("".join(lines[1:-1])), rng)
    text = base64.b64encode(body).decode()
    wrapped = [text[i : i + 64] for i in range(0, len(text), 64)]
    return "\n".join([lines[0], *wrapped, lines[-1], ""]).encode()


def book_target(folder: Path) -> Target:
    """The copy of a signed book: with its head known from elsewhere, no change goes unseen."""
    path = folder / "ledger.jsonl"
    book = Book(folder, key(), lambda: NOW)
    for number in range(4):
        book.append("refusal", {"site": "eve", "round": number, "why": "not approved"})
    head = book.head()
    book.close()
    original = path.read_bytes()
    path.unlink()

    def judge(data: bytes) -> str:
        path.write_bytes(data)
        verify_book(folder, key().public, head)
        demand(data == original, "a changed book was accepted")
        return SAME

    def damage(data: bytes, rng: Rng) -> bytes:
        if rng.random() < 0.4:
            return mutate.blind(data, rng)
        lines = data.splitlines(keepends=True)
        at = rng.randrange(len(lines))
        lines[at] = mutate.json_text(lines[at].rstrip(b"\n"), rng) + b"\n"
        return b"".join(rng.sample(lines, len(lines)) if rng.random() < 0.1 else lines)

    return Target("signed book", 3, original, damage, refusing(judge))
