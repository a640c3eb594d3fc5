"""A live site's agent says nothing of a patient, whatever goes wrong; nor do the files that its link reads."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Array, ArrayRecord, Context, Message, MessageType, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from polyclinic.client import agent as module
from polyclinic.client.agent import Agent
from polyclinic.client.app import opened
from polyclinic.client.approvals import decide
from polyclinic.client.home import Home
from polyclinic.client.offer import signed_text
from polyclinic.client.settings import Coordinator, DataPlace, Settings
from polyclinic.core import study as studies
from polyclinic.core.book import Book
from polyclinic.core.envelope import unseal
from polyclinic.core.errors import DataError, EngineError, RunError, TrustError
from polyclinic.core.messages import Instruction, encode_instruction
from polyclinic.core.signing import SigningKey
from polyclinic.core.study import Study
from polyclinic.core.update import Tensors, digest
from polyclinic.core.version import VERSION
from polyclinic.models import network
from polyclinic.server.live.publish import publish
from tests.faults.canaries import HEAD, TAIL, Aviary, leaks, write_sites

COORDINATOR, SITE = SigningKey.new(), SigningKey.new()
NODE = Context(1, 7, {}, RecordDict(), {})
CANARY = f"{HEAD}9999{TAIL}"


@pytest.fixture(autouse=True)
def _identity(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.fixture(scope="module")
def study(tiny_study: Study) -> Study:
    weights = Path(tiny_study.backbone.reference.removeprefix("file:"))
    pinned = f'[backbone]\nsha256 = "{hashlib.sha256(weights.read_bytes()).hexdigest()}"'
    return studies.loads(tiny_study.toml().replace("[backbone]", pinned))


@pytest.fixture(scope="module")
def initial(study: Study) -> Tensors:
    return network.build(study).read()


@pytest.fixture
def home(study: Study, tmp_path: Path) -> Home:
    manifest = write_sites(tmp_path / "data", ["south"], 40, Aviary())
    at = Coordinator(host="localhost", fleet_port=1, governance_port=2, key=COORDINATOR.public)
    settings = Settings(name="south", key=SITE.public, coordinator=at, data=DataPlace(manifest=str(manifest)))
    made = Home.create(tmp_path / "site", settings)
    SITE.save(made.signing_key)
    signed, _ = publish(study, tmp_path / "initial", COORDINATOR)
    (made.studies / f"{study.digest}.json").write_text(signed_text(signed))
    book = Book(made.book, SITE)
    decide(book, "south", study.digest, "approve", version=VERSION, backbone_sha256=study.backbone.sha256 or "")
    book.close()
    return made


def ask(home: Home, study: Study, state: Tensors, **other: Any) -> Message:
    told = {"round": 1, "fit": True, "evaluate": ("val",), "describe": True, "base": digest(state)} | other
    asked = Instruction(study=study.digest, run="run", nonce="n", version=VERSION, tensors=state, **told)
    content = encode_instruction(asked)
    record = ArrayRecord({"bytes": Array("uint8", (len(content),), "polyclinic", content)})
    message = Message(RecordDict({"message": record}), 7, MessageType.TRAIN, ttl=60.0)
    return Agent(home).answer(message, NODE)


def left(home: Home, back: Message) -> Iterator[bytes | str | Path]:
    """Everything that leaves the site, or that a process which faces the network may read, but for site.toml."""
    yield back.error.reason if back.has_error() else opened(back)
    yield from (home.shared, home.book, home.network, home.replies)


def said(back: Message) -> str:
    seal, _, body = unseal(opened(back))
    return seal.kind if seal.kind == "reply" else bytes(body).decode()


def test_an_answer_holds_none(study: Study, initial: Tensors, home: Home) -> None:
    back = ask(home, study, initial)
    assert said(back) == "reply"
    assert not leaks(left(home, back))


def raising(kind: type[Exception]) -> Callable[..., None]:
    def fail(*of: object, **named: object) -> None:
        if kind in (ValueError, OSError, KeyError, MemoryError):
            raise kind(f"/data/{CANARY}.png")
        raise kind(CANARY, where=f"/data/{CANARY}.png", remedy=CANARY)  # type: ignore[call-arg]

    return fail


@pytest.mark.parametrize(
    "kind", [ValueError, OSError, KeyError, MemoryError, DataError, RunError, EngineError, TrustError]
)
@pytest.mark.parametrize("place", ["respond", "read_manifest", "Workbench", "SiteData"])
def test_what_goes_wrong_is_not_told_in_its_own_words(
    kind: type[Exception], place: str, study: Study, initial: Tensors, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, place, raising(kind))
    back = ask(home, study, initial)
    assert "log says" in said(back)
    assert not leaks(left(home, back))


SPOILT: dict[str, Callable[[Path], object]] = {
    "no manifest": lambda manifest: manifest.unlink(),
    "a manifest of another site": lambda manifest: manifest.write_text(manifest.read_text().replace("south", CANARY)),
    "an unknown label": lambda manifest: manifest.write_text(manifest.read_text().replace(",1,", f",{CANARY},")),
    "an unknown split": lambda manifest: manifest.write_text(manifest.read_text().replace(",train,", f",{CANARY},")),
    "a column that is missing": lambda manifest: manifest.write_text(manifest.read_text().replace("label", CANARY)),
    "no picture": lambda manifest: [path.unlink() for path in manifest.parent.rglob("*.png")],
    "torn pictures": lambda manifest: [path.write_bytes(b"\x89PNG\r\n") for path in manifest.parent.rglob("*.png")],
    "a manifest that is no text": lambda manifest: manifest.write_bytes(b"\xff" + CANARY.encode()),
}


@pytest.mark.parametrize("name", SPOILT)
def test_data_that_cannot_be_used_are_not_described(name: str, study: Study, initial: Tensors, home: Home) -> None:
    SPOILT[name](home.manifest)
    back = ask(home, study, initial)
    assert said(back) == "the site cannot use its images or its backbone; its own log says why"
    assert not leaks(left(home, back))
