"""How much events cost together: epsilon by privacy loss distributions, with Rényi divergences as a second opinion.

Google's dp-accounting does the mathematics (Doroshenko et al. 2022, arXiv 2207.04380, "connect the dots"; all its
estimates are pessimistic). Epsilon follows from events alone; nothing is remembered but what was worked out before.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.special import gammaln, logsumexp

from polyclinic.core.errors import PrivacyError
from polyclinic.core.privacy.events import Event

GRID = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5)
"""Steps in which losses are counted; the first that epsilon is ``FINE`` times as large as is used."""
FINE = 1000
TOLERANCE = 0.01
"""By how much of it a distribution's epsilon may exceed Rényi's before one of the two must be wrong."""
ORDERS = (*range(2, 17), 20, 24, 32, 48, 64, 96, 128, 256)
"""Rényi orders: whole ones, for which the divergence is a finite sum (Mironov et al. 2019, arXiv 1908.10530)."""
MANY, VAST = 16, 1e4
"""Images of one patient, and an epsilon, from which on Rényi's bound must do: distributions would take too long."""
DIGITS = 4
"""Significant digits of a noise that is worked out from an epsilon; rounded up."""


@dataclass(frozen=True)
class Sort:
    """All sums of one kind, whatever round they come from: what an event is to somebody with ``images`` units in it."""

    noise: float
    rate: float
    images: int


Sums = tuple[tuple[Sort, int], ...]
"""(sort, how many), in the order in which they first came up."""


def epsilon(events: Iterable[Event], delta: float, images: int = 1) -> float:
    """The least epsilon, rounded up by little, for which all ``events`` together are (epsilon, delta)-private.

    Args:
        images: of one patient: as many vectors of events by image are his or hers, each drawn by itself.

    Raises:
        PrivacyError: the two accountants contradict each other, or epsilon is beyond reckoning.
    """
    return of_sums(sums((event, images) for event in events), delta)


def sums(charged: Iterable[tuple[Event, int]]) -> Sums:
    """(event, images of the patient) put together: a patient's images matter where images are the unit."""
    found: dict[Sort, int] = {}
    for event, images in charged:
        sort = Sort(event.noise, event.rate, images if event.unit == "image" else 1)
        found[sort] = found.get(sort, 0) + event.steps
    return tuple(found.items())


@lru_cache(maxsize=4096)
def of_sums(together: Sums, delta: float) -> float:
    """See ``epsilon``; what was worked out once is remembered."""
    if not together:
        return 0.0
    bound = renyi(together, delta)
    most = max(sort.images for sort, _ in together)
    found = bound if most > MANY or (most == 1 and bound > VAST) else _by_losses(together, delta)
    if not found <= bound * (1 + TOLERANCE) + GRID[-1]:
        problem = f"loss distributions give epsilon {found:.6g}, above Rényi's bound of {bound:.6g}"
        raise PrivacyError(problem, where=f"delta {delta:g}", remedy="nothing is released; please report this")
    if not math.isfinite(found):
        raise PrivacyError("epsilon is beyond reckoning", where=f"delta {delta:g}", remedy="add noise")
    return found


def _by_losses(together: Sums, delta: float) -> float:
    found = math.inf
    for step in GRID:
        found = float(_composed(together, step).get_epsilon_for_delta(delta))
        if found >= FINE * step:
            break
    return found


def renyi(together: Sums, delta: float) -> float:
    """Epsilon by Rényi divergences: never below the truth, and usually a tenth above it."""
    from dp_accounting.rdp import compute_epsilon

    total = np.sum([steps * _divergences(sort) for sort, steps in together], axis=0)
    return float(compute_epsilon(ORDERS, total, delta)[0])


