"""Sealed replies from hostile sites and from whoever stands in between: each refused with its own reason."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from polyclinic.core.envelope import seal
from polyclinic.core.messages import Reply, decode_instruction, encode_instruction, encode_reply, peek
from polyclinic.core.signing import SigningKey
from polyclinic.core.update import digest
from polyclinic.core.version import VERSION
from polyclinic.server.live.sites import opened
from polyclinic.server.receive import Delivery
from tests.faults.fuzzing.data import asked
from tests.faults.hostile.bench import Honest, honest, play
from tests.faults.hostile.forge import ESCAPE

KEYS = {site: SigningKey.new() for site in ("bob", "eve", "zoe", "stranger")}
INSTRUCTION = asked()[0]
ASKED = peek(encode_instruction(INSTRUCTION))


def sealed(reply: Reply, key: str = "eve", body: bytes | None = None, kind: Any = "reply", **other: Any) -> bytes:
    """What a site sends; ``other`` is what the seal says instead."""
    told: dict[str, Any] = {name: getattr(reply, name) for name in ("site", "study", "run", "round", "nonce", "base")}
    content = encode_reply(reply) if body is None else body
    return seal(**{**told, "version": VERSION, "kind": kind, **other}, body=content, key=KEYS[key])


GOOD = honest("eve", INSTRUCTION)
WHOLE = sealed(GOOD)
(SIZE,) = struct.unpack("<I", WHOLE[4:8])
HEADER, SIGNATURE, BODY = WHOLE[8 : 8 + SIZE], WHOLE[8 + SIZE : 72 + SIZE], WHOLE[72 + SIZE :]
ELSE = encode_reply(replace(GOOD, seconds=0.25))


def joined(header: bytes = HEADER, signature: bytes = SIGNATURE, body: bytes = BODY, size: int | None = None) -> bytes:
    return WHOLE[:4] + struct.pack("<I", len(header) if size is None else size) + header + signature + body


HOSTILE: dict[str, tuple[bytes, str]] = {
    "an unknown key": (sealed(GOOD, key="stranger"), r"the signature is wrong"),
    "another site's key": (sealed(GOOD, key="bob"), r"the signature is wrong"),
    "another site's reply, as it was sealed": (
        sealed(honest("bob", INSTRUCTION), key="bob"), r"the signature is wrong",
    ),
    "another site's name under the own key": (sealed(GOOD, site="bob"), r"reply carries another site's name"),
    "another site's reply under the own key": (
        sealed(honest("bob", INSTRUCTION)), r"reply carries another site's name",
    ),
    "a swapped body": (joined(body=ELSE), r"the body is not the one that was sealed"),
    "a swapped body with its digest": (
        joined(sealed(replace(GOOD, seconds=0.25))[8 : 8 + SIZE], body=ELSE), r"the signature is wrong",
    ),
    "a body cut short": (joined(body=BODY[:-1]), r"the body is not the one that was sealed"),
    "a body with more behind it": (joined(body=BODY + b"x"), r"the body is not the one that was sealed"),
    "no body": (joined(body=b""), r"the body is not the one that was sealed"),
    "no signature": (joined(signature=b"", body=b""), r"the sealed message is cut short"),
    "a signature of zeros": (joined(signature=b"\0" * 64), r"the signature is wrong"),
    "a signature with one bit turned": (
        joined(signature=bytes([SIGNATURE[0] ^ 1]) + SIGNATURE[1:]), r"the signature is wrong",
    ),
    "a signature over another thing": (joined(signature=KEYS["eve"].sign(HEADER)), r"the signature is wrong"),
    "replay: another study": (sealed(GOOD, study="0" * 64), r"reply is to another study"),
    "replay: another run": (sealed(GOOD, run="else"), r"reply is to another run"),
    "replay: another round": (sealed(GOOD, round=2), r"reply is to another round"),
    "replay: another nonce": (sealed(GOOD, nonce="0"), r"reply is to another nonce"),
    "replay: another base": (sealed(GOOD, base="0" * 64), r"reply is to another base"),
    "a future version": (sealed(GOOD, version="99.0.0"), r"the site has version 99\.0\.0, the run "),
    "a reply without a seal": (BODY, r"this is no sealed message of this protocol version"),
    "another magic": (b"PLS2" + WHOLE[4:], r"this is no sealed message of this protocol version"),
    "nothing": (b"", r"this is no sealed message of this protocol version"),
    "a header of 3 GB": (joined(size=3 * 10**9), r"the seal takes 3000000000 bytes"),
    "a header longer than all": (joined(size=4096, body=b""), r"the sealed message is cut short"),
    "a header of blanks": (joined(header=b" " + HEADER), r"the seal is no canonical JSON"),
    "a key twice in the header": (joined(header=b'{"base":"0",' + HEADER[1:]), r"the seal is no canonical JSON"),
    "a header that is no JSON": (joined(header=b"x" * SIZE), r"the seal is no canonical JSON"),
    "text in the header": (
        joined(header=HEADER[:-1] + b',"z":"Jane Doe"}'), r"the seal has other keys than agreed",
    ),
    "escapes in the header": (
        joined(header=HEADER.replace(b'"eve"', b'"' + ESCAPE.encode() + b'"').replace(b"\x1b", b"\\u001b")),
        r"seal\.site: is no name for a site",
    ),
    "a round of text": (joined(header=HEADER.replace(b'"round":1', b'"round":"1"')), r"seal\.round: is no number"),
    "a refusal that is a reply": (sealed(GOOD, kind="refusal", body=b"\xff\xfe"), r"the refusal is no text"),
    "a refusal of escapes": (sealed(GOOD, kind="refusal", body=ESCAPE.encode()), r"^refused: [\x20-\x7e]+$"),
    "a refusal of an empty text": (sealed(GOOD, kind="refusal", body=b""), r"^refused: $"),
}  # fmt: skip


def test_the_honest_one_is_believed_and_leaves_a_proof() -> None:
    found = opened("eve", WHOLE, KEYS["eve"].public, ASKED)
    assert (found.failure, found.message) == ("", encode_reply(GOOD))
    assert found.proof


@pytest.mark.parametrize("name", HOSTILE)
def test_it_is_refused_with_its_own_reason(name: str) -> None:
    message, reason = HOSTILE[name]
    found = opened("eve", message, KEYS["eve"].public, ASKED)
    assert found.message is None
    assert re.search(reason, found.failure)
    assert found.failure.isprintable()
    assert len(found.failure) <= 520
    assert "Jane Doe" not in found.failure


def test_every_bit_of_a_sealed_message_counts() -> None:
    for at in range(0, len(WHOLE)):
        changed = bytearray(WHOLE)
        changed[at] ^= 1 << (at % 8)
        assert opened("eve", bytes(changed), KEYS["eve"].public, ASKED).message is None


def test_every_length_but_the_whole_is_refused() -> None:
    for size in range(0, len(WHOLE), 7):
        assert opened("eve", WHOLE[:size], KEYS["eve"].public, ASKED).message is None


class Sealing(Honest):
    """Sites whose replies come through a wire on which ``tamper`` may change them."""

    def __init__(self, names: Sequence[str], tamper: object) -> None:
        super().__init__(names)
        self._tamper = tamper

    def send(self, message: bytes, to: Sequence[str], deadline: float) -> Iterator[Delivery]:
        fields, instruction = peek(message), decode_instruction(message)
        for site in to:
            sent = sealed(honest(site, instruction), key=site)
            for arrived in self._tamper(site, instruction.round, sent):  # type: ignore[operator]
                yield opened(site, arrived, KEYS[site].public, fields)


def test_a_whole_run_over_a_hostile_wire_ends_at_the_same_bits() -> None:
    kept: list[bytes] = []

    def tamper(site: str, number: int, sent: bytes) -> list[bytes]:
        kept.append(sent)
        return [sent[:-1], kept[0], sent, sent, kept[-1][::-1], kept[number % len(kept)]]

    names = ["bob", "eve", "zoe"]
    expected, _ = play(Honest(names))
    found, journal = play(Sealing(names, tamper))
    assert digest(found.tensors) == digest(expected.tensors)
    assert all(record["excluded"] == {} for record in journal.rounds())


def test_a_site_whose_key_is_not_known_takes_no_part() -> None:
    def tamper(site: str, number: int, sent: bytes) -> list[bytes]:
        return [sent if site != "eve" else sent.replace(sent[8 : 8 + 20], sent[8 : 8 + 20][::-1])]

    expected, _ = play(Honest(["bob", "zoe"]))
    found, journal = play(Sealing(["bob", "eve", "zoe"], tamper))
    assert digest(found.tensors) == digest(expected.tensors)
    assert [list(record["excluded"]) for record in journal.rounds()] == [["eve"], ["eve"]]
