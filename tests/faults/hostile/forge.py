"""Tools for whoever forges replies: the honest one, bent in one place."""

from __future__ import annotations

import io
import json
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from polyclinic.core.messages import MAGIC, Reply, encode_reply
from tests.faults.hostile.bench import Bend, opened, packed, tensor_file

Header = dict[str, Any]
ESCAPE = "\x1b[2J\u202egnp.exe\u200b"
"""Clears a terminal, turns text round, hides."""


def header(change: Callable[[Header], object]) -> Bend:
    """The honest reply with its header changed in place."""

    def bend(reply: Reply) -> bytes:
        found, body = opened(encode_reply(reply))
        change(found)
        return packed(found, body)

    return bend


def field(**values: Any) -> Bend:
    """The honest reply with fields of its header replaced."""
    return header(lambda found: found.update(values))


def text(change: Callable[[str], str]) -> Bend:
    """The honest reply with the text of its header changed."""

    def bend(reply: Reply) -> bytes:
        found, body = opened(encode_reply(reply))
        return packed(change(json.dumps(found)).encode("utf-8", "surrogatepass"), body)

    return bend


def tensors(change: Callable[[dict[str, np.ndarray]], dict[str, Any]]) -> Bend:
    """The honest reply with its tensors replaced."""

    def bend(reply: Reply) -> Reply:
        if reply.update is None:
            return reply
        return replace(reply, update=replace(reply.update, tensors=change(dict(reply.update.tensors))))

    return bend


def bias(array: np.ndarray) -> Bend:
    """The honest reply with one tensor replaced."""
    return tensors(lambda found: found | {"head.bias": array})


def file(change: Callable[[Header, bytes], bytes]) -> Bend:
    """The honest reply with its safetensors file made by ``change`` from the honest file's header and data."""

    def bend(reply: Reply) -> bytes | Reply:
        found, body = opened(encode_reply(reply))
        if not body:
            return reply
        size = struct.unpack("<Q", body[:8])[0]
        return packed(found, change(json.loads(body[8 : 8 + size]), body[8 + size :]))

    return bend


def entry(name: str, **values: Any) -> Bend:
    """The honest reply with an entry of its safetensors header replaced."""
    return file(lambda found, data: tensor_file(found | {name: found[name] | values}, data))


def twice(found: Header, data: bytes) -> bytes:
    """A safetensors header in which a name stands twice."""
    once = json.dumps(found)[1:-1]
    return tensor_file(f"{{{once},{once}}}".encode(), data)


def raw(message: bytes) -> Bend:
    """Bytes that are no reply at all."""
    return lambda reply: message


def nested(depth: int) -> str:
    """Lists in lists."""
    return "[" * depth + "]" * depth


class Touched:
    """What a pickle would do to whoever loads it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('a pickle ran')",)


def npy_bomb() -> bytes:
    """A NumPy file of 128 bytes that claims a tebibyte."""
    said = b"{'descr': '<f4', 'fortran_order': False, 'shape': (274877906944,), }"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", 118) + said.ljust(117) + b"\n"


def zip_bomb() -> bytes:
    """A zip file that unfolds a thousandfold."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("message", b"\0" * 2**22)
    return out.getvalue()


def zlib_bomb(size: int) -> bytes:
    """A message whose header unfolds to ``size`` bytes."""
    squeeze = zlib.compressobj(9)
    blank = b" " * 2**20
    packed_text = b"".join(squeeze.compress(blank) for _ in range(size >> 20)) + squeeze.compress(b"{}")
    packed_text += squeeze.flush()
    return MAGIC + struct.pack("<I", len(packed_text)) + packed_text
