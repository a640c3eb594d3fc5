"""A message whose parts are still coming in is waited for, closely, and what is not there at all is not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from flwr.proto.message_pb2 import PullObjectRequest, PullObjectResponse
from flwr.supercore.runtime import RuntimeHttpClient

from polyclinic.client import tasks


def answering(monkeypatch: pytest.MonkeyPatch, answers: Iterator[PullObjectResponse]) -> list[float]:
    pauses: list[float] = []
    monkeypatch.setattr(RuntimeHttpClient, "PullObject", lambda self, request: next(answers))
    monkeypatch.setattr(tasks.time, "sleep", pauses.append)
    return pauses


def pull() -> Any:
    client = tasks._client("127.0.0.1:1")
    try:
        return client.PullObject(PullObjectRequest(object_id="x"))
    finally:
        client.close()


def test_what_is_coming_is_looked_for_often_at_first_and_not_too_often_later(monkeypatch: pytest.MonkeyPatch) -> None:
    coming = PullObjectResponse(object_found=True, object_available=False)
    there = PullObjectResponse(object_found=True, object_available=True, object_content=b"tensor")
    pauses = answering(monkeypatch, iter([coming] * 20 + [there]))
    assert pull().object_content == b"tensor"
    assert pauses[0] == tasks.COMING[0]
    assert pauses == sorted(pauses)
    assert pauses[-1] == tasks.COMING[1]


def test_what_is_not_there_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses = answering(monkeypatch, iter([PullObjectResponse(object_found=False)]))
    assert not pull().object_found
    assert pauses == []
