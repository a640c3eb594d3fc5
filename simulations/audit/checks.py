"""Checks that need no canary: each looks at one promise by itself, on short runs of a study's own method and task.

A check that rests on chance fails where what was seen had a probability below ``ALPHA`` if all were well, over all of
its comparisons together (Bonferroni).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, chi2, gamma, norm

from polyclinic.client.private.step import Make, PrivateStep
from polyclinic.core.errors import UpdateError
from polyclinic.core.privacy.plan import demand
from polyclinic.core.statistics.monoid import Withheld
from polyclinic.core.statistics.noised import Noised
from polyclinic.core.study import Study
from polyclinic.simulations.audit.federation import Exchange
from polyclinic.simulations.audit.neighbours import exact, moved
from polyclinic.simulations.audit.witness import SITES, Noise, Short, Twins, drawn, short

ALPHA = 1e-4
"""Chance that a check fails though all is well."""
SLACK = 1e-3
"""By what share of it a clip may be passed: gradients are float32."""
CLOSE = 0.02
"""By what share a receipt may differ from what Google's accountant says."""


@dataclass(frozen=True)
class Finding:
    """What one check found; ``figure`` says it in words."""

    check: str
    passed: bool
    figure: str

    def document(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self)


def checks(study: Study, rng: np.random.Generator, make: Make = PrivateStep) -> Iterator[Finding]:
    """All of them, one after another. Where the self-check fails, no site would train, and nothing else is tried.

    Raises:
        QuorumError: a site refused a short run; with its reason.
    """
    first = own_gradients(study, rng, make)
    yield first
    if not first.passed:
        return
    yield sensitivity(moved(study, rng, make))
    yield poisson(*drawn(study, rng, make))
    run = short(study, rng, make)
    yield noise_size(run)
    yield noise_fresh(run)
    yield ledger(run)
    yield statistics(run)


def own_gradients(study: Study, rng: np.random.Generator, make: Make = PrivateStep) -> Finding:
    """Every patient's gradient is the one that the patient alone would give, whatever weight it is of."""
    try:
        exact(study, rng, make)
    except UpdateError as refusal:
        return Finding("gradients", False, f"at {refusal.where}, not the one that a patient alone would give")
    return Finding("gradients", True, "each patient's own, at every weight that trains")


def sensitivity(found: Mapping[str, float]) -> Finding:
    """No patient moves a sum by more than the clip, however long the gradient is and however many the pictures."""
    worst = max(found, key=lambda name: found[name])
    figure = f"one patient moves a sum by {found[worst]:.4g} × clip at most ({worst})"
    return Finding("sensitivity", found[worst] <= 1.0 + SLACK, figure)


def poisson(who: NDArray[np.bool_], rate: float) -> Finding:
    """Each unit is drawn by itself, with the rate that the ledger was told.

    Looked at: how many are drawn in all; how sizes of samples spread; how often each unit is drawn; and whether who
    was drawn tells who is drawn next.
    """
    steps, units = who.shape
    spread, sizes = rate * (1 - rate), who.sum(axis=1)
    total = int(who.sum())
    again = ((who[1:] - rate) * (who[:-1] - rate)).sum() / (spread * math.sqrt((steps - 1) * units))
    chances = {
        "number": 2 * min(binom.cdf(total, who.size, rate), binom.sf(total - 1, who.size, rate)),
        "sizes": _dispersed(sizes, units, rate),
        "units": _dispersed(who.sum(axis=0), steps, rate),
        "neighbouring steps": 2 * float(norm.sf(abs(again))),
    }
    worst = min(chances, key=lambda name: chances[name])
    figure = f"{steps} samples of {sizes.mean():.2f} ± {sizes.std():.2f} units, {units * rate:.2f} ± "
    figure += f"{math.sqrt(units * spread):.2f} were due; {_odds(chances[worst], len(chances))} ({worst})"
    return Finding("sampling", chances[worst] > ALPHA / len(chances), figure)


def noise_size(run: Short) -> Finding:
    """On every weight lies noise of noise · clip / expected, whoever was drawn, and if nobody was.

    Of n numbers of one weight, Σ z² has a χ² distribution with n degrees of freedom.
    """
    drawn_into = [noise for rounds in run.noise.values() for steps in rounds for noise in steps]
    chances, ratios = {}, {}
    for where, noted in (("", drawn_into), (", nobody drawn", run.idle)):
        for name in noted[0]:
            z = np.concatenate([noise[name] for noise in noted])
            squares = float((z**2).sum())
            key = f"{name}{where}"
            chances[key] = 2 * min(float(chi2.cdf(squares, z.size)), float(chi2.sf(squares, z.size)))
            ratios[key] = math.sqrt(squares / z.size)
    worst = min(chances, key=lambda name: chances[name])
    figure = f"{ratios[worst]:.4f} × what was promised at {worst}; {_odds(chances[worst], len(chances))}"
    return Finding("noise", chances[worst] > ALPHA / len(chances), figure)


def noise_fresh(run: Short) -> Finding:
    """The noise of no two steps, rounds or sites has anything in common."""
    named = {
        f"{site}, round {number}, step {step}": _flat(noise)
        for site, rounds in run.noise.items()
        for number, steps in enumerate(rounds, 1)
        for step, noise in enumerate(steps, 1)
    }
    found = {}
    for (one, z), (other, other_z) in combinations(named.items(), 2):
        lengths = math.sqrt(float(z @ z) * float(other_z @ other_z))
        found[f"{one} and {other}"] = float(z @ other_z) / lengths if lengths else 1.0
    worst = max(found, key=lambda pair: abs(found[pair]))
    numbers = len(next(iter(named.values())))
    chance = 2 * float(norm.sf(abs(found[worst]) * math.sqrt(numbers)))
    figure = f"correlation {found[worst]:+.3f} at most, over {numbers} numbers; {_odds(chance, len(found))} ({worst})"
    return Finding("fresh noise", chance > ALPHA / len(found), figure)


