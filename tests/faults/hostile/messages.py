"""Hostile messages as a whole, and good ones to another question, each with the reason that it must be given."""

from __future__ import annotations

import pickle
import struct
from dataclasses import replace

from polyclinic.core.messages import MAGIC, encode_reply
from polyclinic.server.receive import Delivery
from tests.faults.hostile.bench import Bend, packed
from tests.faults.hostile.forge import ESCAPE, Touched, field, header, nested, npy_bomb, raw, text, zip_bomb, zlib_bomb

NONE, DAMAGED = r"this is no message of this protocol version", r"the message's header is damaged"
KEYS = r"the message's header has other keys than agreed"

WHOLE: dict[str, tuple[Bend, str]] = {
    "empty": (raw(b""), NONE),
    "noise": (raw(b"\0" * 4096), NONE),
    "text": (raw(b"Jane Doe"), NONE),
    "pickle": (raw(pickle.dumps(Touched())), NONE),
    "pickle behind our magic": (raw(MAGIC + pickle.dumps(Touched())), DAMAGED),
    "npy bomb": (raw(npy_bomb()), NONE),
    "zip bomb": (raw(zip_bomb()), NONE),
    "zlib bomb": (raw(zlib_bomb(2**28)), r"the message's header is damaged or too long"),
    "another protocol version": (lambda r: b"PLC2" + encode_reply(r)[4:], NONE),
    "a sealed reply within a reply": (lambda r: b"PLS1" + encode_reply(r), NONE),
    "cut short": (lambda r: encode_reply(r)[:40], DAMAGED),
    "length of 3 GB": (lambda r: MAGIC + struct.pack("<I", 3 * 10**9) + encode_reply(r)[8:], DAMAGED),
    "length of 4 GB and nothing": (raw(MAGIC + b"\xff\xff\xff\xff"), DAMAGED),
    "length too small": (lambda r: MAGIC + struct.pack("<I", 9) + encode_reply(r)[8:], DAMAGED),
    "header no JSON": (raw(packed(b"hello")), DAMAGED),
    "header no UTF-8": (raw(packed(b'{"\xff": 1}')), DAMAGED),
    "header no table": (raw(packed([])), DAMAGED),
    "header nested deep": (raw(packed(nested(10**6).encode())), DAMAGED),
    "header nested deep in tables": (raw(packed(b'{"a":' * 10**5 + b"1" + b"}" * 10**5)), DAMAGED),
    "header of two million tables": (raw(packed(b'{"site":[' + b"{}," * 2_000_000 + b"0]}")), DAMAGED),
    "header with more keys": (header(lambda h: h.update(note="Jane Doe")), KEYS),
    "header with fewer keys": (header(lambda h: h.pop("nonce")), KEYS),
    "header with a key in capitals": (header(lambda h: h.update(Site=h.pop("site"))), KEYS),
    "text behind the header": (
        lambda r: (whole := encode_reply(r))[:4] + struct.pack("<I", len(whole) - 8) + whole[8:], DAMAGED,
    ),
    "two messages in one": (lambda r: encode_reply(r) * 2, r"not valid safetensors|comes with tensors"),
    "an instruction": (lambda r: packed({"study": r.study, "fit": True}), KEYS),
    "seconds NaN": (text(lambda t: t.replace('"seconds": 0.5', '"seconds": NaN')), r"seconds: is no finite number"),
    "seconds infinite": (text(lambda t: t.replace('"seconds": 0.5', '"seconds": 1e999')), r"seconds: is no finite"),
    "seconds negative": (field(seconds=-5.0), r"seconds: is no possible time"),
    "seconds beyond belief": (field(seconds=1e300), r"seconds: is no possible time"),
    "silence": (lambda r: None, r"no reply before the deadline"),
    "a crash": (lambda r: Delivery(r.site, failure="it broke"), r"^it broke$"),
    "a failure of a megabyte": (lambda r: Delivery(r.site, failure="x" * 2**20), r"^x{500}$"),
    "a failure of escapes": (lambda r: Delivery(r.site, failure=f"no {ESCAPE}"), r"^no \\x1b\[2J\\u202egnp\.exe"),
    "a failure of half a character": (lambda r: Delivery(r.site, failure="no \ud800"), r"^no \\ud800$"),
    "a failure of many lines": (lambda r: Delivery(r.site, failure="no\nround 3: done"), r"^no\\nround 3: done$"),
}  # fmt: skip
QUESTION: dict[str, tuple[Bend, str]] = {
    "another study": (field(study="0" * 64), r"reply is to another study"),
    "another run": (field(run="else"), r"reply is to another run"),
    "the round before": (lambda r: replace(r, round=r.round - 1), r"reply is to another round"),
    "a round to come": (lambda r: replace(r, round=r.round + 1), r"reply is to another round"),
    "a round of 2^64": (field(round=2**64), r"reply is to another round"),
    "a round of text": (field(round="1"), r"round: has the wrong type"),
    "a round of a half": (field(round=0.5), r"round: has the wrong type"),
    "another nonce": (field(nonce="0" * 16), r"reply is to another nonce"),
    "another base": (field(base="0" * 64), r"reply is to another base"),
    "another site's name": (field(site="bob"), r"reply carries another site's name"),
    "a name with a hidden blank": (field(site="eve\u200b"), r"reply carries another site's name"),
    "a name in full width": (field(site="\uff45ve"), r"reply carries another site's name"),
    "a name of half a character": (field(site="\ud800"), r"reply carries another site's name"),
    "a name of a path": (field(site="../eve"), r"reply carries another site's name"),
    "a name of capitals": (field(site="Eve"), r"reply carries another site's name"),
    "no name": (field(site=""), r"reply carries another site's name"),
    "a name of a number": (field(site=5), r"site: has the wrong type"),
}
