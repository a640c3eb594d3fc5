"""The agent: what it answers, what it refuses, what stands in its book, and what never leaves."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, MessageType, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from polyclinic.client import agent as module
from polyclinic.client.agent import Agent
from polyclinic.client.app import opened
from polyclinic.client.approvals import Limits, decide
from polyclinic.client.home import Home
from polyclinic.client.offer import signed_text
from polyclinic.client.outbox import Outbox
from polyclinic.client.settings import Coordinator, DataPlace, Settings
from polyclinic.core import study as studies
from polyclinic.core.book import Book, verify_book
from polyclinic.core.config import parse
from polyclinic.core.envelope import refusal_text, unseal, verify
from polyclinic.core.errors import DataError
from polyclinic.core.messages import Instruction, Reply, decode_reply, encode_instruction
from polyclinic.core.signing import SigningKey
from polyclinic.core.study import Study
from polyclinic.core.update import Tensors, digest
from polyclinic.core.version import VERSION
from polyclinic.models import network
from polyclinic.server.live.publish import publish

COORDINATOR, SITE = SigningKey.new(), SigningKey.new()
NODE = Context(1, 7, {}, RecordDict(), {})


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.fixture(scope="module")
def study(tiny_study: Study) -> Study:
    """The tiny study with its backbone pinned, as a live one must."""
    document = tiny_study.toml()
    weights = Path(tiny_study.backbone.reference.removeprefix("file:"))
    pinned = f'[backbone]\nsha256 = "{hashlib.sha256(weights.read_bytes()).hexdigest()}"'
    return studies.loads(document.replace("[backbone]", pinned))


@pytest.fixture(scope="module")
def initial(study: Study) -> Tensors:
    return network.build(study).read()


@pytest.fixture
def home(study: Study, tiny_manifest: Path, tmp_path: Path) -> Home:
    with tiny_manifest.open() as source:
        rows = [row for row in csv.DictReader(source) if row["site"] == "south"]
    manifest = tmp_path / "south.csv"
    with manifest.open("w", newline="") as out:
        writer = csv.DictWriter(out, [name for name in rows[0] if name != "site"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(row | {"path": str(tiny_manifest.parent / row["path"])} for row in rows)
    at = Coordinator(host="localhost", fleet_port=1, governance_port=2, key=COORDINATOR.public)
    settings = Settings(name="south", key=SITE.public, coordinator=at, data=DataPlace(manifest=str(manifest)))
    made = Home.create(tmp_path / "site", settings)
    SITE.save(made.signing_key)
    signed, _ = publish(study, tmp_path / "initial", COORDINATOR)
    (made.studies / f"{study.digest}.json").write_text(signed_text(signed))
    return made


def approve(home: Home, study: Study, limits: Limits = Limits(), **other: str) -> None:
    told = {"version": VERSION, "backbone_sha256": study.backbone.sha256 or ""} | other
    book = Book(home.book, SITE)
    decide(book, "south", study.digest, "approve", limits=limits, **told)
    book.close()


def instruction(agreed: Study, tensors: Tensors, **other: Any) -> Instruction:
    asked = Instruction(agreed.digest, "run", 1, "n", digest(tensors), True, ("val",), False, VERSION, tensors)
    return replace(asked, **other)


def ask(agent: Agent, asked: Instruction | bytes) -> bytes:
    content = asked if isinstance(asked, bytes) else encode_instruction(asked)
    record = ArrayRecord({"bytes": Array("uint8", (len(content),), "polyclinic", content)})
    message = Message(RecordDict({"message": record}), 7, MessageType.TRAIN, ttl=60.0)
    return opened(agent.answer(message, NODE))


def reply(message: bytes) -> Reply:
    seal, signature, body = unseal(message)
    verify(seal, signature, SITE.public)
    assert seal.kind == "reply"
    return decode_reply(bytes(body))


def refused(message: bytes) -> str:
    seal, signature, body = unseal(message)
    verify(seal, signature, SITE.public)
    assert seal.kind == "refusal"
    return refusal_text(body)


def told(home: Home, kind: str) -> list[Any]:
    return [entry.body for entry in verify_book(home.book, SITE.public) if entry.kind == kind]


def test_an_approved_study_is_answered_signed_and_written_down(study: Study, initial: Tensors, home: Home) -> None:
    approve(home, study)
    got = reply(ask(Agent(home), instruction(study, initial)))
    assert got.update is not None
    (entry,) = told(home, "answered")
    assert entry["update"] == digest(got.update.tensors)
    assert (entry["run"], entry["round"], entry["weight"]) == ("run", 1, got.update.weight)
    assert set(entry["statistics"]) == set(got.statistics)
    status = json.loads(home.status.read_text())
    assert (status["agent"], status["answered"]["round"]) == ("idle", 1)


def test_asked_again_it_gives_the_same_bytes_without_training_also_after_a_restart(
    study: Study, initial: Tensors, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    approve(home, study)
    trained = list[int]()
    work = module.respond
    monkeypatch.setattr(module, "respond", lambda *of: trained.append(1) or work(*of))  # type: ignore[func-returns-value]
    agent = Agent(home)
    first = ask(agent, instruction(study, initial))
    assert ask(agent, instruction(study, initial)) == first
    assert ask(Agent(home), instruction(study, initial)) == first
    assert trained == [1]
    assert len(told(home, "answered")) == 1


def test_work_done_twice_after_a_crash_is_the_same_work_and_written_down_once(
    study: Study, initial: Tensors, home: Home
) -> None:
    approve(home, study)
    first = reply(ask(Agent(home), instruction(study, initial)))
    for path in home.replies.iterdir():  # the crash came before the reply was kept
        path.unlink()
    second = reply(ask(Agent(home), instruction(study, initial)))
    assert first.update is not None
    assert second.update is not None
    assert digest(first.update.tensors) == digest(second.update.tensors)
    assert len(told(home, "answered")) == 1


def changed(name: str, change: Callable[[np.ndarray[Any, Any]], Any]) -> Callable[[Tensors], Tensors]:
    def apply(state: Tensors) -> Tensors:
        return {**state, name: change(state[name].copy())}

    return apply


def spoilt(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    array.flat[0] = np.nan
    return array


STATES: dict[str, tuple[Callable[[Tensors], Tensors], str]] = {
    "NaN": (changed("head.bias", spoilt), "head.bias"),
    "another shape": (changed("head.bias", lambda array: array[None]), "head.bias"),
    "another dtype": (changed("head.bias", lambda array: array.astype(np.float16)), "head.bias"),
    "out of bounds": (changed("head.bias", lambda array: array + np.float32(1e12)), "head.bias"),
    "a tensor more": (lambda state: {**state, "backbone.encoder.x": np.zeros(1, np.float32)}, "backbone.encoder.x"),
    "a tensor less": (lambda state: {k: v for k, v in state.items() if k != "head.bias"}, "head.bias"),
}


@pytest.mark.parametrize("name", STATES)
def test_a_state_that_is_not_as_the_offer_says_is_refused_on_the_book_and_signed(
    name: str, study: Study, initial: Tensors, home: Home
) -> None:
    approve(home, study)
    change, where = STATES[name]
    state = change(initial)
    why = refused(ask(Agent(home), instruction(study, state, base=digest(state))))
    assert where in why
    (entry,) = told(home, "refused")
    assert entry["why"] == why


ASKED: dict[str, tuple[dict[str, Any], str]] = {
    "another study": ({"study": "f" * 64}, "not approved here"),
    "a future version": ({"version": "99.0.0"}, "99.0.0"),
    "a round beyond the last": ({"round": 9}, "round 9"),
    "another split": ({"evaluate": ("train",)}, "evaluate"),
    "the test split while training": ({"evaluate": ("val", "test")}, "evaluate"),
    "a state of another digest": ({"base": "0" * 64}, "not the one that the instruction names"),
}


@pytest.mark.parametrize("name", ASKED)
def test_what_was_not_agreed_is_refused(name: str, study: Study, initial: Tensors, home: Home) -> None:
    approve(home, study)
    other, why = ASKED[name]
    assert why in refused(ask(Agent(home), instruction(study, initial, **other)))


def test_without_an_approval_nothing_is_loaded_and_the_coordinator_is_told(
    study: Study, initial: Tensors, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*of: Any) -> Any:
        raise AssertionError("loaded for a study that nobody approved")

    monkeypatch.setattr(module, "Workbench", never)
    assert "not approved" in refused(ask(Agent(home), instruction(study, initial)))
    told_of = [json.loads(letter.document) for _, letter in Outbox(home.outbox).waiting()]
    refusals = [document["why"] for document in told_of if document["kind"] == "refusal"]
    assert refusals == [entry["why"] for entry in told(home, "refused")]


def test_approvals_for_other_code_or_another_backbone_do_not_hold(study: Study, initial: Tensors, home: Home) -> None:
    approve(home, study, version="0.0.9")
    assert "0.0.9 was approved" in refused(ask(Agent(home), instruction(study, initial)))
    approve(home, study, backbone_sha256="e" * 64)
    assert "backbone is not the one that was approved" in refused(ask(Agent(home), instruction(study, initial)))


def test_the_site_s_own_limit_of_rounds_holds(study: Study, initial: Tensors, home: Home) -> None:
    approve(home, study, Limits(rounds=1))
    agent = Agent(home)
    reply(ask(agent, instruction(study, initial)))
    reply(ask(agent, instruction(study, initial)))  # the same round, asked again
    assert "1 rounds" in refused(ask(agent, instruction(study, initial, round=2, nonce="m")))


@pytest.mark.parametrize("failure", [RuntimeError("PATIENT-4711 /data/p4711.png"), DataError("PATIENT-4711")])
def test_words_of_failures_stay_at_the_site(
    failure: Exception, study: Study, initial: Tensors, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*of: Any) -> Any:
        raise failure

    approve(home, study)
    monkeypatch.setattr(module, "respond", fail)
    message = ask(Agent(home), instruction(study, initial))
    assert "own log says why" in refused(message)
    assert b"4711" not in message
    assert b"4711" not in home.outbox.read_bytes()


@pytest.mark.parametrize("content", [b"", b"PLC1", b"\x80\x04pickle", b"PLC1\xff\xff\xff\xff" + bytes(99)])
def test_what_cannot_be_read_gets_an_error_and_no_signature(content: bytes, home: Home) -> None:
    record = ArrayRecord({"bytes": Array("uint8", (len(content),), "polyclinic", content)})
    message = Message(RecordDict({"message": record}), 7, MessageType.TRAIN, ttl=60.0)
    answer = Agent(home).answer(message, NODE)
    assert answer.has_error()
    assert told(home, "refused") == []


def test_what_a_site_keeps_lies_in_its_own_folder_and_survives_the_agent(study: Study, home: Home) -> None:
    document = study.model_dump(mode="json")
    document["adaptation"].append({"method": "fedbn"})
    personal = parse(Study, document, "test")
    signed, _ = publish(personal, home.folder / "initial", COORDINATOR)
    (home.studies / f"{personal.digest}.json").write_text(signed_text(signed))
    approve(home, personal)
    state = network.build(personal).read()
    first = reply(ask(Agent(home), instruction(personal, state, run="run")))
    again = instruction(personal, state, run="run", round=2, nonce="m")
    second = reply(ask(Agent(home), again))
    for path in home.replies.iterdir():
        path.unlink()
    third = reply(ask(Agent(home), again))
    assert first.update is not None
    assert second.update is not None
    assert third.update is not None
    assert digest(second.update.tensors) == digest(third.update.tensors) != digest(first.update.tensors)
    kept = sorted(home.own.rglob("*.safetensors"))
    assert [path.name for path in kept] == ["1.safetensors", "2.safetensors"]
    assert {path.parent.parent for path in kept} == {home.own / personal.digest}
    folders = [home.own, *(path for path in home.own.rglob("*") if path.is_dir())]
    assert {path.stat().st_mode & 0o777 for path in folders} == {0o700}
    assert not list(home.exposed())
