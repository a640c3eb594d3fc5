"""The study's ``[central]``: whole sites are what is protected, by noise that the server adds to the sum of updates.

What is covered is the sequence of global states, for whoever sees nothing else: neither what a site tells about its
images, nor the server's own records, nor the coordinator, who sees every update as it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, model_validator

from polyclinic.core.config import Config
from polyclinic.core.errors import StudyError
from polyclinic.core.privacy.config import FAINTEST, LOUDEST
from polyclinic.core.privacy.events import ADJACENCY, Event, Generator
from polyclinic.core.privacy.receipt import SIMULATED

if TYPE_CHECKING:
    from polyclinic.core.study import Study

COVERS = (
    "This covers the global adapters alone, for whoever sees nothing else. Not covered: figures and statistics of "
    "sites, this record and the report, which name who was asked, and the coordinator, who sees every update."
)
"""What is said wherever this epsilon is shown."""


class Central(Config):
    """Differential privacy of whole sites, by noise at the server; a study without this section has none.

    Attributes:
        sites: that are enrolled: public, a constant. The noised sum is divided by the number expected of them.
        noise: standard deviation of the noise on the sum, in multiples of ``clip``. With several ``bands`` it is of
            each answer of a site: see ``polyclinic.core.privacy.banded``.
        epsilon: in place of ``noise``: what the whole run may cost a site.
        delta: at which epsilon is told; below 1 / ``sites``.
        clip: L2 norm to which the whole change that a site sends is clipped, all tensors together.
        rate: with which each site is drawn in each round, by itself; 1: all are asked in each.
        clipping: "fixed", or "adaptive": ``clip`` is where it begins, and it moves to the ``quantile`` of the norms
            (Andrew et al. 2021, arXiv 1905.03871).
        quantile: share of the updates that are not to be shortened.
        clip_rate: how fast the clip moves: their η_C.
        count_share: of 1/noise², what the count of updates within the clip takes: their z²/(2σ_b)², so that one
            Gaussian sum of ``noise`` covers count and updates together.
        mechanism: "gaussian": noise is new in each round. "banded": sites are in ``bands`` fixed groups that are asked
            in turn, and noise is correlated over rounds (Choquette-Choo et al. 2023, arXiv 2306.08153).
        bands: how many groups, and bands of the matrix.
        generator: "system" (secure), or "simulated" (from the study's seed: for tests; no privacy).
    """

    sites: int = Field(ge=2, le=2**13)
    noise: float | None = Field(default=None, ge=FAINTEST, le=LOUDEST)
    epsilon: float | None = Field(default=None, gt=0.0, le=100.0)
    delta: float = Field(default=1e-5, ge=1e-12, lt=0.1)
    clip: float = Field(default=1.0, ge=1e-6, le=1e4)
    rate: float = Field(default=1.0, gt=0.0, le=1.0)
    clipping: Literal["fixed", "adaptive"] = "fixed"
    quantile: float = Field(default=0.5, gt=0.0, lt=1.0)
    clip_rate: float = Field(default=0.2, gt=0.0, le=1.0)
    count_share: float = Field(default=0.01, gt=0.0, le=0.5)
    mechanism: Literal["gaussian", "banded"] = "gaussian"
    bands: int = Field(default=1, ge=1, le=64)
    generator: Generator = "system"

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if (self.noise is None) == (self.epsilon is None):
            raise ValueError("give noise, or epsilon from which it is worked out: one of them")
        if self.delta * self.sites >= 1.0:
            raise ValueError("delta must be below 1 / sites: else it allows telling all of one site")
        if (self.mechanism == "banded") != (self.bands > 1):
            raise ValueError('mechanism = "banded" needs bands of 2 or more, and nothing else has any')
        if self.mechanism == "banded" and self.rate != 1.0:
            raise ValueError("banded noise asks fixed groups in turn, and draws nobody: leave out rate")
        if self.mechanism == "banded" and self.clipping == "adaptive":
            raise ValueError(
                "banded noise spans rounds, and a clip that moves would need noise of its own: keep it fixed"
            )
        return self

    @property
    def expected(self) -> float:
        """Sites that a round asks on average: what a noised sum is divided by."""
        return self.sites * self.rate / self.bands

    @property
    def secret(self) -> bool:
        """Whether who is asked must remain unknown for epsilon to hold."""
        return self.rate < 1.0

    def multiplier(self, rounds: int) -> float:
        """The noise multiplier of a run of so many rounds. Raises PrivacyError if no noise is enough for epsilon."""
        if self.noise is not None:
            return self.noise
        from polyclinic.core.privacy import accounting

        steps = math.ceil(rounds / self.bands)
        return accounting.noise_for(self.epsilon or 0.0, self.delta, self.rate, steps)

    def event(self, number: int, noise: float) -> Event | None:
        """What round ``number`` (1 …) costs a site; None where it was charged in an earlier round.

        With several bands a site answers once in so many rounds: the first round of each turn charges for all.
        """
        if (number - 1) % self.bands:
            return None
        return Event("poisson_gaussian" if self.secret else "gaussian", noise, self.rate, 1, "site")

    def words(self, noise: float) -> str:
        """How it is noised, in a sentence without its end."""
        if self.bands > 1:
            return (
                f"noise correlated over {self.bands} rounds, for each answer of a site as good as Gaussian noise of "
                f"{noise:.4g} × the clip; {self.sites} sites in {self.bands} groups, asked in turn"
            )
        whom = f"each of {self.sites} sites drawn with rate {self.rate:g}" if self.secret else f"all {self.sites} sites"
        return f"Gaussian noise of {noise:.4g} × the clip on the sum of the sites' updates; {whom}"


@dataclass(frozen=True)
class Spent:
    """What the global states so far cost a site.

    Attributes:
        study: epsilon for whoever sees the global states alone.
        known: epsilon for whoever knows, besides, who was asked in which round: sampling then hides nobody.
        clip: of the last round.
        mechanism: in words.
    """

    delta: float
    study: float
    known: float
    clip: float
    mechanism: str
    generator: Generator

    @staticmethod
    def of(central: Central, events: list[Event], clip: float) -> Spent:
        """From all events so far, one at least."""
        from polyclinic.core.privacy import accounting

        plain = [Event("gaussian", event.noise, 1.0, event.steps, "site") for event in events]
        study, known = (accounting.epsilon(some, central.delta) for some in (events, plain))
        return Spent(central.delta, study, known, clip, central.words(events[-1].noise), central.generator)

    def document(self) -> dict[str, Any]:
        """As JSON data, with unit and adjacency."""
        return {"unit": "site", "adjacency": ADJACENCY, **vars(self)}


def spent_in_words(told: Mapping[str, Any]) -> str:
    """Sentences on a ``Spent.document``, unit and adjacency included."""
    if told["generator"] == "simulated":
        return f"{SIMULATED} (it would be ε = {told['study']:.3g} by site)."
    known = "" if told["known"] == told["study"] else f" For who knows who was asked it is {told['known']:.3g}."
    return f"ε = {told['study']:.3g} (by site, {told['adjacency']}, δ = {told['delta']:g}).{known} {COVERS}"


def demand_central(study: Study) -> None:
    """Nothing, if the study asks for no noise at the server, or if what it says of it would hold.

    Raises:
        StudyError: naming what stands against it, and why.
    """
    if (central := study.central) is None:
        return
    if not study.strategy.sums:
        raise StudyError(
            f"'{study.strategy.method}' does not say that it only sums updates: what one site can change is unknown",
            where="strategy.method",
            remedy="use 'mean', or leave out [central]",
        )
    if study.rounds.weight != "equal":
        problem = f"sites that count by {study.rounds.weight} differ in what they can change; noise is for one size"
        raise StudyError(problem, where="rounds.weight", remedy='write weight = "equal"')
    if study.rounds.sites_per_round is not None:
        problem = "so many sites drawn together are not what is accounted: each must be drawn by itself"
        raise StudyError(problem, where="rounds.sites_per_round", remedy="leave it out, and write central.rate")
    if central.bands > study.rounds.count:
        problem = f"{central.bands} groups are more than {study.rounds.count} rounds: some would never be asked"
        raise StudyError(problem, where="central.bands", remedy="take fewer, or more rounds")


def demand_untouched(study: Study, method: str, why: str) -> None:
    """Nothing, if no noise at the server changes what a method sends.

    Raises:
        StudyError: with ``why`` that must not be.
    """
    if study.central is not None:
        problem = f"'{method}' cannot be noised at the server: {why}"
        raise StudyError(problem, where="central", remedy=f"leave out [central], or '{method}'")


def demand_no_audience(study: Study) -> None:
    """Nothing, if a live federation may publish the study.

    Raises:
        StudyError: it has noise at the server: there every site is told what that noise is to hide.
    """
    if study.central is not None:
        raise StudyError(
            "a live coordinator gives every site signed receipts that name who took part, and the digest of each "
            "update before any noise: what [central] promises would not hold",
            where="central",
            remedy="leave it out and use [privacy], noise at each site; [central] is for simulations",
        )
