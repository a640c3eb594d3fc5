"""Hostile replies at the receiving seam: each is set aside with its own reason, the run ends at the same bits."""

from __future__ import annotations

import json
import re
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest
import rfc8785

from polyclinic.core import ledger
from polyclinic.core.messages import HEADER_LIMIT, Reply, decode_instruction, decode_reply, encode_reply
from polyclinic.core.update import Update, digest
from polyclinic.server.journal import Journal
from polyclinic.server.receive import Delivery
from tests.faults.hostile.bench import Bend, Honest, honest, ledger_of, opened, packed, play, tensor_file
from tests.faults.hostile.figures import COUNTED, NAMED
from tests.faults.hostile.messages import QUESTION, WHOLE
from tests.faults.hostile.updates import FILE, TENSORS, WEIGHT

NAMES = ["bob", "eve", "zoe"]
GROUPS = {
    "weight": WEIGHT,
    "tensors": TENSORS,
    "tensor file": FILE,
    "message": WHOLE,
    "question": QUESTION,
    "statistics": NAMED,
    "counts": COUNTED,
}
CLASSES = [pytest.param(*how, id=f"{group}: {name}") for group, all_ in GROUPS.items() for name, how in all_.items()]


@lru_cache(maxsize=1)
def undisturbed() -> str:
    state, _ = play(Honest(["bob", "zoe"]))
    return digest(state.tensors)


def test_there_are_more_than_a_hundred_classes() -> None:
    assert len(CLASSES) > 120


@pytest.mark.parametrize(("bend", "reason"), CLASSES)
def test_it_is_set_aside_with_its_reason_and_the_others_go_on(bend: Bend, reason: str) -> None:
    state, journal = play(Honest(NAMES, {"eve": bend}))
    assert digest(state.tensors) == undisturbed()
    for record in journal.rounds():
        assert list(record["sites"]) == ["bob", "zoe"]
        assert list(record["excluded"]) == ["eve"]
        why = record["excluded"]["eve"]
        assert re.search(reason, why)
        assert len(why) <= 500
        assert why.isprintable()
    kept = demanded_sound(journal)
    assert "Jane Doe" not in kept.replace("'Jane Doe 1950': statistic was not agreed on", "")


def demanded_sound(journal: Journal) -> str:
    """The text of a ledger that verifies."""
    lines = [rfc8785.dumps(entry).decode() for entry in ledger_of(journal)]
    assert len(list(ledger.verify(lines))) == len(lines)
    return "\n".join(lines)


def reordered(reply: Reply) -> bytes:
    """The honest reply with its tensors in another order, their data too."""
    header, _ = opened(encode_reply(reply))
    if reply.update is None:
        return encode_reply(reply)
    entries, data = {}, b""
    for name in sorted(reply.update.tensors, reverse=True):
        array = reply.update.tensors[name]
        entries[name] = {
            "data_offsets": [len(data), len(data) + array.nbytes],
            "shape": list(array.shape),
            "dtype": "F32",
        }
        data += array.tobytes()
    return packed(dict(reversed(header.items())), tensor_file(entries, data))


def test_another_order_of_tensors_and_keys_is_harmless() -> None:
    expected, _ = play(Honest(NAMES))
    found, journal = play(Honest(NAMES, {"eve": reordered}))
    assert digest(found.tensors) == digest(expected.tensors)
    assert journal.rounds()[0]["excluded"] == {}


class Scripted(Honest):
    """Says first whatever ``first`` makes of the honest replies."""

    def __init__(self, names: Sequence[str], first: object) -> None:
        super().__init__(names)
        self._first = first

    def send(self, message: bytes, to: Sequence[str], deadline: float) -> Iterator[Delivery]:
        asked = decode_instruction(message)
        yield from self._first({site: honest(site, asked) for site in [*to, "mallory"]})  # type: ignore[operator]
        yield from super().send(message, to, deadline)


