"""What right guesses prove: a lower bound on ε from one run (Steinke, Nasr & Jagielski 2023, arXiv 2305.08846).

Each of m canaries takes part by a coin of its own. Whoever sees only what leaves guesses r of the coins and abstains
from the others. If what leaves is (ε, δ)-private, not too many guesses can be right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit
from scipy.stats import binom, norm

CONFIDENCE = 0.95
"""With which a bound holds."""
BEYOND = 60.0
"""An epsilon that nobody could tell from none at all."""


@dataclass(frozen=True)
class Guesses:
    """How well an attack guessed.

    Attributes:
        canaries: m, whose coins were tossed.
        made: r, how many coins were guessed.
        right: v of these.
    """

    canaries: int
    made: int
    right: int

    def p_value(self, epsilon: float, delta: float) -> float:
        """Chance of so many right guesses, or more, against anything that is (epsilon, delta)-private: at most this.

        Section 5 and appendix D of the paper: with f(v) = P[Binomial(r, e^ε / (1 + e^ε)) ≥ v], it is
        f(v) + 2mδ max_{1 ≤ i ≤ v} (f(v − i) − f(v)) / i.
        """
        share = float(expit(epsilon))
        found = float(binom.sf(self.right - 1, self.made, share))
        if delta > 0.0 and self.right:
            less = np.arange(1, self.right + 1)
            gained = (binom.sf(self.right - less - 1, self.made, share) - found) / less
            found += 2 * self.canaries * delta * float(gained.max())
        return min(found, 1.0)

    def bound(self, delta: float, confidence: float = CONFIDENCE) -> float:
        """The largest epsilon that is refuted: with this confidence, the true one is no less. 0: none is."""

        def excess(epsilon: float) -> float:
            return self.p_value(epsilon, delta) - (1.0 - confidence)

        if excess(0.0) >= 0.0:
            return 0.0
        return float(brentq(excess, 0.0, BEYOND, xtol=1e-6))


def separation(noise: float, rate: float, steps: int) -> float:
    """How far a canary's score moves when it takes part, in standard deviations of the score.

    In each of ``steps`` sums it adds 1 along a direction of its own with probability ``rate``, and noise of standard
    deviation ``noise`` is added: the mean moves by steps · rate, and the variance is that of noise and of drawing.
    """
    return steps * rate / math.sqrt(steps * noise**2 + steps * rate * (1.0 - rate))


def accuracy(apart: float, share: float) -> float:
    """Of guesses on the ``share`` of scores that lie farthest out, how many are right, for Gaussian scores.

    Scores are N(±apart/2, 1), in or out with equal chance; guesses are "in" above the middle and "out" below.
    """
    cut = _cut(apart, share)
    return min(float(norm.sf(cut - apart / 2) / min(share, 1.0)), 1.0)


def best(canaries: int, apart: float, delta: float) -> int:
    """How many guesses promise the best bound; an even number, and settled before anything was seen.

    Settled afterwards, the best of many bounds would hold with less confidence than each.
    """
    tried = sorted({max(2, 2 * round(canaries * share / 2)) for share in np.linspace(0.02, 1.0, 50)})
    made = [count for count in tried if count <= canaries]

    def promised(count: int) -> float:
        return promise(canaries, count, apart, delta, luck=0.1)

    return max(made, key=promised) if made else canaries


def promise(canaries: int, made: int, apart: float, delta: float, luck: float = 0.5) -> float:
    """The bound of an attack whose scores are Gaussian (see ``accuracy``), at a quantile ``luck`` of what may come."""
    right = int(binom.ppf(luck, made, accuracy(apart, made / canaries)))
    return Guesses(canaries, made, right).bound(delta)


def _cut(apart: float, share: float) -> float:
    """c ≥ 0 with P[|score| > c] = share."""
    if share >= 1.0:
        return 0.0
    return float(brentq(lambda c: norm.sf(c - apart / 2) + norm.sf(c + apart / 2) - share, 0.0, 40.0 + apart))
