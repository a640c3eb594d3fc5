"""Hostile weights, tensors and tensor files, each with the reason that it must be given."""

from __future__ import annotations

import pickle
import struct
from typing import Any

import numpy as np

from tests.faults.hostile.bench import Bend, tensor_file
from tests.faults.hostile.forge import ESCAPE, Touched, bias, entry, field, file, nested, npy_bomb, tensors, text, twice

BAD = r"not valid safetensors"


def nothing(shape: list[int]) -> Bend:
    """A tensor of no number at all, and of this shape."""
    return more(shape=shape, data_offsets=[32, 32])


def more(name: str = "x", **values: Any) -> Bend:
    """One more entry in the tensor file."""
    return file(lambda found, data: tensor_file(found | {name: {"dtype": "F32"} | values}, data))


WEIGHT: dict[str, tuple[Bend, str]] = {
    "weight 1e12": (field(weight=10**12), r"weight 1000000000000 is not the 40"),
    "weight -1": (field(weight=-1), r"weight -1 is not the 40"),
    "weight 0": (field(weight=0), r"weight 0 is not the 40"),
    "weight NaN": (text(lambda t: t.replace('"weight": 40', '"weight": NaN')), r"weight: has the wrong type"),
    "weight infinite": (text(lambda t: t.replace('"weight": 40', '"weight": 1e999')), r"weight: has the wrong type"),
    "weight a fraction": (field(weight=40.0), r"weight: has the wrong type"),
    "weight text": (field(weight="40"), r"weight: has the wrong type"),
    "weight true": (field(weight=True), r"weight: has the wrong type"),
    "weight of 4000 digits": (field(weight=10**4000), r"^weight 10{492}$"),
    "weight of 5000 digits": (
        text(lambda t: t.replace('"weight": 40', '"weight": ' + "9" * 5000)),
        r"header is damaged",
    ),
    "weight absent": (field(weight=None), r"a weight comes with tensors"),
    "weight 0 with sizes to match": (field(weight=0, sizes={"train": [0, 0]}), r"weight 0 is not the 0"),
    "sizes negative": (field(sizes={"train": [-1, 1]}), r"sizes: sizes are counts"),
    "sizes a fraction": (field(sizes={"train": [1.5, 1]}), r"sizes: sizes are counts"),
    "sizes beyond belief": (field(sizes={"train": [2**40, 1]}), r"sizes: sizes are counts"),
    "sizes of an unknown split": (field(sizes={"all": [1, 1]}), r"sizes: sizes are counts"),
    "sizes with text": (field(sizes={"train": ["Jane Doe", 1]}), r"sizes: sizes are counts"),
}

TENSORS: dict[str, tuple[Bend, str]] = {
    "NaN": (bias(np.array([0, np.nan], np.float32)), r"head\.bias: tensor holds NaN or infinity"),
    "infinity": (bias(np.array([0, -np.inf], np.float32)), r"head\.bias: tensor holds NaN or infinity"),
    "huge number": (bias(np.array([0, 2e6], np.float32)), r"head\.bias: tensor holds a number above 1\.04858e\+06"),
    "wrong shape": (bias(np.zeros(3, np.float32)), r"head\.bias: shape is \(3,\), agreed was \(2,\)"),
    "shape that broadcasts": (bias(np.zeros(1, np.float32)), r"head\.bias: shape is \(1,\)"),
    "one dimension more": (bias(np.zeros((1, 2), np.float32)), r"head\.bias: shape is \(1, 2\)"),
    "no dimension": (bias(np.zeros((), np.float32)), r"head\.bias: shape is \(\)"),
    "float64": (bias(np.zeros(2, np.float64)), r"head\.bias: dtype is not F32"),
    "int32": (bias(np.zeros(2, np.int32)), r"head\.bias: dtype is not F32"),
    "float16": (bias(np.zeros(2, np.float16)), r"head\.bias: dtype is not F32"),
    "wrong name": (
        tensors(lambda t: {"head.weight": t["head.weight"], "head.biaz": t["head.bias"]}),
        r"head\.bias: tensor is missing",
    ),
    "look-alike name": (
        tensors(lambda t: {"head.weight": t["head.weight"], "head.bi\u0430s": t["head.bias"]}),
        r"head\.bias: tensor is missing",
    ),
    "missing tensor": (tensors(lambda t: {"head.bias": t["head.bias"]}), r"head\.weight: tensor is missing"),
    "no tensor": (tensors(lambda t: {}), r"head\.bias: tensor is missing"),
    "extra tensor": (tensors(lambda t: t | {"x": np.zeros(1, np.float32)}), r"x: tensor was not agreed on"),
    "extra empty tensor": (tensors(lambda t: t | {"x": np.zeros(0, np.float32)}), r"x: tensor was not agreed on"),
    "a name of escapes": (
        tensors(lambda t: t | {f"head{ESCAPE}": np.zeros(1, np.float32)}),
        r"^head\\x1b\[2J\\u202egnp\.exe\\u200b: tensor was not agreed on$",
    ),
    "a name of a path": (
        tensors(lambda t: t | {"../../etc/passwd": np.zeros(1, np.float32)}),
        r"^\.\./\.\./etc/passwd: tensor was not agreed on$",
    ),
    "a name of a megabyte": (
        tensors(lambda t: t | {"y" * 2**20: np.zeros(1, np.float32)}),
        r"^(y{80}: tensor was not agreed on|\d+ bytes arrived, at most \d+ were agreed.*)$",
    ),
    "oversize tensors": (
        tensors(lambda t: t | {"x": np.zeros(2**19, np.float32)}),
        r"^\d+ bytes arrived, at most \d+ were agreed$",
    ),
}  # fmt: skip

