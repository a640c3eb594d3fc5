"""The site's agent: the one process that holds images, policy, signing key and the loaded backbone.

It listens to nobody. It takes tasks from the SuperNode on this machine and answers each with a signed reply or a signed
refusal; both stand in the site's book before they leave.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

from flwr.app import Array, ArrayRecord, Context, Error, Message, RecordDict

from polyclinic.client import approvals
from polyclinic.client.app import opened
from polyclinic.client.cache import Cache
from polyclinic.client.data.dataset import SiteData
from polyclinic.client.data.manifest import read_manifest
from polyclinic.client.data.quarantine import kept
from polyclinic.client.home import Home
from polyclinic.client.keep import Keep
from polyclinic.client.offer import Offer, read_offer
from polyclinic.client.private.answer import Vault
from polyclinic.client.record import Recorder, hold
from polyclinic.client.replies import Question, Replies
from polyclinic.client.respond import Site, Workbench, respond, sayable
from polyclinic.client.tasks import Executor
from polyclinic.core import files
from polyclinic.core.book import Book
from polyclinic.core.envelope import seal
from polyclinic.core.errors import EngineError, PolyclinicError, PrivacyError, RunError
from polyclinic.core.messages import REFUSED, Instruction, Reply, decode_instruction, encode_reply
from polyclinic.core.update import digest
from polyclinic.core.version import VERSION

_log = logging.getLogger(__name__)

Clock = Callable[[], float]


class Agent:
    """Answers instructions, one at a time, for one site."""

    def __init__(self, home: Home, clock: Clock = time.time) -> None:
        self._home, self._clock, self._name = home.demand(), clock, home.settings.name
        self._key = home.key()
        self._book, self._replies = Book(home.book, self._key, clock), Replies(home.replies)
        self._recorder = Recorder(home, self._book, self._key, clock)
        self._loaded: tuple[Offer, Workbench, Site] | None = None
        self._answered: dict[str, Any] | None = None
        self.status("idle")

    def answer(self, message: Message, context: Context) -> Message:
        """A signed reply or refusal; only what cannot be read at all gets Flower's error, unsigned."""
        try:
            sealed = self._sealed(opened(message))
        except PolyclinicError as failure:
            _log.warning("an instruction cannot be read: %s", failure)
            return Message(Error(REFUSED, self._why(failure)), reply_to=message)
        record = ArrayRecord({"bytes": Array("uint8", (len(sealed),), "polyclinic", sealed)})
        return Message(RecordDict({"message": record}), reply_to=message)

    def _why(self, failure: PolyclinicError) -> str:
        """What the coordinator may hear; that its book cannot be written says nothing of images."""
        if isinstance(failure, PrivacyError):
            _log.error("%s", failure)
            return "the site's privacy ledger does not allow it; its own log says why"
        if isinstance(failure, RunError):
            _log.error("%s", failure)
            return (
                "the site cannot write its book, without which nothing leaves: its disk may be full; its log says more"
            )
        return sayable(failure, self._name)

    def settle(self) -> None:
        """States what the book says, and takes down what the link brought; done between two instructions, too."""
        try:
            self._recorder.settle()
        except PolyclinicError as failure:
            _log.warning("%s", failure)

    def trouble(self, failure: EngineError) -> None:
        """Notes that the SuperNode is away."""
        _log.info("%s", failure)
        time.sleep(0.5)

    def _sealed(self, message: bytes) -> bytes:
        instruction = decode_instruction(message, tensors=False)
        self._seal(instruction, "refusal", b"")  # what could not be answered is refused before it is written anywhere
        self.status("working", instruction)
        try:
            sealed = self._reply(decode_instruction(message))
        except PolyclinicError as refusal:
            sealed = self._refusal(instruction, self._why(refusal))
        except Exception:  # what a library raises may hold anything: its words stay here
            _log.exception("an instruction could not be carried out")
            sealed = self._refusal(instruction, "the site failed; its own log says why")
        self._answered = {"run": instruction.run, "round": instruction.round, "at": self._clock()}
        self.status("idle", instruction)
        return sealed

    def _reply(self, instruction: Instruction) -> bytes:
        """Policy first, then what was answered before, then the work."""
        decided = approvals.decisions(self._home).get(instruction.study)
        if decided is None or decided.verb != "approve":  # before anything is loaded for it
            approvals.demand(decided, instruction, version=VERSION, backbone_sha256="", now=self._clock())
        offer, bench, site = self._load(instruction.study, decided.limits.epsilon if decided else None)
        done = self._trained(instruction.study, decided.sequence if decided else 0)
        approvals.demand(
            decided,
            instruction,
            version=VERSION,
            backbone_sha256=bench.adapted.network.backbone.sha256,
            now=self._clock(),
            answered_rounds=done,
        )
        approvals.instruction_fits(instruction, offer.manifest, offer.study)
        question = Question(instruction.run, instruction.round, instruction.nonce, instruction.base)
        if (kept := self._replies.get(question)) is not None:
            return kept
        reply = respond(bench, site, instruction)
        sealed = self._seal(instruction, "reply", encode_reply(reply))
        self._record(instruction, reply, len(sealed))
        self._replies.put(question, sealed)
        return sealed

    def _load(self, study: str, approved: float | None) -> tuple[Offer, Workbench, Site]:
        """The study's model and this site's images: loaded once, kept until another study's turn."""
        before = self._loaded
        if before is None or (before[0].study.digest, before[2].vault.approved) != (study, approved):
            self._loaded = None  # before the next one takes its memory
            offer = read_offer(self._home, study)
            settings, data, seed = self._home.settings, offer.study.data, offer.study.study.seed
            room = settings.data.cache_mb * 2**20
            bench = Workbench(offer.study, cache=Cache(self._home.cache, room) if room else None)
            every = read_manifest(self._home.manifest, data, bench.task, seed, only=self._name)
            rows, left_out = kept(every, self._home.quarantine)
            if left_out:
                _log.warning("%s", left_out)
            vault = Vault(self._home.privacy, self._key, approved)
            held, own = SiteData(self._name, rows, data, bench.task), Keep(self._home.own / study)
            site = Site(self._name, held, settings.policy.policy(study), own, vault)
            self._loaded = offer, bench, site
        assert self._loaded is not None
        return self._loaded

    def _trained(self, study: str, since: int) -> set[tuple[str, int]]:
        """(run, round) in which this site trained since it approved the study."""
        told = (entry.body for entry in self._book.entries(after=since, kinds=("answered",)))
        return {(body["run"], body["round"]) for body in told if body["study"] == study and body["update"]}

    def _record(self, instruction: Instruction, reply: Reply, size: int) -> None:
        """Writes down what is about to leave; work that is done a second time after a crash is the same work."""
        body = {
            "study": instruction.study,
            "run": instruction.run,
            "round": instruction.round,
            "base": instruction.base,
            "update": digest(reply.update.tensors) if reply.update else None,
            "weight": reply.update.weight if reply.update else None,
            "statistics": sorted(reply.statistics),
            "bytes": size,
        }
        before = self._book.entries(kinds=("answered",))
        if not any(_same(entry.body, body) for entry in before[-8:]):
            self._book.append("answered", body)

    def _refusal(self, instruction: Instruction, why: str) -> bytes:
        why = why[:500]
        told = {"study": instruction.study, "run": instruction.run, "round": instruction.round, "why": why}
        before = self._book.entries(kinds=("refused",))
        if not before or dict(before[-1].body) != told:
            self._book.append("refused", told)
        self.settle()
        return self._seal(instruction, "refusal", why.encode()[:2000])

    def _seal(self, instruction: Instruction, kind: Literal["reply", "refusal"], body: bytes) -> bytes:
        asked = {name: getattr(instruction, name) for name in ("study", "run", "round", "nonce", "base")}
        return seal(site=self._name, **asked, kind=kind, version=VERSION, body=body, key=self._key)

    def status(self, agent: Literal["idle", "working"], instruction: Instruction | None = None) -> None:
        """Leaves word for the link of what is being done."""
        told: Mapping[str, Any] = {
            "agent": agent,
            "study": instruction.study if instruction else None,
            "run": instruction.run if instruction else None,
            "round": instruction.round if instruction else None,
            "since": self._clock(),
            "answered": self._answered,
            "version": VERSION,
            "skew": None,
        }
        try:
            files.write(self._home.status, json.dumps(told), durable=False)
            self._home.status.chmod(0o640)
        except (PolyclinicError, OSError) as failure:  # a full disk is no reason not to answer
            _log.warning("the status cannot be written: %s", failure)


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(one.get(name) == other[name] for name in ("study", "run", "round", "base", "update"))


def main(home: Home) -> None:
    """Answers until it is ended; being ended at any moment loses nothing."""
    locks = hold(home)
    agent = Agent(home)
    secret = (home.shared / "runtime.secret").read_bytes()
    _log.info("the agent is at work, %d locks held", len(locks))
    Executor(f"127.0.0.1:{home.settings.local_port}", secret, agent.answer).serve(agent.settle, agent.trouble)