@pytest.mark.parametrize(
    ("first", "who", "reason"),
    [
        (lambda r: [Delivery("mallory", encode_reply(r["mallory"]))], "mallory", "was not asked in this round"),
        (lambda r: [Delivery("mallory", encode_reply(r["bob"]))], "mallory", "was not asked in this round"),
        (lambda r: [Delivery("bob\u200b", encode_reply(r["bob"]))], "bob\u200b", "was not asked in this round"),
        (lambda r: [Delivery("../bob", encode_reply(r["bob"]))], "../bob", "was not asked in this round"),
        (lambda r: [Delivery("bob", encode_reply(r["zoe"]))], "bob", "reply carries another site's name"),
        (lambda r: [Delivery("bob", encode_reply(r["bob"]))], "bob", "answered twice in one round"),
        (
            lambda r: [
                Delivery("bob", encode_reply(r["bob"])),
                Delivery("bob", encode_reply(replace(r["bob"], update=Update("bob", 1, {})))),
            ],
            "bob",
            "answered twice in one round",
        ),
        (lambda r: [Delivery("bob", b""), Delivery("bob", b"x")], "bob", "no message of this protocol version"),
        (lambda r: [Delivery("bob", failure="late")] * 3, "bob", "late"),
    ],
)
def test_who_was_not_asked_or_speaks_twice_harms_nobody(first: object, who: str, reason: str) -> None:
    expected, _ = play(Honest(["bob", "zoe"]))
    found, journal = play(Scripted(["bob", "zoe"], first))
    assert digest(found.tensors) == digest(expected.tensors)
    assert {"bob", "zoe"} == journal.rounds()[0]["sites"].keys()
    (entry, *_) = [entry for entry in ledger_of(journal) if entry["kind"] == "round"]
    assert [why for site, why in entry["body"]["refused"] if site == who][-1] == reason or reason in str(entry["body"])
    demanded_sound(journal)


def test_a_reply_of_the_round_before_is_refused_when_it_is_said_again() -> None:
    earlier: dict[str, bytes] = {}

    def replay(reply: Reply) -> bytes:
        now = encode_reply(reply)
        return earlier.setdefault("first", now)

    _, journal = play(Honest(NAMES, {"eve": replay}))
    first, second = journal.rounds()
    assert first["excluded"] == {}
    assert second["excluded"] == {"eve": "reply is to another round"}


def test_tensors_that_nobody_asked_for_are_refused_before_they_are_read() -> None:
    def greedy(reply: Reply) -> Reply:
        return reply if reply.update else replace(reply, update=Update("eve", 40, {"x": np.zeros(2**20, np.float32)}))

    _, journal = play(Honest(NAMES, {"eve": greedy}))
    assert "at most 0 were agreed" in journal.result("final")["excluded"]["eve"]


@pytest.mark.parametrize("name", ["describe/labels", "describe/features", "describe/kernel", "describe/intensities"])
def test_whoever_tells_first_does_not_decide_what_the_others_may_tell(name: str) -> None:
    """The seam that one hostile site could once have closed for all the others."""
    _, journal = play(Honest(["adam", *NAMES], {"eve": lambda reply: replace(reply, statistics=without(reply, name))}))
    assert journal.rounds()[0]["excluded"] == {}
    assert [site for site, _ in journal.told(name)] == ["adam", "bob", "zoe"]


def without(reply: Reply, name: str) -> dict[str, object]:
    return {key: value for key, value in reply.statistics.items() if key != name}


FILLERS = {
    "tables": b"{},",
    "tables in tables": b'{"":{}},',
    "integers": b"300,",
    "words": b'"ab",',
}


@pytest.mark.parametrize("filler", FILLERS)
def test_no_header_takes_much_time_or_memory(filler: str) -> None:
    piece = FILLERS[filler]
    message = packed(b'{"site":[' + piece * ((HEADER_LIMIT - 20) // len(piece)) + b"0]}")
    assert len(message) < 2**16  # what it costs to send
    begun = time.process_time()
    refused(message)
    assert time.process_time() - begun < 1.0
    tracemalloc.start()
    try:
        refused(message)
        assert tracemalloc.get_traced_memory()[1] < 200 * 2**20
    finally:
        tracemalloc.stop()


def refused(message: bytes) -> None:
    from polyclinic.core.errors import UpdateError

    with pytest.raises(UpdateError):
        decode_reply(message)


def test_the_journal_holds_nothing_of_a_reply_that_was_set_aside() -> None:
    text = "Jane Doe 1950"
    _, journal = play(Honest(NAMES, {"eve": lambda reply: replace(reply, run=text)}))
    held = json.dumps(journal.rounds()) + json.dumps(ledger_of(journal)) + str(journal.told_by())
    assert text not in held
    assert "eve" not in journal.told_by()
