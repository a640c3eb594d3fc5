"""One Flower run, begun and carried by this process: what a ServerApp needs to reach the sites.

No code travels: the app bundle that Flower asks for holds a ``pyproject.toml`` that names the installed package. The
internal names of flwr 1.41 that this needs are imported here and in ``superlink`` and nowhere else.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast

import httpx
from flwr.app import Context, Message
from flwr.cli.build import build_fab_from_files
from flwr.common.constant import SubStatus
from flwr.common.serde import context_from_proto, run_from_proto
from flwr.proto.control_pb2 import StartRunRequest, StopRunRequest
from flwr.proto.fab_pb2 import Fab
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.control.control_http_client import ControlHttpClient
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectUnavailableError,
    inflate_object_from_contents,
    pull_objects,
)
from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor, SuperExecAuthHttpInterceptor
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from polyclinic.core.errors import EngineError

ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
BEAT = 10.0
"""Seconds between two signs of life; Flower gives a task up after 60 without."""
BUNDLE = b"""[project]
name = "polyclinic"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "polyclinic"
fab-include = ["pyproject.toml"]
[tool.flwr.app.components]
serverapp = "polyclinic.server.app:app"
clientapp = "polyclinic.client.app:app"
[tool.flwr.app.config]
run = ""
"""
"""All that Flower is given of us: which attribute of the installed package is which app."""


@dataclass(frozen=True)
class Door:
    """How the SuperLink's loopback listener is reached: "127.0.0.1:PORT/SECRET", and the secret for taking tasks."""

    address: str
    secret: bytes


class LazyGrid(HttpGrid):
    """Flower's, but for replies being fetched one after another as they are asked for, not all before the first.

    A reply is told of as soon as its sender begins to send it. Here it is waited for by nobody: it is looked at again
    at the next call, since its sender may have died, or be on a slow line.
    """

    def __init__(self, address: str, token: str) -> None:
        super().__init__(address, insecure=True, token=token)
        self._coming: dict[str, tuple[str, ObjectTree]] = {}  # instruction → (reply, its parts)

    def coming(self) -> Collection[str]:
        """Instructions to which a reply has begun to arrive."""
        return self._coming.keys()

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        """The replies that are there: one call tells which, and each takes memory in its turn only."""
        client, run = self._runtime_client, self.run.run_id
        asked = [identifier for identifier in message_ids if identifier not in self._coming]
        found = client.PullMessages(PullAppMessagesRequest(message_ids=asked))
        for told, tree in zip(found.messages_list, found.message_object_trees, strict=True):
            self._coming[told.metadata.reply_to_message_id] = told.metadata.message_id, tree
        pull = make_pull_object_fn_protobuf(client.PullObject, self.node, run)
        for question, (identifier, tree) in list(self._coming.items()):
            try:
                pull(tree.object_id)  # the root of the tree is sent last
                parts = pull_objects([part.object_id for part in iterate_object_tree(tree)], pull_object_fn=pull)
            except ObjectUnavailableError:
                continue
            except ObjectPullError:  # its sender died while sending: the instruction goes out again
                del self._coming[question]
                continue
            client.ConfirmMessageReceived(
                ConfirmMessageReceivedRequest(node=self.node, run_id=run, message_object_id=identifier)
            )
            del self._coming[question]
            yield _inflated(identifier, parts)


def _inflated(identifier: str, parts: dict[str, bytes]) -> Message:
    message = cast(Message, inflate_object_from_contents(identifier, parts))
    message.metadata.__dict__["_message_id"] = identifier
    return message


@contextmanager
def flower_run(door: Door) -> Iterator[tuple[LazyGrid, Context]]:
    """Begins a Flower run and takes its ServerApp task; the run ends with the block.

    Raises:
        EngineError: the SuperLink does not answer, or has another ServerApp's task first.
    """
    with _explained(door):
        identifier, token = _begin(door)
        grid = LazyGrid(door.address, token)
        client: RuntimeHttpClient = grid._runtime_client
        given = client.PullTaskInput(PullTaskInputRequest())
    TaskIdentity.task_id, TaskIdentity.run_id = given.task_id, given.run.run_id
    TaskIdentity.node_id = given.context.node_id
    grid.set_run(run_from_proto(given.run))
    stop = threading.Event()
    threading.Thread(target=_beat, args=(client, stop), daemon=True).start()
    try:
        yield grid, context_from_proto(given.context)
    finally:
        stop.set()
        grid._retry_invoker.max_tries = 1
        with suppress(Exception):  # whoever begins the next run does not need this one's end
            client.PushTaskOutput(PushTaskOutputRequest(sub_status=SubStatus.COMPLETED, details=""))
        with suppress(Exception), _control(door) as control:
            control.StopRun(StopRunRequest(run_id=identifier))
        grid.close()


def _begin(door: Door) -> tuple[int, str]:
    """(Flower's run id, token of its ServerApp task); tasks of runs that nobody carries any more are stopped."""
    bundle, _ = build_fab_from_files({"pyproject.toml": BUNDLE})
    fab = Fab(hash_str=hashlib.sha256(bundle).hexdigest(), content=bundle)
    with _control(door) as control:
        identifier = control.StartRun(StartRunRequest(fab=fab)).run_id
        guard = SuperExecAuthHttpInterceptor(master_secret=door.secret, protected_methods={ACQUIRE})
        with _runtime(door, RuntimeVersionHttpInterceptor(component_name="SuperExec"), guard) as runtime:
            for _ in range(100):
                taken = runtime.AcquireTask(AcquireTaskRequest(supported_task_types=["flwr-serverapp"]))
                if not taken.HasField("task"):
                    time.sleep(0.1)
                elif taken.task.run_id == identifier:
                    return identifier, taken.token
                else:
                    control.StopRun(StopRunRequest(run_id=taken.task.run_id))
    raise EngineError("Flower's SuperLink gives no ServerApp task", where=door.address.split("/")[0])


def _control(door: Door) -> Any:
    version = RuntimeVersionHttpInterceptor(component_name="flwr CLI")
    return ControlHttpClient.from_server_address(door.address, True, None, [version])


def _runtime(door: Door, *interceptors: Any) -> Any:
    return RuntimeHttpClient.from_server_address(door.address, True, None, list(interceptors))


def _beat(client: RuntimeHttpClient, stop: threading.Event) -> None:
    while not stop.wait(BEAT):
        with suppress(Exception):  # the SuperLink is being restarted: the next beat will do
            client.SendTaskHeartbeat(SendTaskHeartbeatRequest())


@contextmanager
def _explained(door: Door) -> Iterator[None]:
    try:
        yield
    except (httpx.HTTPError, ValueError) as failure:
        where = door.address.split("/")[0]  # what follows is secret
        raise EngineError(f"Flower's SuperLink does not answer: {type(failure).__name__}", where=where) from failure
