"""What server and sites say to each other: one instruction, one reply, each a compressed JSON header and safetensors.

Layout of both: magic (4 bytes), length of the header (uint32, little-endian), header (zlib-compressed JSON), body.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from polyclinic.core.errors import UpdateError
from polyclinic.core.privacy import receipt as receipts
from polyclinic.core.privacy.receipt import Receipt
from polyclinic.core.statistics.codec import decode as decode_statistic
from polyclinic.core.statistics.codec import encode as encode_statistic
from polyclinic.core.statistics.monoid import Statistic, Withheld
from polyclinic.core.update import Tensors, Update
from polyclinic.core.update import decode as decode_tensors
from polyclinic.core.update import encode as encode_tensors

MAGIC = b"PLC1"
REFUSED = 1000
"""Code, from which on an error reply of a carrier is a site's own answer; the carrier's codes are below."""
HEADER_LIMIT = 8 * 2**20
"""Bytes of a header after decompression: statistics are a few kilobytes."""
BRACKETS = 2**17
"""Lists and tables in a header: each takes a hundred times its two bytes of memory."""
STATISTICS = 64
"""Statistics in one reply: checking each takes time."""


@dataclass(frozen=True)
class Instruction:
    """What every chosen site is asked in one round.

    Attributes:
        study: digest of the study.
        run: name of the run.
        round: 1 … count; count + 1 asks for the last evaluation.
        nonce: fresh for each round; the reply repeats it.
        base: digest of ``tensors``.
        fit: whether to train.
        evaluate: splits on which the incoming model is judged; after training "val" is judged again.
        describe: whether to tell how the site's data are distributed (for domain shift).
        version: of Polyclinic at the server.
        tensors: the global state.
    """

    study: str
    run: str
    round: int
    nonce: str
    base: str
    fit: bool
    evaluate: tuple[str, ...]
    describe: bool
    version: str
    tensors: Tensors


@dataclass(frozen=True)
class Reply:
    """What one site answers.

    Attributes:
        site, study, run, round, nonce, base: as instructed; what does not match is set aside.
        update: what was learned, if training was asked for.
        statistics: by "moment/what", such as "incoming/val", "fitted/val" or "describe/features".
        sizes: split → (images, patients).
        seconds: what the work took.
        receipt: of what it cost in privacy, where the study is private.
    """

    site: str
    study: str
    run: str
    round: int
    nonce: str
    base: str
    update: Update | None
    statistics: Mapping[str, Statistic | Withheld]
    sizes: Mapping[str, tuple[int, int]]
    seconds: float
    receipt: Receipt | None = None


def encode_instruction(instruction: Instruction) -> bytes:
    """The instruction's bytes: the same for every site of a round."""
    header = {f.name: getattr(instruction, f.name) for f in fields(Instruction) if f.name != "tensors"}
    return _pack(header, encode_tensors(instruction.tensors))


def decode_instruction(message: bytes, *, tensors: bool = True) -> Instruction:
    """Raises UpdateError for whatever is no instruction.

    Without ``tensors`` they are left out unread: for whoever must refuse an instruction whose tensors are no good.
    """
    told, body = _unpack(message)
    strings = dict.fromkeys(("study", "run", "nonce", "base", "version"), str)
    _expect(told, {**strings, "round": int, "fit": bool, "describe": bool, "evaluate": list})
    told["evaluate"] = tuple(told["evaluate"])
    if not all(isinstance(split, str) for split in told["evaluate"]):
        raise UpdateError("is no list of splits", where="evaluate")
    return Instruction(tensors=decode_tensors(body) if tensors else {}, **told)


def peek(message: bytes) -> dict[str, Any]:
    """The header of an instruction or a reply, unchecked but for being one."""
    return _unpack(message)[0]


