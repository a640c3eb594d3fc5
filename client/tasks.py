"""Takes a stock SuperNode's tasks over its loopback Runtime API, one after another, in this very process.

What a task brings besides its message – above all the app bundle – is dropped unopened: nothing that came over the
network is ever code. The internal names of flwr 1.41 that this needs are imported here and nowhere else at a site.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import httpx
from flwr.app import Context, Message
from flwr.common.constant import SubStatus
from flwr.proto.runtime_pb2 import AcquireTaskRequest, SendTaskHeartbeatRequest
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from polyclinic.core.errors import EngineError

ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
PAUSE = 0.1
"""Seconds between two looks for a task: a call on loopback."""
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

    def once(self) -> bool:
        """Answers one message, if there is one; whether there was.

        Raises:
            EngineError: the SuperNode does not answer, or has forgotten the task meanwhile.
        """
        try:
            taken = self._client.AcquireTask(AcquireTaskRequest(supported_task_types=["flwr-clientapp"]))
            if not taken.HasField("task"):
                return False
            with _open(self._address, taken.token) as client, _alive(client):
                message, context, *_ = pull_task_input(client)
                push_message(client, self._answer(message, context), context)
                push_task_output(client, context, SubStatus.COMPLETED, "")
        except (httpx.HTTPError, RuntimeError, ValueError) as failure:
            raise EngineError(f"the SuperNode is away: {type(failure).__name__}", where=self._address) from failure
        return True

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


def _client(address: str, *interceptors: Any) -> RuntimeHttpClient:
    return RuntimeHttpClient.from_server_address(address, True, None, list(interceptors))


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
