"""What a site has decided: which study it takes part in, with which code and backbone, and within which limits.

Everything is forbidden that was not approved. The book holds the decisions; the coordinator is told of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, time, timedelta, tzinfo
from typing import Any, Literal

from polyclinic.client.home import Home
from polyclinic.core.book import Book, read_entries
from polyclinic.core.errors import PolicyError, UpdateError
from polyclinic.core.ledger import Entry
from polyclinic.core.messages import Instruction
from polyclinic.core.study import SPLITS, Study
from polyclinic.core.update import Manifest

Verb = Literal["approve", "withdraw"]
VERBS: tuple[Verb, ...] = ("approve", "withdraw")
_HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d) ?- ?([01]\d|2[0-3]):([0-5]\d)")


@dataclass(frozen=True)
class Limits:
    """What a site allows beyond the study's digest; None: as much as the study itself says.

    Attributes:
        rounds: of training, over all runs of the study, since it was approved.
        until: seconds since the epoch.
        hours: of the site's day, as "20:00-06:00".
        epsilon: that the study may spend on any patient, at its own delta; then it must have privacy.
    """

    rounds: int | None = None
    until: float | None = None
    hours: str | None = None
    epsilon: float | None = None

    @staticmethod
    def read(
        rounds: str | None = None,
        until: str | None = None,
        hours: str | None = None,
        zone: tzinfo | None = None,
        epsilon: str | None = None,
    ) -> Limits:
        """The limits that somebody typed: a count, an ISO date (its whole day) or time, hours of the day, a number.

        Args:
            zone: of a date or time that names none; None: this machine's.

        Raises:
            PolicyError: naming what cannot be understood, and how it is written.
        """
        return Limits(_count(rounds), _moment(until, zone), _hours(hours), _epsilon(epsilon))

    def document(self) -> dict[str, Any]:
        """As JSON data; of epsilon nothing is said where there is none."""
        return {name: value for name, value in asdict(self).items() if name != "epsilon" or value is not None}

    def words(self, zone: tzinfo | None = None) -> str:
        """In plain words."""
        said = [f"at most {self.rounds} rounds of training"] if self.rounds is not None else []
        if self.until is not None:
            said.append(f"until {datetime.fromtimestamp(self.until, zone).astimezone(zone):%Y-%m-%d %H:%M %Z}")
        if self.hours is not None:
            said.append(f"only from {self.hours.replace('-', ' to ')}")
        if self.epsilon is not None:
            said.append(f"at most ε = {self.epsilon:g} for any patient")
        return ", ".join(said) or "no limits beyond the study's own"


@dataclass(frozen=True)
class Decision:
    """What a site decided about a study, as its book tells; see the statement of kind "decision"."""

    site: str
    study: str
    verb: Verb
    version: str
    backbone_sha256: str
    limits: Limits
    time: float
    sequence: int

    def document(self) -> dict[str, Any]:
        """The statement that the coordinator is told."""
        return {"kind": "decision", **vars(self), "limits": self.limits.document()}


def decide(
    book: Book,
    site: str,
    study: str,
    verb: Verb,
    version: str,
    backbone_sha256: str,
    limits: Limits = Limits(),
) -> Decision:
    """Writes a decision into the site's book: from then on it is in force here.

    Raises:
        PolicyError: a study is withdrawn that is not approved.
        RunError: the book cannot be written.
    """
    if verb == "withdraw" and (found := _latest(book.entries(kinds=VERBS), site).get(study)) is None:
        raise PolicyError("was not approved here, so there is nothing to withdraw", where=study)
    elif verb == "withdraw" and found is not None and found.verb == "withdraw":
        raise PolicyError("was withdrawn already", where=study)
    body = {"study": study, "version": version, "backbone_sha256": backbone_sha256, "limits": limits.document()}
    return decision(book.append(verb, body), site)


def decision(entry: Entry, site: str) -> Decision:
    """The decision that an entry of the site's book tells of."""
    body = entry.body
    limits = Limits(**body["limits"])
    verb: Verb = "approve" if entry.kind == "approve" else "withdraw"
    told = (body["study"], verb, body["version"], body["backbone_sha256"])
    return Decision(site, *told, limits, entry.time, entry.sequence)


def decisions(home: Home) -> dict[str, Decision]:
    """Digest of a study → the last decision about it.

    Raises:
        TrustError: the book holds a decision that this site did not sign.
    """
    settings = home.settings
    return _latest(read_entries(home.book, kinds=VERBS, public=settings.key), settings.name)


