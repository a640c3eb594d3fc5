"""The gates before Flower's SuperLink, against small apps of our own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest

from polyclinic.server.live import gates
from polyclinic.server.live.gates import Bell, Private, Public

Events = list[dict[str, Any]]


class Fleet:
    """Answers what it is told to, in turn, and remembers what it was asked."""

    def __init__(self, *answers: tuple[int, bytes]) -> None:
        self.answers, self.asked = list(answers), list[tuple[str, bytes]]()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked.append((scope["path"], (await receive())["body"]))
        status, body = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        await gates.plain(send, status, body.decode())


async def enrolment(scope: Any, receive: Any, send: Any) -> None:
    await gates.plain(send, 200, "enrolled")


async def call(app: Any, path: str, *events: dict[str, Any], gone: Awaitable[Any] | None = None) -> tuple[int, bytes]:
    sent: Events = []
    waiting = list(events) or [{"type": "http.request", "body": b"asked", "more_body": False}]

    async def receive() -> dict[str, Any]:
        if waiting:
            return waiting.pop(0)
        if gone is None:
            await asyncio.Event().wait()
        else:
            await gone
        return {"type": "http.disconnect"}

    async def send(event: Any) -> None:
        sent.append(event)

    await app({"type": "http", "path": path, "method": "POST", "state": {}}, receive, send)
    body = b"".join(event.get("body", b"") for event in sent[1:])
    return (sent[0]["status"], body) if sent else (0, b"")


def public(fleet: Fleet, bell: Bell, takeover: Any = lambda body, refusal: False) -> Public:
    return Public(fleet, enrolment, takeover, bell)


@pytest.mark.parametrize(
    "path",
    ["/", "/health", "/docs", "/openapi.json", "/v1/control/start-run", "/v1/runtime/acquire-task", "/v1/fleet",
     "/v1/fleetx/pull", "//v1/fleet/pull-messages", "/v1/control/../fleet/x", "/polyclinic", "/V1/FLEET/x"],
)  # fmt: skip
def test_only_the_fleet_api_and_enrolment_are_there(path: str) -> None:
    fleet = Fleet((200, b"secret"))
    assert asyncio.run(call(public(fleet, Bell()), path)) == (404, b"not here")
    assert fleet.asked == []


def test_fleet_calls_and_enrolment_pass() -> None:
    fleet = Fleet((200, b"pushed"))
    assert asyncio.run(call(public(fleet, Bell()), "/v1/fleet/push-messages")) == (200, b"pushed")
    assert fleet.asked == [("/v1/fleet/push-messages", b"asked")]
    assert asyncio.run(call(public(fleet, Bell()), "/polyclinic/v1/enrol")) == (200, b"enrolled")


def test_a_body_beyond_the_limit_never_reaches_flower() -> None:
    fleet = Fleet((200, b""))
    part = {"type": "http.request", "body": bytes(gates.LARGEST // 2 + 1), "more_body": True}
    status, _ = asyncio.run(call(public(fleet, Bell()), "/v1/fleet/push-object", part, part))
    assert (status, fleet.asked) == (413, [])


def test_a_body_that_never_comes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "BODY_SECONDS", 0.05)
    begun = {"type": "http.request", "body": b"half", "more_body": True}
    status, _ = asyncio.run(call(public(Fleet((200, b"")), Bell()), "/v1/fleet/push-object", begun))
    assert status == 413


def test_an_empty_pull_is_held_until_the_bell() -> None:
    async def go() -> tuple[int, bytes]:
        bell, fleet = Bell(), Fleet((200, b""), (200, b"news"))
        pull = asyncio.ensure_future(call(public(fleet, bell), gates.PULL))
        await asyncio.sleep(0.05)
        assert not pull.done()
        assert len(fleet.asked) == 1  # held, not asked again and again
        bell.ring()
        return await asyncio.wait_for(pull, 1.0)

    assert asyncio.run(go()) == (200, b"news")


def test_a_pull_is_not_held_for_ever_and_errors_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "HOLD", 0.05)
    assert asyncio.run(call(public(Fleet((200, b"")), Bell()), gates.PULL)) == (200, b"")
    monkeypatch.setattr(gates, "HOLD", 60.0)
    assert asyncio.run(call(public(Fleet((401, b"who?")), Bell()), gates.PULL)) == (401, b"who?")


def test_nothing_is_pulled_for_a_caller_who_is_gone() -> None:
    """What Flower hands out is handed out once: given to a dead connection it would be lost."""

    async def go() -> Fleet:
        bell, fleet, gone = Bell(), Fleet((200, b""), (200, b"news")), asyncio.Event()
        pull = asyncio.ensure_future(call(public(fleet, bell), gates.PULL, gone=gone.wait()))
        await asyncio.sleep(0.02)
        gone.set()
        await asyncio.sleep(0.02)
        bell.ring()
        await asyncio.wait_for(pull, 1.0)
        return fleet

    assert len(asyncio.run(go()).asked) == 1


@pytest.mark.parametrize(("status", "tried"), [(400, 2), (401, 1), (200, 1)])
def test_a_refused_activation_gets_a_second_try_only_if_it_was_authenticated(status: int, tried: int) -> None:
    fleet, bodies = Fleet((status, b"no"), (200, b"active")), list[bytes]()

    def takeover(body: bytes, refusal: bytes) -> bool:
        assert refusal == b"no"
        bodies.append(body)
        return True

    asyncio.run(call(public(fleet, Bell(), takeover), gates.ACTIVATE))
    assert len(fleet.asked) == tried
    assert bodies == [b"asked"] * (tried - 1)


@pytest.mark.parametrize("path", ["/v1/control/start-run", "/wrong/v1/control/start-run", "/s3cre", "/", "/s3cret2/x"])
def test_the_private_listener_answers_only_to_who_knows_the_path(path: str) -> None:
    fleet = Fleet((200, b"begun"))
    status, body = asyncio.run(call(Private(fleet, "s3cret", Bell()), path))
    assert (status, body, fleet.asked) == (404, b"not here", [])


def test_the_private_listener_passes_on_and_rings() -> None:
    async def go() -> bool:
        bell, fleet = Bell(), Fleet((200, b"begun"))
        ring = bell.listen()
        assert await call(Private(fleet, "s3cret", bell), "/s3cret/v1/runtime/push-messages") == (200, b"begun")
        assert fleet.asked == [("/v1/runtime/push-messages", b"asked")]
        assert not ring.is_set()  # a message's tensors come after it
        await asyncio.wait_for(ring.wait(), 1.0)
        return ring.is_set()

    assert asyncio.run(go())
