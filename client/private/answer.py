"""A round of a private study at a site: set aside first, then worked out from the reservation's key, then noted."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from polyclinic.client.data.dataset import SiteData
from polyclinic.client.policy import Policy
from polyclinic.client.privacy.account import Account, open_account
from polyclinic.client.privacy.ledger import Ledger
from polyclinic.client.privacy.record import Reservation
from polyclinic.client.private.figures import N, noised
from polyclinic.client.private.fit import Private
from polyclinic.client.private.step import Make, PrivateStep, Terms
from polyclinic.core.errors import PolicyError
from polyclinic.core.messages import Instruction
from polyclinic.core.privacy.noise import Keyed
from polyclinic.core.privacy.plan import UPDATE, Release, demand
from polyclinic.core.privacy.receipt import Receipt
from polyclinic.core.signing import SigningKey
from polyclinic.core.statistics.codec import pack
from polyclinic.core.statistics.monoid import Floats, Statistic, Withheld
from polyclinic.core.study import Study
from polyclinic.core.update import Tensors, digest

LEDGER = "privacy"
"""Folder of the ledger, beside what else is a site's own."""


@dataclass(frozen=True, eq=False)
class Vault:
    """Where a site's privacy ledger lies.

    Attributes:
        folder: of the ledger; None for one that ends with this process, as for a comparison that nobody releases.
        key: under which its entries are signed.
        approved: the most that the site's approval lets the study spend.
        make: how private steps are made that are paid from it.
    """

    folder: Path | None = None
    key: SigningKey | None = None
    approved: float | None = None
    make: Make = PrivateStep

    def open(self, study: Study, site: str, data: SiteData, policy: Policy) -> Account:
        """The site's account for a study. Raises PolicyError, PrivacyError, RunError."""
        if self.key is not None and demand(study).generator == "simulated":
            problem = "noise from a seed hides nobody: whoever knows the study knows the noise"
            raise PolicyError(problem, where="privacy.generator", remedy='ask for a study with generator = "system"')
        ledger = Ledger(self.folder or Path(self._passing.name), self.key)
        return open_account(ledger, study, site, data.rows, policy, self.approved)

    @cached_property
    def _passing(self) -> tempfile.TemporaryDirectory[str]:
        return tempfile.TemporaryDirectory(prefix="polyclinic-")


@dataclass(frozen=True)
class Answer:
    """What one instruction's answer may tell, what that costs, and what it must be drawn from."""

    account: Account
    reservation: Reservation
    releases: Mapping[str, Release]

    def training(self, study: Study, make: Make = PrivateStep) -> Private:
        """How the round's private steps are taken."""
        privacy, plan = demand(study), self.account.plan
        return Private(
            terms=Terms(plan.noise, privacy.clip, privacy.clipping, float(privacy.expected)),
            rate=plan.rate,
            steps=study.training.steps or 1,
            unit=privacy.unit,
            pictures=privacy.pictures,
            portion=study.training.batch_size,
            chance=Keyed(self.reservation.stream(UPDATE)),
            opacus=privacy.step == "opacus",
            make=make,
        )

    def told(self, what: str, blank: N, rows: Floats, patients: Sequence[str]) -> N:
        """A figure with its noise: see ``figures.noised``."""
        chance = Keyed(self.reservation.stream(what))
        return noised(blank, rows, patients, self.releases[what].event, chance)

    def note(self, tensors: Tensors, statistics: Mapping[str, Statistic | Withheld]) -> Receipt:
        """Notes in the ledger what is about to leave; returns what travels with it.

        Raises:
            PrivacyError: the same reservation gave something else before: this must not leave.
        """
        total = hashlib.sha256(digest(tensors).encode())
        for name in sorted(statistics):
            total.update(hashlib.sha256(name.encode() + b"\x00" + pack(statistics[name])).digest())
        self.account.ledger.release(self.reservation, total.hexdigest())
        return self.account.receipt(self.reservation)


def reserved(account: Account, instruction: Instruction, base: str, figures: Iterable[str]) -> Answer | None:
    """Sets aside what an answer costs: an update, if training is asked for, and figures as far as they are planned.

    Args:
        base: digest of all that the answer is worked out from: the global state, and what the site kept.
        figures: what the site could tell, such as "incoming/val".

    Raises:
        PolicyError: a limit would be passed, or training is asked for in a round that has none.
    """
    wanted = {*figures} | ({UPDATE} if instruction.fit else set())
    releases = {one.what: one for one in account.due(instruction.run, instruction.round, wanted)}
    if instruction.fit and UPDATE not in releases:
        raise PolicyError(
            f"no update is planned for round {instruction.round}: nothing would pay for it", where="privacy"
        )
    if not releases:
        return None
    reservation = account.reserve(instruction.run, instruction.round, base, releases.keys())
    return Answer(account, reservation, releases)
