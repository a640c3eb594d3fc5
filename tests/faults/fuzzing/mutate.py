"""Seeded damage to bytes: blind, inside compressed headers, and with an eye for JSON and for safetensors."""

from __future__ import annotations

import json
import math
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

Rng = random.Random
Mutation = Callable[[bytes, Rng], bytes]

NUMBERS: tuple[Any, ...] = (
    0, 1, -1, 2, 7, 255, 2**31 - 1, 2**31, -(2**31), 2**32, 2**34, 2**34 + 1, 2**40, 2**53, 2**53 + 1, 2**62, 2**62 + 1,
    2**63 - 1, 2**63, -(2**63), 2**64, 10**30, 10**400, 0.0, -0.0, 0.5, 1e-320, 1e308, -1e308,
)  # fmt: skip
WORDS = (
    "", " ", "outcome", "labels", "val", "train", "F32", "F64", "__metadata__", "../../etc/passwd", "\x00",
    "\x1b[2J", "NaN",
    "\u202e", "\u200b", "\ud800", "\uff45", "a" * 300, "0" * 64, "true", "null", "embedded:vit-tiny",
    "reply", "refusal",
)  # fmt: skip
LITERALS = (
    b"NaN",
    b"Infinity",
    b"-Infinity",
    b"1e999",
    b"-0",
    b"1E5",
    b"01",
    b"9" * 30,
    b"9" * 4400,
    b"nul",
    b"tru",
    b"''",
)
MARKS = b'0123456789[]{},:".-+eE\\/ \n\x00\xff=#'


def flip(data: bytes, rng: Rng) -> bytes:
    """A few bits turned."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        if changed:
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def replace(data: bytes, rng: Rng) -> bytes:
    """A few bytes overwritten."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if changed:
            changed[rng.randrange(len(changed))] = rng.choice(MARKS) if rng.random() < 0.6 else rng.randrange(256)
    return bytes(changed)


def insert(data: bytes, rng: Rng) -> bytes:
    """Bytes put in somewhere."""
    at = rng.randint(0, len(data))
    way = rng.randrange(3)
    more = (
        rng.randbytes(rng.randint(1, 9))
        if way == 0
        else rng.choice(LITERALS)
        if way == 1
        else bytes([rng.choice(MARKS)])
    )
    return data[:at] + more + data[at:]


def delete(data: bytes, rng: Rng) -> bytes:
    """Bytes taken out somewhere."""
    at = rng.randint(0, len(data))
    return data[:at] + data[at + rng.choice((1, 1, 2, 4, 8, 64)) :]


def truncate(data: bytes, rng: Rng) -> bytes:
    """The end cut off."""
    return data[: rng.randint(0, len(data))]


def extend(data: bytes, rng: Rng) -> bytes:
    """Something hung on."""
    more = (rng.randbytes(rng.randint(1, 64)), data, b"\0" * rng.randint(1, 4096), b" ")
    return data + rng.choice(more)


def splice(data: bytes, rng: Rng) -> bytes:
    """A stretch copied to, moved to, or exchanged with another place."""
    if len(data) < 2:
        return data
    a, b, size = rng.randrange(len(data)), rng.randrange(len(data)), rng.choice((1, 2, 4, 8, 32, 256))
    if rng.random() < 0.5:
        return data[:b] + data[a : a + size] + data[b:]
    return data[:b] + data[a : a + size] + data[b + size :]


def lie(data: bytes, rng: Rng) -> bytes:
    """A number of 4 or 8 bytes overwritten by one that makes readers stumble; mostly where lengths stand."""
    wide = rng.random() < 0.4
    at = rng.choice((0, 4, 8)) if rng.random() < 0.7 else rng.randint(0, max(0, len(data) - 8))
    size = 8 if wide else 4
    old = int.from_bytes(data[at : at + size], "little")
    steps = (
        old + 1,
        old - 1,
        old * 2,
        old // 2,
        0,
        1,
        2**31,
        2**32 - 1,
        2**40,
        2**63,
        2**64 - 1,
        len(data),
        old ^ 0x80,
    )
    number = rng.choice(steps) % 2 ** (8 * size)
    return data[:at] + number.to_bytes(size, "little") + data[at + size :]


BLIND: tuple[Mutation, ...] = (flip, replace, insert, delete, truncate, extend, splice, lie)


def blind(data: bytes, rng: Rng) -> bytes:
    """One or two of the above."""
    for _ in range(rng.choice((1, 1, 1, 2))):
        data = rng.choice(BLIND)(data, rng)
    return data


def odd(rng: Rng) -> Any:
    """A JSON value that does not belong there."""
    way = rng.randrange(8)
    if way < 4:
        return rng.choice(NUMBERS)
    if way < 6:
        return rng.choice(WORDS)
    few: tuple[Any, ...] = (
        None,
        True,
        False,
        [],
        {},
        [[]],
        [0],
        [1, 2],
        {"": 0},
        {"a": {}},
        [[[[[1]]]]],
        [1, [2]],
        ["x"],
    )
    return rng.choice(few)


