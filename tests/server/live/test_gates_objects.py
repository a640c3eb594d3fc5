"""Tensors at the gate: however many sites send and fetch at once, few are in memory; and nobody looks too early."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from polyclinic.server.live import gates
from polyclinic.server.live.gates import Bell, Private, Public

PUSH, PULL_OBJECT = gates.OBJECTS


class Flower:
    """Answers with what it was sent, once ``go`` is set, and remembers how many calls it had at a time."""

    def __init__(self) -> None:
        self.now, self.most, self.asked = 0, 0, list[str]()
        self.go = asyncio.Event()
        self.go.set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = (await receive())["body"]
        self.asked.append(scope["path"])
        self.now += 1
        self.most = max(self.most, self.now)
        await self.go.wait()
        self.now -= 1
        await gates.plain(send, 200, body)


async def enrolment(scope: Any, receive: Any, send: Any) -> None:
    raise AssertionError


def public(flower: Flower, bell: Bell | None = None) -> Public:
    return Public(flower, enrolment, lambda body, refusal: False, bell or Bell())


async def call(app: Any, path: str, *pieces: bytes, slow: asyncio.Event | None = None) -> tuple[int, list[bytes]]:
    """(status, pieces of the answer); with ``slow``, the last piece of the request comes only when it is set."""
    waiting, sent = list(pieces), list[dict[str, Any]]()

    async def receive() -> dict[str, Any]:
        if not waiting:
            await asyncio.Event().wait()
        if slow is not None and len(waiting) == 1:
            await slow.wait()
        piece = waiting.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(waiting)}

    async def send(event: dict[str, Any]) -> None:
        sent.append(event)

    await app({"type": "http", "path": path, "method": "POST", "state": {}}, receive, send)
    assert [event["type"] for event in sent] == ["http.response.start"] + ["http.response.body"] * (len(sent) - 1)
    assert [event.get("more_body", False) for event in sent[1:]] == [True] * (len(sent) - 2) + [False]
    return sent[0]["status"], [event["body"] for event in sent[1:]]


@pytest.mark.parametrize("size", [0, 1, gates.SMALL, 5 * 2**20 + 17])
@pytest.mark.parametrize("path", [PUSH, PULL_OBJECT])
def test_a_tensor_passes_whole_both_ways_in_small_pieces(path: str, size: int) -> None:
    body = bytes(range(256)) * (size // 256) + bytes(size % 256)
    pieces = [body[at : at + 60_000] for at in range(0, size, 60_000)] or [b""]

    async def go() -> None:
        status, answer = await call(public(Flower()), path, *pieces)
        assert status == 200
        assert b"".join(answer) == body
        assert max(map(len, answer)) <= gates.PIECE

    asyncio.run(go())


def test_few_tensors_are_with_flower_at_a_time_and_all_get_there() -> None:
    async def go() -> tuple[int, int, int]:
        flower = Flower()
        flower.go.clear()
        gate = public(flower)
        calls = [asyncio.ensure_future(call(gate, PUSH, b"x" * 1000)) for _ in range(20)]
        await asyncio.sleep(0.05)
        waiting = flower.now
        flower.go.set()
        found = await asyncio.wait_for(asyncio.gather(*calls), 5.0)
        return waiting, flower.most, sum(status == 200 for status, _ in found)

    assert asyncio.run(go()) == (gates.AT_ONCE, gates.AT_ONCE, 20)


def test_who_sends_slowly_holds_up_nobody() -> None:
    async def go() -> None:
        gate, slow = public(Flower()), asyncio.Event()
        slows = [asyncio.ensure_future(call(gate, PUSH, b"x", b"y", slow=slow)) for _ in range(5 * gates.AT_ONCE)]
        await asyncio.sleep(0.02)
        assert await asyncio.wait_for(call(gate, PUSH, b"quick"), 1.0) == (200, [b"quick", b""])
        slow.set()
        assert {status for status, _ in await asyncio.wait_for(asyncio.gather(*slows), 5.0)} == {200}

    asyncio.run(go())


def test_what_carries_no_tensors_is_small() -> None:
    async def go() -> None:
        flower = Flower()
        assert (await call(public(flower), "/v1/fleet/push-messages", bytes(gates.LARGEST_OTHER + 1)))[0] == 413
        assert flower.asked == []
        assert (await call(public(flower), "/v1/fleet/push-messages", bytes(gates.LARGEST_OTHER)))[0] == 200

    asyncio.run(go())


def test_nobody_looks_for_a_message_while_its_tensors_are_coming() -> None:
    async def go() -> None:
        bell, sites, inside = Bell(), Flower(), Flower()
        outer, inner = public(sites, bell), Private(inside, "s3cret", bell)
        inside.go.clear()
        push = asyncio.ensure_future(call(inner, "/s3cret/v1/runtime/push-messages", b"message"))
        await asyncio.sleep(0.02)
        pull = asyncio.ensure_future(call(outer, gates.PULL, b"what is new?"))
        await asyncio.sleep(2 * gates.CALM)
        assert sites.asked == []
        inside.go.set()
        await push
        assert sites.asked == []  # its tensors follow
        await call(inner, "/s3cret/v1/runtime/push-object", b"tensor")
        assert await asyncio.wait_for(pull, 1.0) == (200, [b"what is new?"])
        assert sites.asked == [gates.PULL]

    asyncio.run(go())


def test_news_that_never_end_are_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "LONG", 0.2)

    async def go() -> bool:
        bell, inside = Bell(), Flower()
        inner, ring = Private(inside, "s3cret", bell), bell.listen()
        for _ in range(40):
            await call(inner, "/s3cret/v1/runtime/push-object", b"tensor")
            await asyncio.sleep(0.01)
        return ring.is_set()

    assert asyncio.run(go())


@pytest.mark.filterwarnings("ignore:No path_separator:DeprecationWarning")  # flwr's, about alembic
def test_flowers_connections_keep_little(tmp_path: Path) -> None:
    from polyclinic.server.live.superlink import SuperLink

    superlink = SuperLink(str(tmp_path / "superlink.db"), bytes(64))
    with superlink._state._engine.connect() as connection:
        found = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("cache_size", "mmap_size")]
    assert found == [-2000, 0]
    superlink._state._engine.dispose()
