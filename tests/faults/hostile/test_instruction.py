"""Hostile instructions at a site's agent: each is refused, nothing is raised, nothing of them but digests is kept."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from polyclinic.client.agent import Agent
from polyclinic.client.home import Home
from polyclinic.client.settings import Coordinator, DataPlace, Settings
from polyclinic.core.book import verify_book
from polyclinic.core.envelope import refusal_text, unseal, verify
from polyclinic.core.messages import Instruction, encode_instruction
from polyclinic.core.signing import SigningKey
from polyclinic.core.update import digest
from polyclinic.core.version import VERSION
from tests.faults.hostile.bench import INITIAL, opened, packed
from tests.faults.hostile.forge import ESCAPE, Touched, nested, npy_bomb, zip_bomb, zlib_bomb

COORDINATOR, SITE = SigningKey.new(), SigningKey.new()
NODE = Context(1, 7, {}, RecordDict(), {})
GOOD = Instruction("a" * 64, "run", 1, "n", digest(INITIAL), True, ("val",), False, VERSION, INITIAL)
ASKED, STATE = opened(encode_instruction(GOOD))
UNAPPROVED = "this study was not approved here"


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Agent:
    at = Coordinator(host="localhost", fleet_port=1, governance_port=2, key=COORDINATOR.public)
    settings = Settings(name="eve", key=SITE.public, coordinator=at, data=DataPlace(manifest="manifest.csv"))
    home = Home.create(tmp_path_factory.mktemp("site") / "home", settings)
    SITE.save(home.signing_key)
    return Agent(home)


def asked(**fields: Any) -> bytes:
    return packed(ASKED | fields, STATE)


def answered(agent: Agent, content: RecordDict) -> Message:
    return agent.answer(Message(content, 7, MessageType.TRAIN, ttl=60.0), NODE)


def record(content: bytes) -> RecordDict:
    return RecordDict({"message": ArrayRecord({"bytes": Array("uint8", (len(content),), "polyclinic", content)})})


HOSTILE: dict[str, bytes] = {
    "not approved": asked(),
    "a study of a path": asked(study="../../private/signing.key"),
    "a study of escapes": asked(study=ESCAPE),
    "a study of half a character": asked(study="\ud800"),
    "no study": asked(study=""),
    "a study of a megabyte": asked(study="a" * 2**20),
    "a run of a path": asked(run="../../run"),
    "a run of escapes": asked(run=ESCAPE),
    "a run of half a character": asked(run="\ud800"),
    "a run of a megabyte": asked(run="r" * 2**20),
    "a nonce of half a character": asked(nonce="\ud800"),
    "a nonce of a megabyte": asked(nonce="n" * 2**20),
    "a base of half a character": asked(base="\ud800"),
    "a round below one": asked(round=-1),
    "a round of 2^31": asked(round=2**31),
    "a round of 2^60": asked(round=2**60),
    "a round of 2^64": asked(round=2**64),
    "a round of 4000 digits": asked(round=10**4000),
    "a version of half a character": asked(version="\ud800"),
    "a version to come": asked(version="99.0.0"),
    "a split of half a character": asked(evaluate=["\ud800"]),
    "splits by the hundred thousand": asked(evaluate=["val"] * 100_000),
    "fit a number": asked(fit=1),
    "other keys": asked(code="import os"),
    "nothing": b"",
    "noise": b"\0" * 1000,
    "a pickle": pickle.dumps(Touched()),
    "npy bomb": npy_bomb(),
    "zip bomb": zip_bomb(),
    "zlib bomb": zlib_bomb(2**28),
    "header nested deep": packed(nested(10**5).encode()),
    "length of 3 GB": b"PLC1" + struct.pack("<I", 3 * 10**9) + encode_instruction(GOOD)[8:],
    "no tensors": packed(ASKED, b""),
    "tensors cut short": packed(ASKED, STATE[:-1]),
    "tensors of a tebibyte": packed(ASKED, struct.pack("<Q", 2**40) + STATE[8:]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_it_is_refused_and_the_agent_lives(agent: Agent, name: str) -> None:
    back = answered(agent, record(HOSTILE[name]))
    said = back.error.reason if back.has_error() else refusal(back)
    assert said
    assert len(said) <= 600
    assert said.isprintable()
    lives(agent)


def refusal(message: Message) -> str:
    seal, signature, body = unseal(message.content["message"]["bytes"].data)  # type: ignore[index]
    verify(seal, signature, SITE.public)
    assert seal.kind == "refusal"
    return refusal_text(body)


def lives(agent: Agent) -> None:
    assert refusal(answered(agent, record(encode_instruction(GOOD)))) == UNAPPROVED
    home = agent._home
    verify_book(home.book, SITE.public)
    assert json.loads(home.status.read_text())["agent"] == "idle"


CONTENTS: dict[str, Callable[[], RecordDict]] = {
    "empty": RecordDict,
    "another record": lambda: RecordDict({"message": ConfigRecord({"bytes": b"x"})}),
    "another name": lambda: RecordDict({"weights": ArrayRecord({"bytes": Array("uint8", (1,), "polyclinic", b"x")})}),
    "an array of another name": lambda: RecordDict(
        {"message": ArrayRecord({"code": Array("uint8", (1,), "polyclinic", b"x")})}
    ),
    "an array that lies": lambda: RecordDict(
        {"message": ArrayRecord({"bytes": Array("float64", (2**40,), "numpy.ndarray", b"x")})}
    ),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_what_is_no_message_of_ours_is_refused(agent: Agent, name: str) -> None:
    back = answered(agent, CONTENTS[name]())
    assert back.has_error()
    assert "no message of this protocol version" in back.error.reason
    lives(agent)


def test_no_name_in_an_instruction_is_a_place_on_the_disk(agent: Agent, tmp_path: Path) -> None:
    home = agent._home
    before = set(home.folder.parent.rglob("*"))
    for name in ("../../x", str(tmp_path / "x"), "..", "x/../../y", "a\\b", "CON", "x\0y"):
        for field in ("study", "run", "nonce", "base"):
            answered(agent, record(asked(**{field: name})))
    made = set(home.folder.parent.rglob("*")) - before
    assert all(path.is_relative_to(home.shared) or path.is_relative_to(home.book) for path in made)
    assert list(tmp_path.iterdir()) == []
