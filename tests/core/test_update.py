"""What travels is checked before it is believed."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from polyclinic.core.errors import UpdateError
from polyclinic.core.update import Manifest, decode, digest, encode

GOOD = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros(1, np.float32)}


@given(st.dictionaries(st.text("abc.", min_size=1), npst.arrays(np.float32, npst.array_shapes(min_dims=0)), max_size=4))
def test_round_trip_keeps_every_bit(tensors: dict[str, np.ndarray]) -> None:
    back = decode(encode(tensors))
    assert {n: (a.shape, a.tobytes()) for n, a in back.items()} == {
        n: (a.shape, a.tobytes()) for n, a in tensors.items()
    }
    assert digest(back) == digest(tensors)


def test_digest_sees_names_shapes_and_values_but_not_order() -> None:
    assert digest(dict(reversed(GOOD.items()))) == digest(GOOD)
    others = [
        GOOD | {"b": np.ones(1, np.float32)},
        {"a": GOOD["a"].reshape(3, 2), "b": GOOD["b"]},
        {"a": GOOD["a"], "c": GOOD["b"]},
        {"a": GOOD["a"]},
    ]
    assert len({digest(tensors) for tensors in [GOOD, *others]}) == 5


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"a": GOOD["a"]}, "missing"),
        (GOOD | {"c\n": GOOD["b"]}, r"c\\n: tensor was not agreed on"),
        (GOOD | {"b": np.zeros(2, np.float32)}, "shape"),
        (GOOD | {"b": np.zeros((1, 1), np.float32)}, "shape"),
        (GOOD | {"b": np.zeros(1, np.float64)}, "float64"),
        (GOOD | {"b": np.array([np.nan], np.float32)}, "NaN"),
        (GOOD | {"b": np.array([-np.inf], np.float32)}, "infinity"),
        (GOOD | {"b": np.array([-3e6], np.float32)}, "above"),
    ],
)
def test_manifest_refuses_and_names_the_tensor(bad: dict[str, np.ndarray], reason: str) -> None:
    with pytest.raises(UpdateError, match=reason):
        Manifest.of(GOOD).check(bad)
    Manifest.of(GOOD).check(GOOD)


def forged(header: str, body: bytes = b"\0" * 8) -> bytes:
    return struct.pack("<Q", len(header)) + header.encode() + body


ENTRY = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
SECOND = '{"dtype":"F32","shape":[1],"data_offsets":[4,8]}'


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x80\x04N.",
        struct.pack("<Q", 2**62) + b"{}",
        forged("{"),
        forged("[]"),
        forged("[" * 100_000),
        forged(f'{{"a":{ENTRY},"a":{SECOND}}}'),
        forged(f'{{"__metadata__":{{"note":"text"}},"a":{ENTRY},"b":{SECOND}}}'),
        forged('{"a":{"dtype":"F64","shape":[1],"data_offsets":[0,8]}}'),
        forged('{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'),
        forged('{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,8]}}'),
        forged('{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}'),
        forged(f'{{"a":{ENTRY}}}'),
        forged('{"a":3}'),
    ],
)
def test_decode_refuses_what_is_malformed(body: bytes) -> None:
    with pytest.raises(UpdateError):
        decode(body)


def test_decode_refuses_what_is_too_large_before_it_parses() -> None:
    with pytest.raises(UpdateError, match="at most 10"):
        decode(encode(GOOD), limit=10)


@given(st.data())
def test_mutated_bytes_are_refused_or_still_tensors(data: st.DataObject) -> None:
    body = bytearray(encode(GOOD))
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    try:
        tensors = decode(bytes(body))
    except UpdateError:
        return
    assert all(array.dtype == np.float32 for array in tensors.values())
    assert json.dumps(sorted(tensors))
