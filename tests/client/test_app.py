"""The ClientApp, called as Flower calls it."""

from __future__ import annotations

from pathlib import Path

import pytest
from flwr.app import Array, ArrayRecord, Context, Message, MessageType, RecordDict
from flwr.app.user_config import UserConfig
from flwr.supercore.task_identity import TaskIdentity

from polyclinic.client import app as client_app
from polyclinic.client.policy import Policy
from polyclinic.core.messages import Instruction, Reply, decode_reply, encode_instruction
from polyclinic.core.study import Study
from polyclinic.core.update import Tensors, digest
from polyclinic.core.version import VERSION
from polyclinic.models import network


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    client_app.loaded.cache_clear()


@pytest.fixture(scope="session")
def initial(tiny_study: Study) -> Tensors:
    return network.build(tiny_study).read()


@pytest.fixture
def node(tiny_study: Study, tiny_manifest: Path, tmp_path: Path) -> Context:
    study_file = tmp_path / "study.toml"
    study_file.write_text(tiny_study.toml())
    told: UserConfig = {"partition-id": 1, "study": str(study_file), "manifest": str(tiny_manifest)}
    return Context(1, 7, told, RecordDict(), {})


def instruct(study: Study, tensors: Tensors, name: str | None = None) -> Message:
    return wrap(encode_instruction(instruction(study, tensors, name)))


def instruction(study: Study, tensors: Tensors, name: str | None = None) -> Instruction:
    return Instruction(name or study.digest, "run", 1, "n", digest(tensors), True, ("val",), False, VERSION, tensors)


def wrap(content: bytes) -> Message:
    record = ArrayRecord({"bytes": Array("uint8", (len(content),), "polyclinic", content)})
    return Message(RecordDict({"message": record}), 7, MessageType.TRAIN, ttl=60.0)


def reply_to(message: Message, node: Context) -> Reply:
    return decode_reply(client_app.opened(client_app.app(message, node)))


def refusal(message: Message, node: Context) -> str:
    reply = client_app.app(message, node)
    assert reply.has_error()
    assert reply.error.code == client_app.REFUSED
    return reply.error.reason or ""


def test_one_message_in_one_reply_out(tiny_study: Study, initial: Tensors, node: Context) -> None:
    reply = reply_to(instruct(tiny_study, initial), node)
    assert (reply.site, reply.round, reply.study) == ("south", 1, tiny_study.digest)  # the second by name
    assert reply.update is not None
    assert reply.update.tensors.keys() == initial.keys()


def test_model_and_images_are_loaded_once(tiny_study: Study, initial: Tensors, node: Context) -> None:
    first, second = (reply_to(instruct(tiny_study, initial), node) for _ in range(2))
    assert first.update is not None
    assert second.update is not None
    assert digest(first.update.tensors) == digest(second.update.tensors)
    assert client_app.loaded.cache_info().misses == 1


def test_refusals_say_why(tiny_study: Study, initial: Tensors, node: Context) -> None:
    message = instruct(tiny_study, initial)
    assert "for another study" in refusal(instruct(tiny_study, initial, "0" * 64), node)
    assert "no message of this protocol" in refusal(wrap(b"something else"), node)
    assert "no message of this protocol" in refusal(Message(RecordDict(), 7, MessageType.TRAIN), node)
    node.node_config["policy"] = Policy(studies=("0" * 64,)).model_dump_json()
    assert "was not approved here" in refusal(message, node)
    del node.node_config["manifest"]
    assert refusal(message, node) == "the site cannot use its images or its backbone; its own log says why"


def test_another_provider_may_say_whose_turn_it_is(tiny_study: Study, initial: Tensors, node: Context) -> None:
    bench, site = client_app.by_partition(node, instruction(tiny_study, initial))
    elsewhere = Context(1, 7, {}, RecordDict(), {})
    answered = client_app.serve(instruct(tiny_study, initial), elsewhere, lambda context, asked: (bench, site))
    assert decode_reply(client_app.opened(answered)).site == "south"
