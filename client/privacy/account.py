"""A site's account for one private study: what each of its rounds costs whom, set aside before anything is done."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from polyclinic.client.data.manifest import Row
from polyclinic.client.policy import Policy
from polyclinic.client.privacy.budget import Bound
from polyclinic.client.privacy.ledger import Ledger
from polyclinic.client.privacy.people import identities
from polyclinic.client.privacy.receipts import receipt
from polyclinic.client.privacy.record import Charge, Question, Reservation
from polyclinic.core.errors import DataError, PolicyError
from polyclinic.core.privacy.plan import DESCRIBED, Plan, Release, demand, plan
from polyclinic.core.privacy.receipt import Receipt
from polyclinic.core.seeds import derive
from polyclinic.core.study import SPLITS, Study


@dataclass(frozen=True)
class Account:
    """``open_account`` makes one.

    Attributes:
        plan: with which rate and noise every release is to be made.
        cohorts: split → digest of who is in it.
    """

    ledger: Ledger
    study: Study
    site: str
    plan: Plan
    cohorts: dict[str, str]
    bounds: Sequence[Bound] = field(default=())

    def due(self, run: str, round_number: int, wanted: Collection[str]) -> tuple[Release, ...]:
        """Of what is wanted in a round, what the plan lets leave; how images are spread is told once a run.

        Args:
            round_number: 1 …; count + 1 is the last evaluation.
            wanted: "update", "incoming/val", "describe/kernel" …
        """
        described = {
            charge.what
            for one in self.ledger.record().reserved.values()
            if (one.question.study, one.question.run) == (self.study.digest, run) and one.question.round != round_number
            for charge in one.charges
        }
        once = (one for one in self.plan.of_round(1, *DESCRIBED) if one.what not in described)
        of_round = (one for one in self.plan.of_round(round_number) if one.what not in DESCRIBED)
        return tuple(one for one in (*of_round, *once) if one.what in wanted)

    def reserve(self, run: str, round_number: int, base: str, leaving: Collection[str]) -> Reservation:
        """Sets aside what a round's releases cost; before anything of them is worked out.

        Args:
            base: see ``Question``.
            leaving: what will leave, all of it ``due``.

        Raises:
            PolicyError: it would pass a limit, or is no release of that round.
            PrivacyError: the ledger cannot be trusted.
        """
        releases = self.due(run, round_number, leaving)
        if unknown := sorted(set(leaving) - {one.what for one in releases}):
            raise PolicyError(f"'{unknown[0]}' is no release of round {round_number}", where="privacy")
        question = Question(self.study.digest, run, round_number, base)
        ahead = self.charges(self.plan.after(round_number))
        return self.ledger.reserve(question, self.charges(releases), ahead, self.bounds, self._simulated(round_number))

    def receipt(self, reservation: Reservation) -> Receipt:
        """What travels with the reply."""
        privacy = demand(self.study)
        return receipt(self.ledger, reservation, privacy.unit, privacy.delta)

    def charges(self, releases: Iterable[Release]) -> list[Charge]:
        """Releases as charges to those behind them."""
        return [Charge(self.cohorts[one.split], one.what, one.event) for one in releases]

    def _simulated(self, round_number: int) -> bytes | None:
        """The key of simulated noise: the same in every run of the study. None where noise is secure."""
        if demand(self.study).generator == "system":
            return None
        seed = derive(self.study.study.seed, "privacy", self.site, round_number)
        return hashlib.sha256(seed.to_bytes(8, "big")).digest()


def open_account(
    ledger: Ledger, study: Study, site: str, rows: Iterable[Row], policy: Policy, approved: float | None = None
) -> Account:
    """The site's account for ``study``; nothing is spent by opening it.

    Args:
        rows: the site's images, of all splits.
        approved: the most that the site's approval lets this study spend.

    Raises:
        PolicyError: the site is too small for the study, or the whole run cannot fit into a limit.
    """
    listed = list(rows)
    demand_once(listed, site)
    who = _who(listed)
    made = plan(study, _sizes(study, who), site, policy.tell)
    cohorts = {split: ledger.cohort(found) for split, found in who.items() if found}
    return Account(ledger, study, site, made, cohorts, bounds(study, policy, approved))


def demand_once(rows: Iterable[Row], site: str) -> None:
    """Refuses an image that stands twice, under whatever names: it would be drawn twice, and pay once.

    Raises:
        DataError: naming it, for the site's own log.
    """
    seen: dict[Path, str] = {}
    for row in rows:
        if (before := seen.setdefault(row.path.resolve(), row.name)) != row.name:
            problem = f"{row.name} and {before} are one file: an image of a private study stands once"
            raise DataError(problem, where=site, remedy="leave one of them out of the manifest")


def sizes(study: Study, rows: Iterable[Row]) -> dict[str, int]:
    """Split → how many units of the study's a site has in it: patients, or images."""
    return _sizes(study, _who(rows))


def _who(rows: Iterable[Row]) -> dict[str, dict[str, int]]:
    held = list(rows)
    return {split: identities(row for row in held if row.split == split) for split in SPLITS}


def _sizes(study: Study, who: dict[str, dict[str, int]]) -> dict[str, int]:
    by_image = demand(study).unit == "image"
    return {split: sum(found.values()) if by_image else len(found) for split, found in who.items()}


def bounds(study: Study, policy: Policy, approved: float | None = None) -> tuple[Bound, ...]:
    """Every limit that a private study meets at a site, by patient."""
    privacy = demand(study)
    found = [
        (policy.epsilon, policy.delta, "this site's limit", ""),
        (approved, privacy.delta, "the limit of this site's approval", study.digest),
        (privacy.limit, privacy.delta, "the study's own limit", study.digest),
    ]
    return tuple(Bound(limit, delta, whose, which) for limit, delta, whose, which in found if limit is not None)