def near(value: Any, rng: Rng) -> Any:
    """A value of the same kind, a little off."""
    if isinstance(value, bool) or value is None:
        return rng.choice((True, False, None))
    if isinstance(value, int):
        return rng.choice((value + 1, value - 1, -value, value * 2, value * 2**32, value ^ 1, value + 2**64))
    if isinstance(value, float):
        whole = int(value) if math.isfinite(value) else 0
        return rng.choice((value + 1, -value, value * 1e300, whole, value / 3))
    if isinstance(value, str):
        at = rng.randint(0, len(value))
        return rng.choice(
            (value[:at], value + "0", value.upper(), value[::-1], value[:at] + rng.choice(WORDS) + value[at:])
        )
    if isinstance(value, list):
        shuffled = rng.sample(value, len(value))
        return rng.choice((shuffled, value[:-1], [*value, *value[-1:]], [value], value * 2, [*value, odd(rng)]))
    return value


def json_value(value: Any, rng: Rng) -> Any:
    """``value`` (changed in place) with something in it changed, removed, renamed, exchanged or added."""
    place, key = _somewhere(value, rng)
    if place is None:
        return odd(rng)
    way = rng.randrange(10)
    if way < 4:
        place[key] = near(place[key], rng)
    elif way < 6:
        place[key] = odd(rng)
    elif way == 6:
        del place[key]
    elif way == 7 and isinstance(place, dict):
        place[rng.choice(WORDS) if rng.random() < 0.5 else str(near(key, rng))] = place.pop(key)
    elif way == 8:
        other = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
        place[key], place[other] = place[other], place[key]
    elif isinstance(place, dict):
        place[rng.choice(WORDS)] = odd(rng)
    else:
        place.insert(key, odd(rng))
    return value


def _somewhere(value: Any, rng: Rng) -> tuple[Any, Any]:
    """A container within ``value`` and one of its keys; shallow ones are as likely as deep ones."""
    place: Any = None
    key: Any = None
    here = value
    while isinstance(here, dict | list) and here and (place is None or rng.random() < 0.7):
        place, key = here, rng.choice(list(here)) if isinstance(here, dict) else rng.randrange(len(here))
        here = place[key]
    return place, key


def json_text(text: bytes, rng: Rng) -> bytes:
    """JSON with its values changed, or with its text damaged."""
    way = rng.randrange(10)
    if way < 6:
        value = json.loads(text)
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            value = json_value(value, rng)
        return json.dumps(value, separators=(",", ":")).encode()
    if way == 6:  # a key twice
        return text[:1] + text[1 : text.find(b",") + 1] + text[1:]
    if way == 7:  # nested, shallow or deep
        depth = rng.choice((2, 40, 100, 900, 1100, 20_000))
        at = text.find(b":", rng.randint(0, len(text)))
        return text[: at + 1] + b"[" * depth + b"]" * depth + text[at + 1 :]
    return blind(text, rng)


def tensors(body: bytes, rng: Rng) -> bytes:
    """A safetensors file with its header changed, mostly so that its length still fits."""
    if len(body) < 8:
        return blind(body, rng)
    (size,) = struct.unpack("<Q", body[:8])
    head, data = body[8 : 8 + size], body[8 + size :]
    way = rng.randrange(6)
    if way < 4:
        changed = json_text(head, rng)
        return struct.pack("<Q", len(changed)) + changed + data
    if way == 4:
        return body[: 8 + size] + blind(data, rng)
    return blind(body, rng)


def message(whole: bytes, rng: Rng) -> bytes:
    """One of our messages (magic, length, compressed header, body), damaged outside or behind the compression."""
    way = rng.randrange(10)
    if way < 2:
        return blind(whole, rng)
    (size,) = struct.unpack("<I", whole[4:8])
    squeezed, body = whole[8 : 8 + size], whole[8 + size :]
    if way < 7:
        squeezed = zlib.compress(json_text(zlib.decompress(squeezed), rng), 1)
    if way >= 6:
        body = tensors(body, rng)
    return whole[:4] + struct.pack("<I", len(squeezed)) + squeezed + body


TOML = (
    b"= ", b'"', b"'''", b"[", b"[[", b"]]", b"# ", b"\n", b"inf", b"nan", b"-1", b"1e400", b"9" * 30, b"9" * 4400,
    b"0x", b"1979-05-27", b"true", b"[rounds]\n", b"count = 0\n", b"\xff", b"\x00", b"\xe2\x80\xae", b"\\ud800",
    b"{a = 1}", b"a.b.c = 1\n", b"[" * 900, b"a." * 3000 + b"b=1",
)  # fmt: skip


def toml(text: bytes, rng: Rng) -> bytes:
    """A TOML file, damaged blindly, by lines or by words."""
    way = rng.randrange(6)
    if way < 2:
        return blind(text, rng)
    lines = text.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    if way == 2:
        lines.insert(at, rng.choice(lines))
    elif way == 3:
        del lines[at : at + rng.randint(1, 4)]
    elif way == 4:
        left, equals, right = lines[at].partition(b"=")
        number = json.dumps(odd(rng)).encode()
        lines[at] = left + equals + b" " + (number if rng.random() < 0.6 else right.strip() + rng.choice(TOML)) + b"\n"
    else:
        lines[at] = lines[at][: rng.randint(0, len(lines[at]))] + rng.choice(TOML) + lines[at][-1:]
    return b"".join(lines)
