"""FlowerSites over a grid that holds its messages itself."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from polyclinic.core.errors import EngineError, RunError
from polyclinic.core.study import Study
from polyclinic.server import app as server_app
from polyclinic.server.journal import Journal
from polyclinic.server.rounds import Delivery
from polyclinic.server.transport import REFUSED, FlowerSites

NODES = {"north": 11, "south": 12, "west": 13}
Answer = Callable[[Message], Message | None]


def payload(content: bytes) -> RecordDict:
    return RecordDict({"message": ArrayRecord({"bytes": Array("uint8", (len(content),), "polyclinic", content)})})


def echo(message: Message) -> Message:
    return Message(payload(b"from %d" % message.metadata.dst_node_id), reply_to=message)


class FakeGrid(Grid):
    """Answers when a reply is pulled for the ``after``-th time."""

    def __init__(self, answer: Answer = echo, after: dict[int, int] | None = None) -> None:
        self.answer, self.after = answer, after or {}
        self.pushed: dict[str, Message] = {}
        self.pulled: list[list[str]] = []
        self.nodes = [NodeInfo(node_id=number, name=name) for name, number in NODES.items()]
        self.refuses: set[int] = set()

    def push_messages(self, messages: Iterable[Message]) -> list[Any]:
        taken: list[Any] = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = f"m{len(self.pushed)}"
            self.pushed[message.metadata.message_id] = message
            taken.append(None if message.metadata.dst_node_id in self.refuses else message.metadata.message_id)
        return taken

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        ids = list(message_ids)
        self.pulled.append(ids)
        replies = []
        for identifier in ids:
            message = self.pushed[identifier]
            node = message.metadata.dst_node_id
            self.after[node] = self.after.get(node, 1) - 1
            if self.after[node] <= 0 and (reply := self.answer(message)) is not None:
                replies.append(reply)
        return replies

    def get_nodes(self) -> list[NodeInfo]:
        return self.nodes

    def get_node_ids(self) -> list[int]:
        return [node.node_id for node in self.nodes]

    def set_run(self, run: Run) -> None: ...

    @property
    def run(self) -> Run:
        return Run.create_empty(1)

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise AssertionError("deprecated")

    def send_and_receive(self, *args: Any, **kwargs: Any) -> list[Message]:
        raise AssertionError("holds every reply")


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


def send(grid: Grid, to: Iterable[str] = NODES, deadline: float = 5.0) -> list[Delivery]:
    return list(FlowerSites(grid).send(b"do this", list(to), deadline))


def test_names_are_those_under_which_nodes_were_registered() -> None:
    grid = FakeGrid()
    grid.nodes.append(NodeInfo(node_id=99))  # without a name: no site
    assert FlowerSites(grid).names() == ["north", "south", "west"]


def test_two_nodes_of_one_name_are_an_error() -> None:
    grid = FakeGrid()
    grid.nodes.append(NodeInfo(node_id=99, name="south"))
    with pytest.raises(EngineError, match="south: two nodes"):
        FlowerSites(grid).names()


def test_every_site_gets_the_bytes_and_answers() -> None:
    grid = FakeGrid()
    assert send(grid) == [Delivery(name, b"from %d" % number) for name, number in NODES.items()]
    sent = list(grid.pushed.values())
    assert {m.content.array_records["message"]["bytes"].data for m in sent} == {b"do this"}
    assert len({id(m.content) for m in sent}) == 1  # one copy, however many sites
    assert {m.metadata.ttl for m in sent} == {5.0}


def test_replies_come_as_they_are_ready_and_one_id_is_pulled_at_a_time() -> None:
    grid = FakeGrid(after={11: 3, 12: 2})
    assert [delivery.site for delivery in send(grid)] == ["west", "south", "north"]
    assert all(len(ids) == 1 for ids in grid.pulled)


def test_only_the_sites_named_are_asked() -> None:
    assert [delivery.site for delivery in send(FakeGrid(), ["south"])] == ["south"]


def test_refusals_read_as_written_and_crashes_are_told_in_a_line() -> None:
    def answer(message: Message) -> Message:
        node = message.metadata.dst_node_id
        if node == 11:
            return Message(Error(REFUSED, "this study was not approved here"), reply_to=message)
        if node == 12:
            return Message(Error(2, "Traceback\n  File x\nMemoryError: too much"), reply_to=message)
        return Message(Error(5), reply_to=message)

    assert [delivery.failure for delivery in send(FakeGrid(answer))] == [
        "this study was not approved here",
        "Flower error 2: MemoryError: too much",
        "Flower error 5: no reason given",
    ]


@pytest.mark.parametrize("content", [RecordDict(), RecordDict({"message": ConfigRecord({"bytes": b"x"})})])
def test_what_is_no_reply_is_a_failure(content: RecordDict) -> None:
    (delivery,) = send(FakeGrid(lambda message: Message(content, reply_to=message)), ["north"])
    assert (delivery.message, delivery.failure) == (None, "answered with something that is no reply")


def test_a_site_that_never_answers_is_not_waited_for_beyond_the_deadline() -> None:
    grid = FakeGrid(lambda message: None if message.metadata.dst_node_id == 12 else echo(message))
    begun = time.monotonic()
    assert [delivery.site for delivery in send(grid, deadline=0.4)] == ["north", "west"]
    assert 0.4 <= time.monotonic() - begun < 1.0
    assert len(grid.pulled) < 12  # looks in growing intervals


def test_a_late_reply_of_an_earlier_round_is_never_seen() -> None:
    grid = FakeGrid(lambda message: None)
    assert send(grid, deadline=0.1) == []
    grid.answer = echo
    earlier, grid.pulled = set(grid.pushed), []
    assert len(send(grid)) == 3
    assert not earlier & {identifier for ids in grid.pulled for identifier in ids}


def test_gone_nodes_and_untaken_messages_fail_at_once() -> None:
    grid = FakeGrid()
    grid.refuses = {12}
    del grid.nodes[2]
    deliveries = {delivery.site: delivery for delivery in send(grid)}
    assert deliveries["north"].message == b"from 11"
    assert deliveries["south"].failure == deliveries["west"].failure == "its node is gone or did not take the message"


def test_one_reply_is_in_memory_at_a_time() -> None:
    alive: weakref.WeakSet[Message] = weakref.WeakSet()

    def answer(message: Message) -> Message:
        assert not alive
        reply = echo(message)
        alive.add(reply)
        return reply

    for delivery in FlowerSites(FakeGrid(answer)).send(b"do this", list(NODES), 5.0):
        assert delivery.message
        del delivery


def test_whatever_the_grid_raises_is_an_engine_error() -> None:
    def answer(message: Message) -> Message:
        raise ConnectionError("the SuperLink hung up")

    with pytest.raises(EngineError, match="ConnectionError: the SuperLink hung up"):
        send(FakeGrid(answer))


def test_the_server_app_needs_a_run_folder(tiny_study: Study, tmp_path_factory: pytest.TempPathFactory) -> None:
    from flwr.app import Context

    with pytest.raises(RunError, match="no run folder is named"):
        server_app.app(grid=FakeGrid(), context=Context(1, 1, {}, RecordDict(), {}))
    folder = tmp_path_factory.mktemp("run")
    (folder / "study.toml").write_text(tiny_study.toml())
    Journal.create(folder, {"run": "r"}).close()
    with pytest.raises(RunError, match=r"initial\.safetensors: the initial adapter cannot be read"):
        server_app.app(grid=FakeGrid(), context=Context(1, 1, {}, RecordDict(), {"run": str(folder)}))
