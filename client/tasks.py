"""Takes a stock SuperNode's tasks over its loopback Runtime API, one after another, in this very process.

What a task brings besides its message – above all the app bundle – is dropped unopened: nothing that came over the
network is ever code. The internal names of flwr 1.41 that this needs are imported here and nowhere else at a site.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import httpx
from flwr.app import Context, Message
from flwr.common.constant import SubStatus
from flwr.proto.message_pb2 import PullObjectRequest, PullObjectResponse
from flwr.proto.runtime_pb2 import AcquireTaskRequest, SendTaskHeartbeatRequest
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from polyclinic.core.errors import EngineError

ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
PATIENCE = 2.0
"""Seconds between two looks for whether a message that is still coming in was given up."""
PAUSE = 0.1
"""Seconds between two looks for a task: a call on loopback."""
COMING = (0.05, 0.5)
"""Seconds between two looks for a part of a message that is still coming in: at first, and at most."""
BEAT = 10.0
"""Seconds between two signs of life."""

Answer = Callable[[Message, Context], Message]


class Executor:
    """A SuperNode's task executor.

    Args:
        address: "127.0.0.1:PORT" of the SuperNode's Runtime API.
        secret: shared with the SuperNode, so that no other process of this machine can take its tasks.
        answer: what to make of a message; must not raise.
    """

    def __init__(self, address: str, secret: bytes, answer: Answer) -> None:
        os.environ.update({"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"})
        self._address, self._answer = address, answer
        guard = SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods={ACQUIRE})
        self._client = _client(address, RuntimeVersionHttpInterceptor(component_name="SuperExec"), guard)
        self._next = ""

    def once(self) -> bool:
        """Answers one message, if there is one; whether there was.

        Raises:
            EngineError: the SuperNode does not answer, or has forgotten the task meanwhile.
        """
        try:
            token, self._next = self._next or self._acquired(), ""
            if not token:
                return False
            with _open(self._address, token) as client, _alive(client):
                if (taken := self._taken(client)) is None:
                    return True
                message, context = taken
                answer = self._answer(message, context)
                self._next = self._acquired()
                if self._next:  # given up meanwhile, and this answer would be taken for one to the next
                    return True
                push_message(client, answer, context)
                push_task_output(client, context, SubStatus.COMPLETED, "")
        except (httpx.HTTPError, RuntimeError, ValueError, ObjectPullError) as failure:
            raise EngineError(f"the SuperNode is away: {type(failure).__name__}", where=self._address) from failure
        return True

    def _acquired(self) -> str:
        """A task's token; "" if there is none."""
        taken = self._client.AcquireTask(AcquireTaskRequest(supported_task_types=["flwr-clientapp"]))
        return taken.token if taken.HasField("task") else ""

    def _taken(self, client: RuntimeHttpClient) -> tuple[Message, Context] | None:
        """The message of a task, as soon as all of it has come; None if it never will.

        A SuperNode whose run ends while a message is coming in gives it up, but not its task. It works on one message
        at a time, so a second task is the sign of that.
        """
        coming: Future[tuple[Message, Context]] = Future()

        def pull() -> None:
            try:
                message, context, *_ = pull_task_input(client)
                coming.set_result((message, context))
            except Exception as failure:
                coming.set_exception(failure)

        threading.Thread(target=pull, daemon=True).start()
        while not wait([coming], PATIENCE).done:
            self._next = self._acquired()
            if self._next:
                return None  # with the client closed, the thread ends
        return coming.result()

    def serve(self, between: Callable[[], object], trouble: Callable[[EngineError], None]) -> NoReturn:
        """Answers for ever; a SuperNode that is away is waited for.

        Args:
            between: is called before every look for a task.
        """
        while True:
            between()
            try:
                worked = self.once()
            except EngineError as failure:
                trouble(failure)
                worked = False
            if not worked:
                time.sleep(PAUSE)


class _Client(RuntimeHttpClient):
    """Flower's, but for waiting itself for what is still coming in: Flower's pauses grow from one second to ten."""

    def PullObject(self, request: PullObjectRequest) -> PullObjectResponse:  # noqa: N802 -- Flower's name
        pause = COMING[0]
        while True:
            response = super().PullObject(request)
            if response.object_available or not response.object_found:
                return response
            time.sleep(pause)
            pause = min(1.5 * pause, COMING[1])


def _client(address: str, *interceptors: Any) -> RuntimeHttpClient:
    return _Client.from_server_address(address, True, None, list(interceptors))


@contextmanager
def _open(address: str, token: str) -> Iterator[RuntimeHttpClient]:
    version = RuntimeVersionHttpInterceptor(component_name="flwr-clientapp")
    client = _client(address, version, RuntimeTokenHttpInterceptor(token))
    try:
        yield client
    finally:
        client.close()


@contextmanager
def _alive(client: RuntimeHttpClient) -> Iterator[None]:
    """Keeps a task ours while it is worked on, hours if need be."""
    stop = threading.Event()

    def beat() -> None:
        while not stop.wait(BEAT):
            with suppress(Exception):
                client.SendTaskHeartbeat(SendTaskHeartbeatRequest())

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