def ledger(run: Short) -> Finding:
    """Receipts say what all that left so far cost together: what Google's accountant says, asked directly.

    Of training at least; at most the dearer of training and of the figures that were planned for other patients.
    """
    wrong, told = [], 0.0
    for site, rounds in run.noise.items():
        before = 0.0
        for number, one in enumerate((one for one in run.seen if one.site == site and one.reply.update), 1):
            receipt = one.reply.receipt
            told = 0.0 if receipt is None else receipt.study
            least, most = due(run, number, sum(map(len, rounds[:number])))
            sound = least * (1 - CLOSE) <= told <= most * (1 + CLOSE) and told >= before
            if receipt is None or not sound:
                wrong.append(f"{site}, round {number}: {told:.4g} where {least:.4g} is due")
            before = told
    figure = "; ".join(wrong) or f"receipts grow to ε = {told:.4g}, as all steps so far cost"
    return Finding("ledger", not wrong and told > 0, figure)


def due(run: Short, number: int, steps: int) -> tuple[float, float]:
    """(epsilon of so many steps of training, the most that anything planned up to a round costs anybody)."""
    from dp_accounting import dp_event

    privacy, noise = demand(run.study), run.plan.noise
    rate = privacy.expected / run.plan.units["train"]
    trained = dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(noise))
    least = most = accountant({trained: steps}, privacy.delta)
    for split in ("val", "test"):
        figures = [one.event.noise for one in run.plan.releases if one.split == split and one.round <= number]
        if figures:
            counted = {dp_event.GaussianDpEvent(sigma): figures.count(sigma) for sigma in set(figures)}
            most = max(most, accountant(counted, privacy.delta))
    return least, most


def statistics(run: Short) -> Finding:
    """What is told of patients beside the update has noise, of the size that was paid for, and says so."""
    told, twice = list(figures(run.seen)), list(figures(run.twins.seen))
    if bare := [where for where, _, figure in (*told, *twice) if not isinstance(figure, Noised)]:
        return Finding("statistics", False, f"without noise: {', '.join(bare[:3])}")
    due = {name: paid(run.twins, name) for _, name, _ in twice}
    wrong = [where for where, name, figure in twice if not math.isclose(figure.noise, due[name], rel_tol=1e-3)]
    if wrong:
        return Finding("statistics", False, f"says of itself another noise than was paid for: {wrong[0]}")
    odds = {name: _spread(noise) for name, noise in told_twice(run.twins)}
    if not odds:
        return Finding("statistics", True, "none is told")
    name = min(odds, key=odds.__getitem__)
    figure = f"{len(told)} told, all noised; {name}, told twice of the same images: {_odds(odds[name], len(odds))}"
    return Finding("statistics", odds[name] * len(odds) >= ALPHA, figure)


def figures(seen: Sequence[Exchange]) -> Iterator[tuple[str, str, Any]]:
    """(where, name, statistic) of all that was told beside updates."""
    for one in seen:
        for name, figure in one.reply.statistics.items():
            if not isinstance(figure, Withheld):
                yield f"{name} of {one.site} in round {one.round}", name, figure


def paid(twins: Twins, name: str) -> float:
    """The noise multiplier of a figure, as planned."""
    return next(release.event.noise for release in twins.plan.releases if release.what == name)


def told_twice(twins: Twins) -> Iterator[tuple[str, NDArray[np.float64]]]:
    """(name, standard Gaussian numbers, if all is well) of every figure that both told of the same images and model."""
    first, second = (
        next(one.reply.statistics for one in twins.seen if (one.site, one.round) == (site, 1)) for site in SITES
    )
    for name in sorted(first.keys() & second.keys()):
        one, other = first[name], second[name]
        if isinstance(one, Noised) and isinstance(other, Noised):
            yield name, (one.sums() - other.sums()).ravel() / (paid(twins, name) * math.sqrt(2.0))


def _spread(noise: NDArray[np.float64]) -> float:
    """Chance, two-sided, of a sum of squares as unlikely as this for standard Gaussian numbers."""
    squares = float((noise**2).sum())
    return 2 * float(min(chi2.cdf(squares, noise.size), chi2.sf(squares, noise.size)))


def accountant(events: Mapping[Any, int], delta: float) -> float:
    """Epsilon of events, each so many times, by Google's accountant, with nothing of ours in between."""
    from dp_accounting import pld

    spent = pld.PLDAccountant(value_discretization_interval=1e-3)
    for event, count in events.items():
        spent.compose(event, count)
    return float(spent.get_epsilon(delta))


def _dispersed(counts: NDArray[np.int64], trials: int, rate: float) -> float:
    """Chance that binomial counts spread so unlike what they should, two-sided.

    Σ (c − μ)² / σ² has mean n and variance n (2 + excess kurtosis); a gamma distribution with both stands for it, which
    for Gaussian counts is χ².
    """
    spread = trials * rate * (1 - rate)
    squares = float(((counts - trials * rate) ** 2).sum() / spread)
    scale = 2 + (1 - 6 * rate * (1 - rate)) / spread
    shape = counts.size / scale
    return 2 * float(min(gamma.cdf(squares, shape, scale=scale), gamma.sf(squares, shape, scale=scale)))


def _flat(noise: Noise) -> NDArray[np.float64]:
    return np.concatenate(list(noise.values()))


def _odds(chance: float, compared: int) -> str:
    together = min(1.0, chance * compared)
    return f"p = {together:.2g}" if together >= 1e-12 else "p < 1e-12"
