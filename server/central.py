"""Noise at the server: who is asked, what is added to the clipped sum, and what is charged for it.

A round's noise is new whenever the round is worked out, and leaves only with the state that the journal then commits,
in one transaction with the charge: no two states are made with one noise, and none is uncharged. Who is drawn follows
from a key that the journal keeps before anyone is asked: a round that was killed may not draw again, for a draw that is
repeated until it suits is no sample that epsilon is for. For the same reason no round waits for better replies: whether
enough sites can be asked is looked at before anyone is drawn.
"""

from __future__ import annotations

import hashlib
import hmac
import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from polyclinic.core.errors import QuorumError, RunError
from polyclinic.core.privacy import banded
from polyclinic.core.privacy.central import Central, Spent
from polyclinic.core.privacy.events import Event
from polyclinic.core.privacy.noise import KEY, Chance, Keyed, gaussian, on_grid, released
from polyclinic.core.seeds import derive
from polyclinic.core.study import Study
from polyclinic.core.update import Tensors
from polyclinic.server.journal import Journal, State
from polyclinic.strategies.clipped import COUNT, ClippedSum

OWN = "central/"
"""Before the names of what it remembers, beside the server step's memory."""
CLIP, NOISE = f"{OWN}clip", f"{OWN}noise/"
SMALLEST, LARGEST = 1e-6, 1e4
"""Between which an adaptive clip stays."""