def demand(
    decided: Decision | None,
    instruction: Instruction,
    *,
    version: str,
    backbone_sha256: str,
    now: float,
    answered_rounds: Collection[tuple[str, int]] = (),
    zone: tzinfo | None = None,
) -> None:
    """Nothing, if what was decided covers the instruction.

    Args:
        decided: the last decision about the instruction's study; None: there is none.
        version: of Polyclinic here.
        backbone_sha256: of the weights that are loaded here.
        now: seconds since the epoch.
        answered_rounds: (run, round) in which this site trained for the study since it approved it.
        zone: in which hours of the day are meant; None: this machine's.

    Raises:
        PolicyError: saying which limit forbids it.
    """
    if decided is None or decided.study != instruction.study:
        raise PolicyError("this study was not approved here")
    if decided.verb == "withdraw":
        raise PolicyError("this site has withdrawn from this study")
    for whose, found in (("this site runs", version), ("the coordinator runs", instruction.version)):
        if found != decided.version:
            raise PolicyError(f"polyclinic {decided.version} was approved, {whose} {ascii(found)[1:-1][:40]}")
    if decided.backbone_sha256 != backbone_sha256:
        raise PolicyError("the backbone is not the one that was approved: its SHA-256 is another")
    limits, here = decided.limits, datetime.fromtimestamp(now, zone).astimezone(zone)
    if limits.until is not None and now > limits.until:
        raise PolicyError("the approval has ended", where=Limits(until=limits.until).words(zone))
    if limits.hours is not None and not _within(limits.hours, here.time()):
        raise PolicyError(f"this site takes part only from {limits.hours.replace('-', ' to ')}, now it is {here:%H:%M}")
    _demand_rounds(limits, instruction, set(answered_rounds))


def instruction_fits(instruction: Instruction, manifest: Sequence[Mapping[str, Any]], study: Study) -> None:
    """Nothing, if the instruction asks for what the study says, on tensors as the offer lists them.

    Raises:
        UpdateError: naming the tensor or the field that is not as agreed.
    """
    last = study.rounds.count + 1
    if not 1 <= instruction.round <= last:
        raise UpdateError(f"round {instruction.round} is not one of the study's {study.rounds.count}")
    if instruction.fit != (instruction.round < last):
        raise UpdateError("training is asked for after the last round, or not before it", where="fit")
    if not set(instruction.evaluate) <= ({"val"} if instruction.fit else set(SPLITS[1:])):
        raise UpdateError("another split than the study's is to be judged", where="evaluate")
    demand_manifest(manifest).check(instruction.tensors)


def demand_manifest(manifest: Sequence[Mapping[str, Any]]) -> Manifest:
    """The manifest in an offer: names once, shapes of at most 2^31 numbers, float32.

    Raises:
        UpdateError: naming what is not so.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for row in manifest:
        name, shape = row.get("name"), row.get("shape")
        if not isinstance(name, str) or not name.isprintable() or len(name) > 300 or name in shapes:
            raise UpdateError("a tensor's name is missing, too long, or stands twice", where="manifest")
        if row.get("dtype") != "float32" or row.keys() != {"name", "shape", "dtype"}:
            raise UpdateError("dtype is not float32", where=name)
        if not isinstance(shape, list) or not all(type(n) is int and 0 < n < 2**31 for n in shape) or len(shape) > 8:
            raise UpdateError("is no shape", where=name)
        shapes[name] = tuple(shape)
    return Manifest(shapes)


def _latest(entries: Sequence[Entry], site: str) -> dict[str, Decision]:
    return {entry.body["study"]: decision(entry, site) for entry in entries}


def _demand_rounds(limits: Limits, instruction: Instruction, answered: set[tuple[str, int]]) -> None:
    """A round that was answered may be asked for again; the last evaluation only by a run that this site trained in."""
    if limits.rounds is None or (instruction.run, instruction.round) in answered:
        return
    if instruction.fit and len(answered) >= limits.rounds:
        raise PolicyError(f"this site allows {limits.rounds} rounds of training, and that many it has answered")
    if not instruction.fit and not any(run == instruction.run for run, _ in answered):
        raise PolicyError("this site limits the rounds, and judges no model of a run in which it did not train")


def _within(hours: str, now: time) -> bool:
    """Whether ``now`` lies in the hours, which may go past midnight; the first minute does, the last does not."""
    begin, end = (time.fromisoformat(part) for part in hours.split("-"))
    return begin <= now < end if begin < end else now >= begin or now < end


def _count(text: str | None) -> int | None:
    if text is None:
        return None
    if not re.fullmatch(r"[1-9]\d{0,6}", text.strip()):
        raise PolicyError(f"'{text[:40]}' is no number of rounds", where="rounds", remedy="a whole number above 0")
    return int(text)


def _epsilon(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0.0 < found < math.inf:
        raise PolicyError(f"'{text[:40]}' is no epsilon", where="epsilon", remedy="a number above 0, such as 4")
    return found


def _moment(text: str | None, zone: tzinfo | None) -> float | None:
    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text.strip())
        if found.year > 2999:
            raise ValueError
        if len(text.strip()) <= len("2027-01-31"):
            found += timedelta(days=1) - timedelta(seconds=1)
        return (found if found.tzinfo or zone is None else found.replace(tzinfo=zone)).timestamp()
    except (ValueError, OverflowError) as failure:
        remedy = "write 2027-01-31 (that whole day) or 2027-01-31T18:00"
        raise PolicyError(f"'{text[:40]}' is no date", where="until", remedy=remedy) from failure


def _hours(text: str | None) -> str | None:
    if text is None:
        return None
    found = _HOURS.fullmatch(text.strip())
    if found is None or (found[1], found[2]) == (found[3], found[4]):
        remedy = "write 20:00-06:00; leave it out for the whole day"
        raise PolicyError(f"'{text[:40]}' are no hours of a day", where="hours", remedy=remedy)
    return f"{found[1]}:{found[2]}-{found[3]}:{found[4]}"
