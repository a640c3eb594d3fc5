"""Events and receipts: what is none is refused, and what is one comes back from JSON as it was."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from polyclinic.core.errors import RunError, UpdateError
from polyclinic.core.privacy import receipt
from polyclinic.core.privacy.events import Event
from polyclinic.core.privacy.receipt import Receipt

GOOD = Receipt("patient", 1e-5, 0.5, 1.5, "Gaussian noise", "0" * 64, "system")


@given(st.floats(0.01, 1e6), st.floats(1e-6, 1.0), st.integers(1, 10**6), st.sampled_from(["patient", "image"]))
def test_an_event_comes_back(noise: float, rate: float, steps: int, unit: Any) -> None:
    event = Event("poisson_gaussian", noise, rate, steps, unit)
    assert Event.read(json.loads(rfc8785.dumps(event.document()))) == event


@pytest.mark.parametrize(
    "wrong",
    [
        {"mechanism": "laplace"},
        {"noise": 0.0},
        {"noise": -1.0},
        {"noise": math.inf},
        {"noise": math.nan},
        {"noise": "1"},
        {"noise": True},
        {"rate": 0.0},
        {"rate": 1.5},
        {"steps": 0},
        {"steps": 1.0},
        {"steps": True},
        {"unit": "ward"},
        {"mechanism": "gaussian"},
        {"extra": 1},
    ],
)
def test_what_is_no_event_is_refused(wrong: dict[str, Any]) -> None:
    good = Event("poisson_gaussian", 1.0, 0.5, 3).document()
    with pytest.raises(RunError, match="no privacy event"):
        Event.read({**good, **wrong})
    with pytest.raises(RunError, match="no privacy event"):
        Event.read({key: value for key, value in good.items() if key != "noise"})


def test_a_receipt_comes_back_and_speaks() -> None:
    assert receipt.decode(json.loads(json.dumps(receipt.encode(GOOD)))) == GOOD
    assert receipt.decode({**receipt.encode(GOOD), "study": 2}) == replace(GOOD, study=2.0)  # canonical JSON has no 2.0
    assert "by patient, add or remove one, δ = 1e-05" in GOOD.words()
    assert replace(GOOD, generator="simulated").words().startswith("simulated noise: no privacy")


@pytest.mark.parametrize(
    "wrong",
    [
        {"unit": "site"},
        {"unit": []},
        {"delta": 0},
        {"delta": 1.0},
        {"round": -0.1},
        {"round": 1.6},
        {"study": math.inf},
        {"study": "2"},
        {"study": True},
        {"site": 2.0},
        {"mechanism": "a\nb"},
        {"mechanism": "x" * 501},
        {"mechanism": 5},
        {"head": "0" * 63},
        {"head": None},
        {"generator": "none"},
        {"adjacency": "replace one"},
        {"more": 1},
    ],
)
def test_what_is_no_receipt_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UpdateError, match="no receipt"):
        receipt.decode({**receipt.encode(GOOD), **wrong})