def encode_reply(reply: Reply) -> bytes:
    """The reply's bytes."""
    header: dict[str, Any] = {
        name: getattr(reply, name) for name in ("site", "study", "run", "round", "nonce", "base", "seconds")
    }
    header["weight"] = reply.update.weight if reply.update else None
    header["sizes"] = {split: list(counts) for split, counts in reply.sizes.items()}
    header["statistics"] = {name: encode_statistic(value) for name, value in reply.statistics.items()}
    if reply.receipt is not None:
        header["receipt"] = receipts.encode(reply.receipt)
    return _pack(header, encode_tensors(reply.update.tensors) if reply.update else b"")


def decode_reply(message: bytes, limit: int | None = None) -> Reply:
    """Raises UpdateError for whatever is no reply; ``limit`` bounds the bytes of its tensors."""
    header, body = _unpack(message)
    shape: dict[str, Any] = dict.fromkeys(("site", "study", "run", "nonce", "base"), str)
    shape |= {"round": int, "seconds": float, "weight": int | None, "sizes": dict, "statistics": dict}
    _expect(header, shape | ({"receipt": dict} if "receipt" in header else {}))
    if len(header["statistics"]) > STATISTICS:
        raise UpdateError(f"more than {STATISTICS} statistics", where="statistics")
    weight = header.pop("weight")
    if (weight is None) != (body == b""):
        raise UpdateError("a weight comes with tensors, and tensors with a weight")
    update = None if weight is None else Update(header["site"], weight, decode_tensors(body, limit))
    try:
        statistics = {name: decode_statistic(value) for name, value in header.pop("statistics").items()}
    except RecursionError as failure:
        raise UpdateError("lists are nested too deep", where="statistics") from failure
    receipt = receipts.decode(header.pop("receipt")) if "receipt" in header else None
    sizes = _sizes(header.pop("sizes"))
    return Reply(update=update, statistics=statistics, sizes=sizes, receipt=receipt, **header)


def _sizes(sizes: dict[str, Any]) -> dict[str, tuple[int, int]]:
    known = {"train", "val", "test"}
    for split, counts in sizes.items():
        pair = isinstance(counts, list) and len(counts) == 2 and all(type(n) is int and 0 <= n < 2**40 for n in counts)
        if split not in known or not pair:
            raise UpdateError("sizes are counts of images and patients by split", where="sizes")
    return {split: (images, patients) for split, (images, patients) in sizes.items()}


def _pack(header: dict[str, Any], body: bytes) -> bytes:
    text = json.dumps(header, separators=(",", ":"), allow_nan=False).encode()
    if len(text) > HEADER_LIMIT:
        remedy = "ask for fewer monitoring.score_bins or classes"
        raise UpdateError(f"the message's header takes {len(text)} bytes, more than anybody reads", remedy=remedy)
    packed = zlib.compress(text, 9)
    return b"".join((MAGIC, struct.pack("<I", len(packed)), packed, body))


def _unpack(message: bytes) -> tuple[dict[str, Any], bytes]:
    if len(message) < 8 or message[:4] != MAGIC:
        raise UpdateError("this is no message of this protocol version")
    (length,) = struct.unpack("<I", message[4:8])
    unzip = zlib.decompressobj()
    try:
        text = unzip.decompress(message[8 : 8 + length], HEADER_LIMIT)
        sound = unzip.eof and not unzip.unused_data and text.count(b"[") + text.count(b"{") <= BRACKETS
        header = json.loads(text) if sound else None
    except (zlib.error, ValueError, RecursionError) as failure:
        raise UpdateError("the message's header is damaged") from failure
    if not isinstance(header, dict):
        raise UpdateError("the message's header is damaged or too long")
    return header, message[8 + length :]


def _expect(header: dict[str, Any], shape: dict[str, Any]) -> None:
    if header.keys() != shape.keys():
        raise UpdateError("the message's header has other keys than agreed")
    for key, kind in shape.items():
        value = header[key]
        if kind is float and type(value) is int and abs(value) < 2**53:
            header[key] = value = float(value)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise UpdateError("has the wrong type", where=key)
        if isinstance(value, float) and not math.isfinite(value):
            raise UpdateError("is no finite number", where=key)
