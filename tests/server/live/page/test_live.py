"""live.json is read with care: whatever stands there, a page can be made of it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyclinic.server.live.page import live, sayings
from polyclinic.server.live.page.fragments import title

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = ("run", "study", "phase", "why", "round", "rounds", "deadline", "updated", "quorum", "left", "sites", "events")
SITE = st.fixed_dictionaries({}, optional=dict.fromkeys(("state", "since", "why", "missed", "last"), JSON))
EVENT = st.fixed_dictionaries({}, optional=dict.fromkeys(("at", "kind", "round", "site", "text"), JSON))
SOME = {"sites": JSON | st.dictionaries(st.text(max_size=8), SITE | JSON, max_size=3), "events": JSON | st.lists(EVENT)}


@settings(max_examples=100, deadline=None)
@given(st.fixed_dictionaries({}, optional={**dict.fromkeys(FIELDS, JSON), **SOME}))
def test_anything_can_be_told_of(document: dict[str, Any]) -> None:
    found = live.parse(json.dumps(document))
    for text in (sayings.headline(found), sayings.why(found), sayings.needed(found), title(found)):
        assert text == live.said(text) or len(text) > live.MOST
    for site in sayings.ranked(found.sites):
        assert sayings.state_of(site).word
        sayings.explained(site)
    assert len(sayings.told(found.events)) <= live.EVENTS
    assert all(number > 0 for _, number in sayings.counts(found))
    sayings.alarms(found)


@pytest.mark.parametrize("text", ["", "[]", "{", '"x"', "nul", "\x00"])
def test_what_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        live.parse(text)


def test_nothing_hides_in_a_text() -> None:
    assert live.said("a\u202eb\x00c\n\nd\u2066\ud800e") == "a b c d e"
    assert live.said("x" * 10_000) == "x" * 599 + "…"
    assert live.said(7) == ""


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -1, 1e12, True, "3", 10**400, None])
def test_no_number_of_seconds(number: Any) -> None:
    assert live.epoch(number) is None


def test_only_numbers_that_count() -> None:
    assert [live.whole(value) for value in (3, True, 3.5, 10**10, "3", None)] == [3, None, None, None, None, None]


def test_a_whole_document() -> None:
    row = {"state": "refused", "since": 5.0, "why": "no", "missed": 2, "certificate_days": 3, "last": 1}
    event = {"at": 6.0, "kind": "alarm", "round": 2, "site": "north", "text": "revoked"}
    found = live.parse(
        json.dumps({"run": "r", "phase": "running", "round": 5, "rounds": 4, "updated": 10, "left": 5.5}
                   | {"sites": {"north": row}, "events": [event] * 60})
    )  # fmt: skip
    assert found.sites == (live.SiteNow("north", "refused", 5.0, "no", 2, 3, 1),)
    assert found.events == (live.Happened(6.0, "alarm", 2, "north", "revoked"),) * 50
    assert (found.judging, found.end) == (True, 15.5)
