"""Messages come back as they were sent, and whatever else arrives is refused with an UpdateError."""

from __future__ import annotations

import json
import struct
import time
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from polyclinic.core import messages
from polyclinic.core.errors import UpdateError
from polyclinic.core.messages import (
    HEADER_LIMIT,
    MAGIC,
    Instruction,
    Reply,
    decode_instruction,
    decode_reply,
    encode_instruction,
    encode_reply,
)
from polyclinic.core.privacy.receipt import Receipt
from polyclinic.core.statistics.monoid import Withheld
from polyclinic.core.statistics.outcome import tally
from polyclinic.core.statistics.shift import Labels
from polyclinic.core.update import Update, digest, encode
from polyclinic.core.version import VERSION

TENSORS = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b.lora_A": np.zeros(1, np.float32)}
OUTCOME = tally("binary", np.array([0.2, 0.9]), np.array([0, 1]), ["p", "q"], np.array([0.1, 0.2]))
STATISTICS = {
    "incoming/val": OUTCOME,
    "fitted/val": Withheld("outcome", 10),
    "describe/labels": Labels.of(np.array([0, 1, 1]), ["p", "q", "q"], ("no", "yes")),
}
INSTRUCTION = Instruction("s", "r", 1, "n", digest(TENSORS), True, ("val",), False, VERSION, TENSORS)
REPLY = Reply(
    "north", "s", "r", 1, "n", digest(TENSORS), Update("north", 5, TENSORS), STATISTICS, {"train": (5, 4)}, 1.5
)
RECEIPT = Receipt("patient", 1e-5, 0.5, 1.0, "Gaussian noise", "0" * 64, "system")
QUIET = Reply("north", "s", "r", 1, "n", digest(TENSORS), None, {}, {}, 0.0)

Decode = Callable[[bytes], Any]
tensors = st.dictionaries(
    st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
    npst.arrays(np.float32, npst.array_shapes(min_dims=0, max_dims=3, max_side=4)),
    max_size=3,
)
whole = st.integers(0, 2**40 - 1)


def bits(arrays: Any) -> dict[str, tuple[Any, ...]]:
    return {name: (array.dtype, array.shape, array.tobytes()) for name, array in arrays.items()}


@given(
    st.builds(
        Instruction,
        study=st.text(), run=st.text(), round=st.integers(), nonce=st.text(), base=st.text(), fit=st.booleans(),
        evaluate=st.lists(st.text()).map(tuple), describe=st.booleans(), tensors=tensors,
    )
)  # fmt: skip
def test_instructions_come_back_to_the_bit(instruction: Instruction) -> None:
    message = encode_instruction(instruction)
    back = decode_instruction(message)
    assert bits(back.tensors) == bits(instruction.tensors)
    assert {**vars(back), "tensors": 0} == {**vars(instruction), "tensors": 0}
    assert encode_instruction(back) == message


@given(
    st.builds(
        Reply,
        site=st.text(), study=st.text(), run=st.text(), round=st.integers(), nonce=st.text(), base=st.text(),
        update=st.none() | st.builds(Update, st.just("x"), st.integers(), tensors),
        statistics=st.dictionaries(st.text(), st.sampled_from(list(STATISTICS.values()))),
        sizes=st.dictionaries(st.sampled_from(["train", "val", "test"]), st.tuples(whole, whole)),
        seconds=st.floats(allow_nan=False, allow_infinity=False),
        receipt=st.none() | st.just(RECEIPT),
    )
)  # fmt: skip
def test_replies_come_back_to_the_bit(reply: Reply) -> None:
    back = decode_reply(encode_reply(reply))
    if reply.update is not None:
        assert back.update is not None
        assert (back.update.site, back.update.weight) == (reply.site, reply.update.weight)
        assert bits(back.update.tensors) == bits(reply.update.tensors)
    else:
        assert back.update is None
    assert {**vars(back), "update": 0} == {**vars(reply), "update": 0}


def header_of(message: bytes) -> tuple[dict[str, Any], bytes]:
    (length,) = struct.unpack("<I", message[4:8])
    return json.loads(zlib.decompress(message[8 : 8 + length])), message[8 + length :]