FILE: dict[str, tuple[Bend, str]] = {
    "a name twice": (file(twice), r"a name stands twice in the safetensors header"),
    "metadata with text": (
        file(lambda h, d: tensor_file({"__metadata__": {"patient": "Jane Doe"}} | h, d)),
        r"the safetensors header holds metadata",
    ),
    "empty metadata": (file(lambda h, d: tensor_file({"__metadata__": {}} | h, d)), r"header holds metadata"),
    "header longer than the body": (file(lambda h, d: tensor_file(h, d, 2**20)), r"header is longer than the body"),
    "header of a tebibyte": (file(lambda h, d: tensor_file(h, d, 2**40)), r"header is longer than the body"),
    "header of 2^64 - 1": (file(lambda h, d: tensor_file(h, d, 2**64 - 1)), r"header is longer than the body"),
    "header of nothing": (file(lambda h, d: struct.pack("<Q", 0)), r"the header is no JSON"),
    "shorter than a length": (file(lambda h, d: b"\0" * 7), r"header is longer than the body"),
    "header no JSON": (file(lambda h, d: tensor_file(b"hello", d)), r"the header is no JSON"),
    "header no UTF-8": (file(lambda h, d: tensor_file(b'{"\xff": 1}', d)), r"the header is no JSON"),
    "header a list": (file(lambda h, d: tensor_file(b"[]", d)), r"the safetensors header holds metadata"),
    "header nested deep": (file(lambda h, d: tensor_file(nested(100_000).encode(), d)), r"the header is no JSON"),
    "entry no table": (file(lambda h, d: tensor_file(h | {"head.bias": 1}, d)), r"head\.bias: dtype is not F32"),
    "offsets beyond": (entry("head.bias", data_offsets=[24, 4096]), BAD),
    "offsets of a tebibyte": (entry("head.bias", data_offsets=[0, 2**40]), BAD),
    "offsets overlapping": (entry("head.weight", data_offsets=[0, 24]), BAD),
    "offsets with a hole": (
        file(lambda h, d: tensor_file(h, d[:8] + b"\0" * 8 + d[8:])), BAD,
    ),
    "offsets backwards": (entry("head.bias", data_offsets=[8, 0]), BAD),
    "offsets negative": (entry("head.bias", data_offsets=[-8, 0]), BAD),
    "offsets fractions": (entry("head.bias", data_offsets=[0.0, 8.0]), BAD),
    "offsets beyond 64 bits": (entry("head.bias", data_offsets=[0, 2**70]), BAD),
    "shape of a tebibyte": (entry("head.bias", shape=[2**38]), BAD),
    "shape that overflows to nothing": (entry("head.bias", shape=[2**32, 2**32]), BAD),
    "shape negative": (entry("head.bias", shape=[-2]), BAD),
    "nothing in 60 dimensions": (nothing([0] * 60), r"^x: tensor was not agreed on$"),
    "nothing in 200 dimensions": (nothing([0] * 200), BAD),
    "nothing of endless length": (nothing([0, 2**63]), BAD),
    "trailing text": (file(lambda h, d: tensor_file(h, d + b"Jane Doe")), BAD),
    "data cut short": (file(lambda h, d: tensor_file(h, d[:-1])), BAD),
    "unknown dtype": (entry("head.bias", dtype="F128"), r"head\.bias: dtype is not F32"),
    "more keys in an entry": (entry("head.bias", note="Jane Doe"), r"head\.bias: holds more, or less, than"),
    "metadata in an entry": (
        entry("head.bias", __metadata__={"who": "Jane Doe"}), r"head\.bias: holds more, or less, than",
    ),
    "a shape of text": (entry("head.bias", shape=[ESCAPE * 100]), r"^not valid safetensors: [\x20-\x7e]{1,200}$"),
    "a name of escapes in a bad entry": (
        more(ESCAPE, shape=[9], data_offsets=[0, 4]), r"^not valid safetensors: [\x20-\x7e]{1,200}$",
    ),
    "entry of fewer keys": (more("x", shape=[2]), r"x: holds more, or less, than"),
    "a name of half a character": (more("\ud800", shape=[0], data_offsets=[32, 32]), BAD),
    "a name of half a character in a bad entry": (more("\ud800", dtype="F16"), r"^\\ud800: dtype is not F32$"),
    "pickled tensors": (file(lambda h, d: pickle.dumps(Touched())), r"header is longer than the body"),
    "npy in place of safetensors": (file(lambda h, d: npy_bomb()), r"header is longer than the body"),
}  # fmt: skip
