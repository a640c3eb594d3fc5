"""The attack: who took part is guessed from what a coordinator sees, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyclinic.client.data.dataset import SiteData
from polyclinic.client.private.step import Make, PrivateStep
from polyclinic.client.respond import Workbench
from polyclinic.core.errors import PrivacyError
from polyclinic.core.privacy.plan import Plan, demand, plan
from polyclinic.core.study import Study
from polyclinic.models.network import Adapted, build
from polyclinic.simulations.audit.bound import CONFIDENCE, Guesses, best, separation
from polyclinic.simulations.audit.canaries import Audited, Canaries, Directions, Kind
from polyclinic.simulations.audit.federation import Exchange, changed, federate
from polyclinic.simulations.audit.linear import explained
from polyclinic.simulations.audit.pictures import joined, made_up

SITE = "audited"
COMPANY = 2
"""Made-up patients beside the canaries, where no site's own are given."""
REFUTED = 1e-3
"""A claim is refuted where guesses as good as these had no more than this chance under it. A bound at 95 % alone lies
above a true claim once in twenty audits at most."""


@dataclass(frozen=True)
class Attack:
    """What an attack on one run came to.

    Attributes:
        guesses: by few scores, of which most is expected, and by all.
        claim: epsilon at ``delta`` of the run, as the site's last receipt says.
        bound: lower bound on the true epsilon at ``delta``, with a confidence of 95 %.
        p_value: chance of such guesses if the claim is true: no more than this.
    """

    kind: Kind
    guesses: tuple[Guesses, ...]
    claim: float
    delta: float
    bound: float
    p_value: float

    @property
    def passed(self) -> bool:
        """Whether the claim stands."""
        return self.p_value > REFUTED

    def document(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self) | {"passed": self.passed}


def attack(
    study: Study,
    kind: Kind,
    canaries: int,
    rng: np.random.Generator,
    *,
    data: SiteData | None = None,
    full: bool = False,
    make: Make = PrivateStep,
) -> Attack:
    """Runs a study at one site with canaries among its patients, and guesses which of them took part.

    Args:
        canaries: how many; of gradient canaries no more than there are numbers that train.
        data: the site's own images; made-up ones without.
        full: every patient is in every step, where a bound bites best; else as the study says.
        make: how the site makes private steps.

    Raises:
        StudyError: the study has no ``[privacy]``.
        QuorumError: the site refuses it; with its reason.
    """
    demand(study)
    own = data or made_up(study, SITE, {"train": [1] * COMPANY}, rng)
    directions = Directions.draw(trained(build(study)), canaries, rng) if kind == "gradient" else None
    count = canaries if directions is None else directions.count
    held, first = joined(own, made_up(study, SITE, {"train": [1] * count}, rng))
    bench = Workbench(sized(study, own, held, full))
    inside = rng.random(count) < 0.5
    among = Canaries({first + i: i for i in range(count)}, inside, directions)
    seen = federate(bench, {own.site: held}, {own.site: Audited(make, among)})
    made = plan(bench.study, units(bench.study, held))
    if directions is None:
        scores = explained(bench, made, seen, held.images("train"), range(first, first + count), rng)
    else:
        scores = np.sum([directions.along(exchange.moved) for exchange in seen], axis=0)
    return judged(kind, scores, inside, seen, made, bench.study)


def judged(
    kind: Kind,
    scores: NDArray[np.float64],
    inside: NDArray[np.bool_],
    seen: Sequence[Exchange],
    made: Plan,
    study: Study,
) -> Attack:
    """What guesses by ``scores`` prove."""
    receipt = seen[-1].reply.receipt
    if receipt is None:
        raise PrivacyError("no receipt came with the update: there is no claim", where=seen[-1].site)
    steps = (study.training.steps or 1) * study.rounds.count
    apart = separation(made.noise, made.rate, steps) * (1.0 if kind == "gradient" else 0.5)
    counts = sorted({best(len(scores), apart, receipt.delta), 2 * (len(scores) // 2)})
    found = tuple(guessed(scores, inside, count) for count in counts)
    confidence = 1.0 - (1.0 - CONFIDENCE) / len(found)  # Bonferroni: the better of several bounds is told
    bound = max(one.bound(receipt.delta, confidence) for one in found)
    p_value = min(1.0, len(found) * min(one.p_value(receipt.study, receipt.delta) for one in found))
    return Attack(kind, found, receipt.study, receipt.delta, bound, p_value)


def guessed(scores: NDArray[np.float64], inside: NDArray[np.bool_], count: int) -> Guesses:
    """``count`` guesses, an even number: the highest scores are taken for those inside, the lowest for the others."""
    order, half = np.argsort(scores), count // 2
    right = (~inside[order[:half]]).sum() + inside[order[len(order) - half :]].sum()
    return Guesses(len(scores), count, int(right))


def sized(study: Study, own: SiteData, held: SiteData, full: bool) -> Study:
    """The study for the site with its canaries: each is drawn as often as the site's own patients would be.

    Of made-up patients the site has no number; then the study's own number is drawn.
    """
    privacy, before, after = demand(study), units(study, own)["train"], units(study, held)["train"]
    kept = privacy.expected if before <= COMPANY else round(privacy.expected * after / before)
    expected = after if full else max(1, min(kept, after))
    return changed(study, {"privacy": {"expected": expected} | ({"limit": None} if full else {})})


def units(study: Study, data: SiteData) -> dict[str, int]:
    """Split → patients or images, whichever is the unit."""
    place = 0 if demand(study).unit == "image" else 1
    return {split: counts[place] for split, counts in data.sizes().items()}


def trained(adapted: Adapted) -> dict[str, tuple[int, ...]]:
    """Weight that trains and travels → its shape."""
    weights = dict(adapted.network.named_parameters())
    return {name: tuple(weights[name].shape) for name in adapted.travelling if weights[name].requires_grad}
