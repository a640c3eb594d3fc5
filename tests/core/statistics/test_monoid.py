from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyclinic.core.errors import UpdateError
from polyclinic.core.statistics import codec
from polyclinic.core.statistics.monoid import LIMIT, Withheld, release, rest

ALL = ("binary", "multiclass", "multilabel", "detected", "features", "kernel", "intensities", "labels", "multilabels",
       "segmented", "acquisition")  # fmt: skip
SIZE = st.integers(0, 12)


@pytest.mark.parametrize("kind", ALL)
@settings(max_examples=15, deadline=None)
@given(sizes=st.tuples(SIZE, SIZE, SIZE), seed=st.integers(0, 10**6))
def test_adding_is_a_commutative_monoid_to_the_bit(statistics, kind, sizes, seed):
    a, b, c = (statistics[kind](n, seed + i) for i, n in enumerate(sizes))
    zero = statistics[kind](0, 0)
    assert (a + b) + c == a + (b + c)
    assert a + b == b + a
    assert a + zero == a == zero + a
    assert rest(a + b + c, b) == a + c
    assert (a + b).patients == a.patients + b.patients


@pytest.mark.parametrize("kind", ALL)
@settings(max_examples=15, deadline=None)
@given(n=SIZE, seed=st.integers(0, 10**6))
def test_fields_survive_json_and_packing(statistics, kind, n, seed):
    statistic = statistics[kind](n, seed)
    assert type(statistic).from_fields(json.loads(json.dumps(statistic.fields()))) == statistic
    assert codec.decode(json.loads(json.dumps(codec.encode(statistic)))) == statistic
    assert codec.unpack(codec.pack(statistic)) == statistic
    assert codec.decode_fields(statistic.name, statistic.fields()) == statistic


def leaves(value: object, path: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
    if not isinstance(value, list):
        return [path]
    return [leaf for i, item in enumerate(value) for leaf in leaves(item, (*path, i))]


def replaced(value, path, change):
    if not path:
        return change(value)
    return [replaced(v, path[1:], change) if i == path[0] else v for i, v in enumerate(value)]


@pytest.mark.parametrize("kind", ALL)
def test_every_field_is_guarded(statistics, kind):
    statistic = statistics[kind](10, 3)
    good = statistic.fields()
    for field, value in good.items():
        impossible: list[object] = [None, 1.5, "x", True, {}, [], [[1], [1, 2]], 2**200, -(2**200)]
        if isinstance(value, list):
            for path in leaves(value)[:: max(1, len(leaves(value)) // 8)]:
                for change in (lambda _: 0.5, lambda _: True, lambda _: "1", lambda _: 2**70, lambda _: -(2**62)):
                    impossible.append(replaced(value, path, change))
            impossible += [value[:-1], [*value, value[0]], [value]]
        else:
            impossible += [[value], -1]
        for bad in impossible:
            with pytest.raises(UpdateError) as refusal:
                type(statistic).from_fields(good | {field: bad})
            assert refusal.value.where
        with pytest.raises(UpdateError, match=field):
            type(statistic).from_fields({key: v for key, v in good.items() if key != field})
    with pytest.raises(UpdateError, match="secret"):
        type(statistic).from_fields(good | {"secret": 1})


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
@pytest.mark.parametrize("field", ["images", "sides", "confusion", "scores", "reliability", "fine", "patients"])
def test_counts_that_contradict_each_other_are_refused(statistics, kind, field):
    good = statistics[kind](12, 5).fields()
    path = leaves(good[field])[0]
    with pytest.raises(UpdateError):
        statistics[kind](1, 1).from_fields(good | {field: replaced(good[field], path, lambda old: old + 9)})


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
def test_losses_and_confidences_out_of_range_are_refused(statistics, kind):
    statistic = statistics[kind](12, 5)
    good = statistic.fields()
    worse = [
        ("nll", 13 * 1024 * 2**28),
        ("brier", 25 * 2**28),
        ("nll_squared", 0),
        ("brier_squared", 13 * 4 * 2**28),
        ("reliability", replaced(good["reliability"], (1, 0), lambda old: old + 2**30)),
        ("fine", replaced(good["fine"], (1, 0), lambda old: old + 2**30)),
    ]
    for field, value in worse:
        with pytest.raises(UpdateError, match=field):
            type(statistic).from_fields(good | {field: value})


def test_different_configurations_do_not_merge(statistics):
    make = statistics["binary"]
    with pytest.raises(UpdateError, match="kind"):
        make(4, 1) + statistics["multilabel"](4, 1)
    with pytest.raises(UpdateError):
        make(4, 1) + statistics["features"](4, 1)
    with pytest.raises(UpdateError, match="exclusive"):
        statistics["labels"](4, 1) + statistics["multilabels"](4, 1)
    with pytest.raises(UpdateError, match="patients"):
        rest(make(2, 1), make(9, 2))


def test_sums_beyond_the_limit_are_refused_rather_than_wrapped(statistics):
    labels = statistics["labels"](3, 1)
    counts = [LIMIT, 0, 0]
    full = type(labels).from_fields(
        {"patients": LIMIT, "exclusive": 1, "images": LIMIT, "class_patients": counts, "class_images": counts}
    )
    with pytest.raises(UpdateError, match="patients"):
        full + labels
    mass = {"patients": LIMIT, "images": LIMIT, "mass": [2**62] + [0] * 15}
    histogram = type(statistics["intensities"](1, 1)).from_fields(mass)
    with pytest.raises(UpdateError):
        histogram + histogram


@pytest.mark.parametrize("kind", ALL)
def test_few_patients_are_withheld(statistics, kind):
    empty, some = statistics[kind](0, 1), statistics[kind](8, 1)
    assert release(empty, 1) == Withheld(empty.name, 1)
    assert release(empty, 0) == Withheld(empty.name, 0)
    assert release(some, some.patients) == some.released(some.patients)
    assert release(some, 1) == some
    assert kind == "acquisition" or some.released(some.patients) is some  # its cells are groups of patients
    assert release(some, some.patients + 1) == Withheld(some.name, some.patients + 1)


def test_what_is_no_statistic_is_refused():
    withheld = Withheld("outcome", 10)
    assert codec.decode(codec.encode(withheld)) == withheld == codec.unpack(codec.pack(withheld))
    bad: list[object] = [
        None,
        [],
        {},
        {"kind": "outcome"},
        {"kind": "gossip", "fields": {}},
        {"kind": [], "fields": {}},
    ]
    bad += [
        {"kind": "outcome", "fields": []},
        {"kind": "outcome", "withheld": -1},
        {"kind": "outcome", "withheld": True},
    ]
    bad += [{"kind": "outcome", "withheld": 5, "fields": {}}, {"kind": "outcome", "other": 5}]
    for received in bad:
        with pytest.raises(UpdateError):
            codec.decode(received)
    for body in (b"", b"x", codec.pack(withheld)[:-3], codec.zlib.compress(b"[" * 10**5), codec.zlib.compress(b"\xff")):
        with pytest.raises(UpdateError):
            codec.unpack(body)
    with pytest.raises(UpdateError, match="gossip"):
        codec.decode_fields("gossip", {})


def test_statistics_hash_as_they_compare(statistics):
    a, b = statistics["binary"](5, 1), statistics["binary"](5, 1)
    assert a == b
    assert hash(a) == hash(b)
    assert a != statistics["binary"](5, 2)
    assert a != "binary"
    assert isinstance(np.asarray(a.scores), np.ndarray)