def packed(header: object, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    squeezed = zlib.compress(text)
    return MAGIC + struct.pack("<I", len(squeezed)) + squeezed + body


GOOD, BODY = header_of(encode_reply(REPLY))
ASKED, STATE = header_of(encode_instruction(INSTRUCTION))


def test_the_forgeries_below_are_good_before_they_are_changed() -> None:
    assert decode_reply(packed(GOOD, BODY)).statistics == REPLY.statistics
    assert decode_instruction(packed(ASKED, STATE)).evaluate == ("val",)


def nested(depth: int) -> list[Any]:
    result: list[Any] = []
    for _ in range(depth):
        result = [result]
    return result


@pytest.mark.parametrize(
    "change",
    [
        {"site": 1}, {"site": None}, {"study": ["s"]}, {"round": True}, {"round": 1.0}, {"round": "1"},
        {"seconds": True}, {"seconds": "1"}, {"seconds": float("nan")}, {"seconds": float("inf")},
        {"seconds": 10**400}, {"weight": None}, {"weight": True}, {"weight": 1.5}, {"weight": "5"},
        {"sizes": []}, {"sizes": {"train": [1]}}, {"sizes": {"train": [1, True]}}, {"sizes": {"train": [1, -1]}},
        {"sizes": {"train": [1, 2**40]}}, {"sizes": {"all": [1, 1]}}, {"sizes": {"train": {"0": 1, "1": 1}}},
        {"statistics": []}, {"statistics": {"a": 1}}, {"statistics": {"a": {"kind": "outcome"}}},
        {"statistics": {"a": {"kind": "spy", "fields": {}}}}, {"statistics": {"a": {"kind": [], "fields": {}}}},
        {"statistics": {"a": {"kind": "outcome", "withheld": True}}},
        {"statistics": {"a": {"kind": "outcome", "fields": GOOD["statistics"]["incoming/val"]["fields"] | {"x": 1}}}},
        {"more": 1},
    ],
)  # fmt: skip
def test_replies_with_a_forged_header_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UpdateError):
        decode_reply(packed(GOOD | change, BODY))


@pytest.mark.parametrize("depth", [40, 200, 400, 600, 900, 100_000])
def test_lists_nested_deep_are_refused_at_any_depth(depth: int) -> None:
    fields = GOOD["statistics"]["describe/labels"]["fields"]
    holed = GOOD | {"statistics": {"a": {"kind": "labels", "fields": fields | {"class_images": "HOLE"}}}}
    text = json.dumps(holed).replace('"HOLE"', "[" * depth + "]" * depth).encode()
    with pytest.raises(UpdateError):
        decode_reply(packed(text, BODY))


@pytest.mark.parametrize(
    "change", [{"fit": 1}, {"fit": None}, {"describe": "no"}, {"round": False}, {"evaluate": "val"}]
)
def test_instructions_with_a_forged_header_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UpdateError):
        decode_instruction(packed(ASKED | change, STATE))


@pytest.mark.parametrize("splits", [[1], [["val"]], [None], [{}]])
def test_splits_are_words(splits: list[Any]) -> None:
    with pytest.raises(UpdateError, match="evaluate: is no list of splits"):
        decode_instruction(packed(ASKED | {"evaluate": splits}, STATE))


@pytest.mark.parametrize("decode", [decode_reply, decode_instruction])
@pytest.mark.parametrize("key", sorted(GOOD.keys() | ASKED.keys()))
def test_every_key_is_needed(decode: Decode, key: str) -> None:
    header, body = (GOOD, BODY) if decode is decode_reply else (ASKED, STATE)
    if key in header:
        with pytest.raises(UpdateError, match="other keys"):
            decode(packed({name: value for name, value in header.items() if name != key}, body))


def test_a_weight_comes_with_tensors_and_tensors_with_a_weight() -> None:
    for header, body in ((GOOD, b""), (GOOD | {"weight": None}, BODY)):
        with pytest.raises(UpdateError, match="a weight comes with tensors"):
            decode_reply(packed(header, body))


