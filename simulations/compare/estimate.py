"""Figures over seeds: means with Student's t intervals, and paired differences with Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise
from typing import Any

from scipy.special import stdtr, stdtrit

from polyclinic.core.statistics.figures import Figure, missing
from polyclinic.server.report.compare import LEVEL, holm

Json = dict[str, Any]
ABSENT = "not measured"
SHARE, AMOUNT, ANY = (0.0, 1.0), (0.0, math.inf), (-math.inf, math.inf)
"""Between which a share, an amount, and a difference must lie."""


def over(
    values: Sequence[float | None], why: str = ABSENT, within: tuple[float, float] = (-math.inf, math.inf)
) -> Figure:
    """The mean over seeds with its 95 % interval (Student's t); no interval from a single seed.

    Seeds without a value are left out; ``why`` is said if none has one. The interval is cut to what is possible.
    """
    known = [value for value in values if value is not None]
    if not known:
        return missing(why)
    mean = math.fsum(known) / len(known)
    if len(known) == 1:
        return Figure(mean, None, None)
    half = float(stdtrit(len(known) - 1, 0.975)) * _error(known, mean)
    return Figure(mean, max(within[0], mean - half), min(within[1], mean + half))


def probability(differences: Sequence[float]) -> float | None:
    """Two-sided p of a one-sample t test that the mean difference is 0; None for fewer than two."""
    if len(differences) < 2:
        return None
    mean = math.fsum(differences) / len(differences)
    error = _error(differences, mean)
    if error == 0.0:
        return 1.0 if mean == 0.0 else 0.0
    return float(2 * stdtr(len(differences) - 1, -abs(mean / error)))


def pairs(values: Mapping[str, Mapping[int, float]], what: str) -> list[Json]:
    """Every two variants' paired difference over the seeds that both have, ``a`` − ``b``.

    Args:
        values: variant → seed → figure.

    Returns:
        ``what``, ``a``, ``b``, the difference with its interval, ``p`` and ``p_holm`` (among all pairs), and ``shown``:
        whether p_holm is below 0.05.
    """
    found: dict[str, Json] = {}
    for a, b in combinations(values, 2):
        seeds = sorted(values[a].keys() & values[b].keys())
        differences = [values[a][seed] - values[b][seed] for seed in seeds]
        figure = over(differences, "no seed has both").json()
        found[f"{a}\x1f{b}"] = {"what": what, "a": a, "b": b, **figure, "p": probability(differences)}
    adjusted = holm({name: row["p"] for name, row in found.items() if row["p"] is not None})
    for name, row in found.items():
        row["p_holm"] = adjusted.get(name)
        row["shown"] = name in adjusted and adjusted[name] < LEVEL
    return list(found.values())


def figure(row: Mapping[str, Any]) -> Figure:
    """A figure from its JSON."""
    return Figure(row["value"], row["low"], row["high"], row.get("bound", 0.0), row.get("why"))


def area(curve: Mapping[float, float]) -> float | None:
    """Mean height of a curve over the logarithm of the share, by trapezoids; None for fewer than two points.

    So it is in the metric's own unit: a curve that is flat at 0.8 gives 0.8.
    """
    shares = sorted(curve)
    if len(shares) < 2:
        return None
    steps = [(math.log(b) - math.log(a)) * (curve[a] + curve[b]) / 2 for a, b in pairwise(shares)]
    return math.fsum(steps) / (math.log(shares[-1]) - math.log(shares[0]))


def _error(values: Sequence[float], mean: float) -> float:
    """Standard error of the mean."""
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return math.sqrt(variance / len(values))