@dataclass(frozen=True)
class Charge:
    """What is to be committed with a round's state, in one transaction.

    Attributes:
        record: joins the round's.
        entries: of the ledger, (kind, body).
        keys: that are no longer needed.
    """

    record: Mapping[str, Any] = field(default_factory=dict)
    entries: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    keys: Mapping[str, bytes | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Mechanism:
    """Noise at the server, of one study.

    Attributes:
        terms: what the study says.
        noise: the multiplier that epsilon is reckoned with.
    """

    study: Study
    terms: Central
    noise: float

    @staticmethod
    def of(study: Study) -> Mechanism | None:
        """None for a study without ``[central]``."""
        terms = study.central
        return None if terms is None else Mechanism(study, terms, terms.multiplier(study.rounds.count))

    def start(self) -> Tensors:
        """What it remembers before round 1."""
        return {CLIP: np.array([self.terms.clip], np.float32)}

    def strategy(self, memory: Tensors) -> ClippedSum:
        """The fold of the next round."""
        return ClippedSum(float(memory[CLIP][0]))

    def choose(self, names: Sequence[str], number: int, journal: Journal) -> tuple[str, ...]:
        """The sites of a round: all, a group, or those who were drawn; may be none.

        Raises:
            QuorumError: too few can be asked.
            RunError: more than the study says are enrolled.
        """
        self._demand_reach(names, number, journal)
        if self.terms.bands > 1:
            turn = (number - 1) % self.terms.bands
            return tuple(site for site in sorted(names) if self.group(site) == turn)
        if not self.terms.secret:
            return tuple(sorted(names))
        key = self._draw(number, journal)
        return tuple(site for site in sorted(names) if _uniform(key, site) <= self.terms.rate)

    def group(self, site: str) -> int:
        """Of ``bands``, for good, whoever else takes part."""
        return derive(self.study.study.seed, "central", "group", site) % self.terms.bands

    def noised(self, state: State, total: Tensors) -> tuple[Tensors, Tensors]:
        """(what it remembers, old + (Σ clipped changes + noise) ÷ expected), of the exact sum of the next round.

        With an adaptive clip the sum has noise z/√(1 − s) and the count of ±½ noise z/(2√s), s the count's share of
        1/z²: as one vector, scaled, they are one Gaussian sum of noise z (Andrew et al. 2021, theorem 1).
        """
        terms, memory, chance = self.terms, state.memory, self._chance(state.round + 1)
        clip = float(memory[CLIP][0])
        share = terms.count_share if terms.clipping == "adaptive" else 0.0
        deviation = self.noise / math.sqrt(1.0 - share) * clip
        aggregate: dict[str, np.ndarray] = {}
        past: dict[str, np.ndarray] = {}
        for name in sorted(state.tensors):
            change = total[name]
            if terms.bands > 1:
                noise, kept = self._banded(name, change.shape, deviation, memory, chance)
                noisy = on_grid(change + noise, deviation)
                past.update(kept)
            else:
                noisy = released(change, deviation, chance)
            aggregate[name] = (state.tensors[name] + noisy / terms.expected).astype(np.float32)
        if share:
            counted = released(total[COUNT], self.noise / (2 * math.sqrt(share)), chance)
            clip = moved(clip, 0.5 + float(counted[0]) / terms.expected, terms)
        return {CLIP: np.array([clip], np.float32), **past}, aggregate

    def _banded(
        self, name: str, shape: tuple[int, ...], deviation: float, memory: Tensors, chance: Chance
    ) -> tuple[np.ndarray, Tensors]:
        """(this round's noise on one tensor, that of the last rounds under its places); float32, as it is kept."""
        bands = self.terms.bands
        past = [memory[_place(age, name)] for age in range(1, bands) if _place(age, name) in memory]
        fresh = deviation * banded.length(bands) * gaussian(chance, math.prod(shape)).reshape(shape)
        noise = banded.correlated(fresh, past, bands).astype(np.float32)
        return noise, {_place(age, name): w for age, w in enumerate([noise, *past][: bands - 1], 1)}

    def charge(self, state: State, journal: Journal, *, lost: bool = False) -> Charge:
        """What the round after ``state`` costs, by all that the journal has of it.

        ``lost``: it was worked out, something of it is known, and it will be worked out anew: whoever answered in it
        answers once more than is foreseen, so it is charged in any case; and it draws anew.
        """
        number, clip = state.round + 1, float(state.memory[CLIP][0])
        event = self.terms.event(1 if lost else number, self.noise)
        told = [entry.body["event"] for entry in journal.entries("central")]
        events = [*(Event.read(one) for one in told if one), *([event] if event else [])]
        spent = Spent.of(self.terms, events, clip).document()
        body = {"round": number, "event": event.document() if event else None, **spent}
        return Charge({"privacy": spent}, (("central", body),), {_name(number): None})

    def _demand_reach(self, names: Sequence[str], number: int, journal: Journal) -> None:
        needed = math.ceil(self.study.rounds.quorum * self.terms.sites - 1e-9)
        if len(names) > self.terms.sites:
            problem = f"{len(names)} sites can be asked, and central.sites says {self.terms.sites}"
            raise RunError(problem, where="central.sites", remedy="leave some out, or run a study that says how many")
        if len(names) < needed:
            journal.commit(entries=[("paused", {"round": number, "needed": needed, "excluded": {}})])
            problem = f"round {number}: {len(names)} of {self.terms.sites} sites can be asked, {needed} are needed"
            raise QuorumError(problem, remedy="wait for them and resume; nothing is lost")

    def _draw(self, number: int, journal: Journal) -> bytes:
        """The key that decides who is asked in a round; kept until the round is over."""
        if self.terms.generator == "simulated":
            return self._simulated("draw", number)
        if (key := journal.key(_name(number))) is None:
            key = secrets.token_bytes(KEY)
            journal.commit(keys={_name(number): key})
        return key

    def _chance(self, number: int) -> Chance:
        simulated = self.terms.generator == "simulated"
        return Keyed(self._simulated("noise", number) if simulated else secrets.token_bytes(KEY))

    def _simulated(self, what: str, number: int) -> bytes:
        seed = derive(self.study.study.seed, "central", what, number)
        return hashlib.sha256(seed.to_bytes(8, "big")).digest()


def moved(clip: float, within: float, terms: Central) -> float:
    """The next clip: C · exp(−η (b − γ)), b the noised share of updates within it (Andrew et al. 2021, algorithm 1)."""
    exponent = min(max(-terms.clip_rate * (within - terms.quantile), -1.0), 1.0)  # so that no noise throws it far
    return min(max(clip * math.exp(exponent), SMALLEST), LARGEST)


def _uniform(key: bytes, site: str) -> float:
    """In (0, 1]: of this site, whoever else can be asked."""
    return float(Keyed(hmac.digest(key, site.encode(), "sha256")).uniform(1)[0])


def _name(number: int) -> str:
    return f"draw/{number}"


def _place(age: int, name: str) -> str:
    return f"{NOISE}{age}/{name}"