@pytest.mark.parametrize("decode", [decode_reply, decode_instruction])
@pytest.mark.parametrize(
    "message",
    [
        b"",
        MAGIC,
        MAGIC + b"\0\0\0\0",
        MAGIC + b"\xff\xff\xff\xff" + zlib.compress(b"{}"),
        MAGIC + struct.pack("<I", 5) + b"hello",
        b"PLC0" + packed(GOOD, BODY)[4:],
        packed(GOOD, BODY)[: len(packed(GOOD)) - 3],
        packed(b"null"),
        packed(b"[]"),
        packed(b"{}"),
        packed(b"\xff\xfe"),
        packed(b'{"a": NaN}'),
        packed(b"[" * 100_000),
        packed(b"1" * 5000),
    ],
)
def test_what_is_no_message_is_refused(decode: Decode, message: bytes) -> None:
    with pytest.raises(UpdateError):
        decode(message)


def test_a_bomb_is_refused_before_it_unfolds() -> None:
    bomb = zlib.compress(b" " * 2**27 + b"{}", 9)  # 128 MiB in 128 KiB
    message = MAGIC + struct.pack("<I", len(bomb)) + bomb
    begun = time.monotonic()
    with pytest.raises(UpdateError, match="too long"):
        decode_reply(message)
    assert time.monotonic() - begun < 1


def test_the_limit_of_a_header_is_to_the_byte_and_the_same_for_the_writer() -> None:
    text = json.dumps(GOOD, separators=(",", ":")).encode()
    fits = text[:-1] + b" " * (HEADER_LIMIT - len(text)) + b"}"
    assert decode_reply(packed(fits, BODY)).site == "north"
    with pytest.raises(UpdateError, match="too long"):
        decode_reply(packed(fits[:-1] + b" }", BODY))
    with pytest.raises(UpdateError, match=r"header takes \d+ bytes.*score_bins"):
        messages._pack(GOOD | {"run": "r" * HEADER_LIMIT}, b"")


def test_the_limit_on_tensors_holds_before_they_are_read() -> None:
    size = len(encode(TENSORS))
    message = encode_reply(REPLY)
    assert decode_reply(message, size).update is not None
    with pytest.raises(UpdateError, match=f"at most {size - 1}"):
        decode_reply(message, size - 1)


def mutated(message: bytes, rng: np.random.Generator) -> bytes:
    """``message`` with some bytes replaced, removed, repeated or cut off; half the time inside its JSON."""
    header, body = message, b""
    inside = bool(rng.integers(2))
    if inside:
        (length,) = struct.unpack("<I", message[4:8])
        header, body = zlib.decompress(message[8 : 8 + length]), message[8 + length :]
    text = bytearray(header)
    for _ in range(rng.integers(1, 5)):
        at, way = int(rng.integers(len(text))), rng.integers(5)
        if way == 0:
            text[at] = rng.integers(256)
        elif way == 1:
            text[at] = rng.choice(np.frombuffer(b'0123456789[]{},:".-eEtfn', np.uint8))
        elif way == 2:
            del text[at : at + int(rng.integers(1, 9))]
        elif way == 3:
            text[at:at] = text[at : at + int(rng.integers(1, 40))]
        else:
            text[at:at] = rng.choice([b"[", b"]", b"1e999", b"NaN", b"null", b"true", b"-", b"9" * 30])
        text = text or bytearray(b"x")
    return packed(bytes(text), body) if inside else bytes(text)


def survive(count: int, seed: int) -> tuple[int, int]:
    """(refused, accepted) of ``count`` mutations; any error but UpdateError escapes."""
    rng, refused = np.random.default_rng(seed), 0
    originals = [
        (decode_reply, encode_reply(REPLY), encode_reply),
        (decode_reply, encode_reply(QUIET), encode_reply),
        (decode_instruction, encode_instruction(INSTRUCTION), encode_instruction),
    ]
    for i in range(count):
        decode, message, encoded = originals[i % 3]
        try:
            encoded(decode(mutated(message, rng)))  # type: ignore[operator]
        except UpdateError:
            refused += 1
    return refused, count - refused


@settings(max_examples=300)
@given(st.integers(0, 2**32))
def test_mutated_messages_are_refused_or_still_messages(seed: int) -> None:
    survive(3, seed)


@given(st.binary(max_size=200))
def test_noise_is_refused(noise: bytes) -> None:
    for message in (noise, MAGIC + noise, packed(noise)):
        with pytest.raises(UpdateError):
            decode_reply(message)