@lru_cache(maxsize=4096)
def _divergences(sort: Sort) -> np.ndarray:
    """Of one sum, at every order α: log Σ_k C(α, k) (1 − q)^(α−k) q^k exp((k² − k) / 2s²) / (α − 1).

    A patient with several images is in a sum with one at least, and then, at worst, with all of them.
    """
    noise = sort.noise / sort.images
    rate = -math.expm1(sort.images * math.log1p(-sort.rate)) if sort.rate < 1.0 else 1.0
    if rate == 1.0:
        return np.asarray(ORDERS) / (2 * noise**2)
    found = []
    for order in ORDERS:
        k = np.arange(order + 1)
        ways = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
        logs = ways + (order - k) * math.log1p(-rate) + k * math.log(rate) + (k * k - k) / (2 * noise**2)
        found.append(max(float(logsumexp(logs)), 0.0) / (order - 1))
    return np.asarray(found)


def noise_for(epsilon: float, delta: float, rate: float, steps: int) -> float:
    """The least noise multiplier, to ``DIGITS`` digits, with which ``steps`` sums cost at most ``epsilon``.

    Args:
        rate: with which each unit is drawn; 1: all are in each sum.

    Raises:
        PrivacyError: no noise that anybody would add is enough.
    """

    from scipy.optimize import brentq

    def excess(exponent: float) -> float:
        found = _by_losses(((Sort(math.exp(exponent), rate, 1), steps),), delta)
        return math.log(max(found, 1e-12)) - math.log(epsilon)

    low = high = 0.0
    while excess(high) > 0.0:
        low, high = high, high + 1.0
        if high > 16.0:
            raise PrivacyError(f"no noise brings {steps} steps to epsilon {epsilon:g}", where="privacy")
    while excess(low) <= 0.0:
        low, high = low - 0.5, low
    noise = rounded_up(math.exp(brentq(excess, low, high, xtol=1e-5)))
    while of_sums(((Sort(noise, rate, 1), steps),), delta) > epsilon:
        noise = rounded_up(noise * (1 + 10.0**-DIGITS))
    return noise


def rounded_up(value: float) -> float:
    """To ``DIGITS`` significant digits."""
    unit = 10.0 ** (math.floor(math.log10(value)) - DIGITS + 1)
    up = float(f"{math.ceil(value / unit - 1e-9) * unit:.{DIGITS - 1}e}")
    return up if up >= value else float(f"{up + unit:.{DIGITS - 1}e}")


def largest(charges: Iterable[Sums], delta: float) -> float:
    """The largest epsilon among several patients' sums; who, by Rényi's bound, cannot have it is not reckoned."""
    bounds = sorted(((renyi(one, delta), one) for one in set(charges) if one), key=lambda pair: -pair[0])
    found = 0.0
    for bound, one in bounds:
        if bound > found:
            found = max(found, of_sums(one, delta))
    return found


@lru_cache(maxsize=512)
def _composed(together: Sums, step: float) -> Any:
    """All of it; what came first is not composed anew when something is added."""
    *before, (sort, steps) = together
    last = _repeated(sort, steps, step)
    return _composed(tuple(before), step).compose(last) if before else last


@lru_cache(maxsize=512)
def _repeated(sort: Sort, steps: int, step: float) -> Any:
    if sort.rate == 1.0:  # Gaussian sums are one Gaussian
        return _one(Sort(sort.noise / sort.images / math.sqrt(steps), 1.0, 1), step)
    return _one(sort, step).self_compose(steps)


@lru_cache(maxsize=512)
def _one(sort: Sort, step: float) -> Any:
    """The loss of one sum. With several images, how many of them are drawn is binomial.

    See Charles et al. 2024, arXiv 2407.07737, on what an accountant by example says of a patient.
    """
    from dp_accounting.pld import privacy_loss_distribution as losses
    from scipy.stats import binom

    if sort.images == 1:
        return losses.from_gaussian_mechanism(sort.noise, sampling_prob=sort.rate, value_discretization_interval=step)
    counts = range(sort.images + 1)
    chances = [float(chance) for chance in binom.pmf(counts, sort.images, sort.rate)]
    return losses.from_mixture_gaussian_mechanism(
        sort.noise, [float(count) for count in counts], chances, value_discretization_interval=step
    )
