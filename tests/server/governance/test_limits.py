"""What one site may take, by a clock that the test sets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyclinic.core.errors import TrustError
from polyclinic.server.governance.limits import Guard, Limits


class Clock:
    """Time that a test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def nothing() -> None:
    """What a call is ended with."""


def test_rate_and_burst() -> None:
    clock = Clock()
    guard = Guard(Limits(rate=20, burst=40), clock)
    for _ in range(40):
        guard.leave(guard.enter("north", stream=False, cancel=nothing))
    with pytest.raises(TrustError, match="20 times a second"):
        guard.enter("north", stream=False, cancel=nothing)
    guard.leave(guard.enter("south", stream=False, cancel=nothing))  # others are not hurt
    clock.now += 0.06
    guard.leave(guard.enter("north", stream=False, cancel=nothing))
    with pytest.raises(TrustError, match="20 times a second"):
        guard.enter("north", stream=True, cancel=nothing)


@given(st.lists(st.floats(0, 0.2), max_size=300))
def test_never_more_than_the_rate_allows(pauses: list[float]) -> None:
    clock = Clock()
    guard, granted = Guard(Limits(rate=20, burst=10), clock), 0
    for pause in pauses:
        clock.now += pause
        try:
            guard.leave(guard.enter("north", stream=False, cancel=nothing))
            granted += 1
        except TrustError:
            pass
    assert granted <= 10 + 20 * sum(pauses) + 1e-6


def test_calls_and_streams_at_once() -> None:
    guard = Guard(Limits(calls=2, streams=1), Clock())
    first = guard.enter("north", stream=False, cancel=nothing)
    guard.enter("north", stream=False, cancel=nothing)
    guard.enter("north", stream=True, cancel=nothing)
    with pytest.raises(TrustError, match="2 calls under way"):
        guard.enter("north", stream=False, cancel=nothing)
    with pytest.raises(TrustError, match="1 event streams under way"):
        guard.enter("north", stream=True, cancel=nothing)
    guard.enter("south", stream=False, cancel=nothing)
    guard.leave(first)
    guard.leave(first)  # twice does no harm
    guard.enter("north", stream=False, cancel=nothing)


def test_what_takes_too_long_is_ended() -> None:
    clock, ended = Clock(), []
    guard = Guard(Limits(call_seconds=30, stream_seconds=3600), clock)
    guard.enter("north", stream=False, cancel=lambda: ended.append("call"))
    guard.enter("north", stream=True, cancel=lambda: ended.append("stream"))
    clock.now += 29
    assert guard.sweep() == 0
    clock.now += 1
    assert guard.sweep() == 1
    assert ended == ["call"]
    clock.now += 3600
    guard.sweep()
    assert "stream" in ended
