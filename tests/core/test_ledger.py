"""Whatever is done to a ledger's lines, verify names the first that does not follow."""

from __future__ import annotations

import hashlib
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyclinic.core import ledger
from polyclinic.core.errors import RunError


def lines(count: int = 5) -> list[str]:
    entries: list[ledger.Entry] = []
    for i in range(count):
        entries.append(ledger.entry(entries[-1] if entries else None, "round", {"round": i, "name": "ä"}, 1.5 + i))
    return [entry.line() for entry in entries]


def test_a_sound_ledger_verifies_and_its_digests_can_be_recomputed_by_hand() -> None:
    found = list(ledger.verify(lines()))
    assert [entry.sequence for entry in found] == [0, 1, 2, 3, 4]
    assert found[0].previous == "0" * 64
    first = json.loads(lines()[0])
    parts = [first[key] for key in ("sequence", "time", "kind", "body", "previous")]
    by_hand = json.dumps(parts, separators=(",", ":"), ensure_ascii=False, sort_keys=True)
    assert first["digest"] == hashlib.sha256(by_hand.encode()).hexdigest()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda all_: all_[:1] + all_[2:], 2),
        (lambda all_: [all_[1], all_[0], *all_[2:]], 1),
        (lambda all_: [*all_[:3], all_[2], *all_[3:]], 4),
        (lambda all_: [*all_[:4], "{}"], 5),
        (lambda all_: [*all_[:4], "[]"], 5),
        (lambda all_: [*all_[:4], ""], 5),
    ],
)
def test_dropped_moved_repeated_and_foreign_lines_are_named(change, line: int) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(RunError, match=f"ledger line {line}:"):
        list(ledger.verify(change(lines())))


@settings(max_examples=300)
@given(st.integers(0, 4), st.data())
def test_any_changed_byte_is_noticed(row: int, data: st.DataObject) -> None:
    whole = lines()
    body = bytearray(whole[row].encode())
    place = data.draw(st.integers(0, len(body) - 1))
    body[place] = data.draw(st.integers(0, 255).filter(lambda byte: byte != body[place]))
    text = body.decode("utf-8", errors="replace")
    if json_equal(text, whole[row]):
        return
    with pytest.raises(RunError, match=f"ledger line {row + 1}:"):
        list(ledger.verify([*whole[:row], text, *whole[row + 1 :]]))


def json_equal(one: str, other: str) -> bool:
    try:
        return bool(json.loads(one) == json.loads(other))
    except ValueError:
        return False
