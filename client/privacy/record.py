"""What a privacy ledger's entries say: read one after another, they are all that is known of what was spent."""

from __future__ import annotations

import hmac
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, get_args

from polyclinic.client.privacy.people import Cohort
from polyclinic.core.errors import PrivacyError, RunError
from polyclinic.core.ledger import Entry
from polyclinic.core.privacy import accounting
from polyclinic.core.privacy.events import Event, Generator

Group = Mapping[str, int]
"""Patients who are in the same cohorts: digest of each → with how many images."""


@dataclass(frozen=True)
class Question:
    """What a release answers: the same study, run, round and ``base`` are the same question.

    Attributes:
        base: digest of what an answer is worked out from: the global state and, where there is any, what the site kept.
    """

    study: str
    run: str
    round: int
    base: str


@dataclass(frozen=True)
class Charge:
    """What one release costs those in a cohort; ``what`` is "update", "incoming/val" …"""

    cohort: str
    what: str
    event: Event


@dataclass(frozen=True)
class Reservation:
    """What was set aside for one answer before it was worked out.

    All randomness of the answer must follow from ``key``: then whatever comes of this reservation, however often it is
    worked out, is one and the same release, and is charged once.

    Attributes:
        number: the ledger entry's sequence.
        head: the entry's digest.
        key: 32 bytes: secret, from the system's generator, or, for simulated noise, given by whoever simulates.
        repeated: whether it was there before: its answer is being worked out again.
    """

    number: int
    head: str
    question: Question
    charges: tuple[Charge, ...]
    generator: Generator
    key: bytes = field(repr=False, default=b"")
    repeated: bool = False

    def stream(self, what: str) -> bytes:
        """32 bytes from which the randomness of one part of the answer follows, such as "noise" or "incoming/val"."""
        return hmac.digest(self.key, b"polyclinic/privacy/stream\x00" + what.encode(), "sha256")


@dataclass
class Record:
    """What the entries so far say.

    Attributes:
        cohorts: digest → who.
        reserved: by number, in order.
        released: number of a reservation → digest of what left.
        void: numbers of reservations under which nothing may leave any more.
    """

    last: Entry | None = None
    salt: str = ""
    signer: str = ""
    cohorts: dict[str, Cohort] = field(default_factory=dict)
    reserved: dict[int, Reservation] = field(default_factory=dict)
    released: dict[int, str] = field(default_factory=dict)
    void: set[int] = field(default_factory=set)
    times: dict[int, float] = field(default_factory=dict)
    _groups: tuple[Group, ...] | None = None

    def add(self, entry: Entry, cohort: Cohort | None = None) -> None:
        """Takes in the next entry; its cohort's members come with an entry that brings them.

        Raises:
            PrivacyError: it says nothing that follows.
        """
        try:
            getattr(self, f"_{entry.kind}" if entry.kind in KINDS else "_other")(entry, cohort)
        except (KeyError, TypeError, ValueError, AttributeError, RunError) as failure:
            raise PrivacyError(f"says nothing that can be understood: {failure}", where=place(entry)) from failure
        self.last = entry

    def answering(self, question: Question) -> Reservation | None:
        """The latest reservation for a question under which something may still leave."""
        found = [one for one in self.reserved.values() if one.question == question]
        return found[-1] if found and found[-1].number not in self.void else None

    def groups(self) -> tuple[Group, ...]:
        """Patients by the cohorts that they are in; groups who are in no more than another are left out."""
        if self._groups is None:
            people: dict[bytes, list[tuple[str, int]]] = {}
            for digest, cohort in self.cohorts.items():
                for who, images in cohort.members.items():
                    people.setdefault(who, []).append((digest, images))
            distinct = [dict(group) for group in {tuple(group) for group in people.values()}]
            self._groups = tuple(_largest(distinct))
        return self._groups

    def charged(self, study: str = "", upto: int | None = None) -> list[Charge]:
        """What was reserved: for one study or all, by entries up to and including number ``upto``."""
        return [
            charge
            for number, one in self.reserved.items()
            if (not study or one.question.study == study) and (upto is None or number <= upto)
            for charge in one.charges
        ]

    def epsilon(self, charges: Sequence[Charge], delta: float, among: str = "") -> float:
        """The most that ``charges`` cost any patient; of a cohort, if one is named."""
        together = _together(charges)  # once, and not for each of many groups
        found = [
            accounting.sums((event, group[cohort]) for cohort, event in together if cohort in group)
            for group in self.groups()
            if not among or among in group
        ]
        return accounting.largest(found, delta)

    def _begin(self, entry: Entry, cohort: Cohort | None) -> None:
        if entry.sequence:
            raise ValueError("a ledger begins once")
        self.salt, self.signer = str(entry.body["salt"]), str(entry.body["signer"])

    def _cohort(self, entry: Entry, cohort: Cohort | None) -> None:
        if cohort is None or cohort.digest != entry.body["cohort"]:
            raise ValueError("the cohort's patients are missing")
        self.cohorts[cohort.digest], self._groups = cohort, None

    def _reserve(self, entry: Entry, cohort: Cohort | None) -> None:
        body = entry.body
        charges = tuple(Charge(one["cohort"], one["what"], Event.read(one["event"])) for one in body["charges"])
        if body["generator"] not in get_args(Generator) or any(one.cohort not in self.cohorts for one in charges):
            raise ValueError("a charge is to nobody known here")
        question = Question(**body["question"])
        self.reserved[entry.sequence] = Reservation(entry.sequence, entry.digest, question, charges, body["generator"])
        self.times[entry.sequence] = entry.time

    def _release(self, entry: Entry, cohort: Cohort | None) -> None:
        if (number := entry.body["reservation"]) not in self.reserved or number in self.released:
            raise ValueError("it was not reserved, or left already")
        self.released[number] = str(entry.body["output"])

    def _void(self, entry: Entry, cohort: Cohort | None) -> None:
        self.void.add(self.reserved[entry.body["reservation"]].number)

    def _other(self, entry: Entry, cohort: Cohort | None) -> None:
        raise ValueError(f"an entry of no known kind: {entry.kind!r}")


KINDS = ("begin", "cohort", "reserve", "release", "void")


def reserve_body(question: Question, charges: Sequence[Charge], generator: Generator) -> dict[str, Any]:
    """The body of a reservation's entry."""
    told = [{"cohort": one.cohort, "what": one.what, "event": one.event.document()} for one in charges]
    return {"question": asdict(question), "charges": told, "generator": generator}


def _together(charges: Sequence[Charge]) -> list[tuple[str, Event]]:
    """Charges of one kind to one cohort as one event, in the order in which the kinds first came up."""
    steps: dict[tuple[str, Event], int] = {}
    for charge in charges:
        kind = charge.cohort, replace(charge.event, steps=1)
        steps[kind] = steps.get(kind, 0) + charge.event.steps
    return [(cohort, replace(event, steps=count)) for (cohort, event), count in steps.items()]


def place(entry: Entry) -> str:
    """Where an entry stands, for people."""
    return f"privacy ledger, entry {entry.sequence + 1}"


def _largest(groups: Sequence[Group]) -> Iterator[Group]:
    """Groups that no other group's cohorts cover."""
    kept: list[Group] = []
    for one in sorted(groups, key=lambda group: (-len(group), -sum(group.values()))):
        if not any(all(other.get(name, 0) >= images for name, images in one.items()) for other in kept):
            kept.append(one)
            yield one
