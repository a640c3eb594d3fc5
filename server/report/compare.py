"""What may be concluded from figures: differences, Holm's correction, and which way a site is miscalibrated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from polyclinic.core.statistics import intervals
from polyclinic.core.statistics.figures import Bin, Figure, difference, missing
from polyclinic.core.statistics.metrics import Metric
from polyclinic.server.report.data import Evidence, Model

Verdict = Literal["better", "worse", "open", "unknown"]
PSI_SOME, PSI_MARKED = 0.1, 0.25
"""Customary limits of the population stability index, from credit scoring."""
LEVEL = 0.05


def apart(a: Figure, b: Figure) -> Figure:
    """``a`` - ``b``; its interval is widened by what binning may have moved either figure."""
    found = difference(a, b)
    if found.value is None or found.low is None or found.high is None:
        return found
    return Figure(found.value, found.low - found.bound, found.high + found.bound)


def mean(figures: Sequence[Figure]) -> Figure:
    """Unweighted mean of independent figures that have intervals; MOVER gives its own."""
    rows = [(f.value, (f.low, f.high)) for f in figures if f.value is not None]
    limits = [(low, high) for _, (low, high) in rows if low is not None and high is not None]
    if not rows:
        return missing("no site can be compared")
    values = [value for value, _ in rows]
    value = sum(values) / len(values)
    if len(limits) < len(rows):
        return Figure(value, None, None)
    low, high = intervals.average(values, limits)
    return Figure(value, min(value, low), max(value, high))


def against(evidence: Evidence, other: Model) -> dict[str, Figure]:
    """Site → the federated model's figure less the other model's there, on the images that judge."""
    key, split = evidence.metric.key, evidence.split
    return {
        site.name: apart(site.figure("federated", split, key), site.figure(other, split, key))
        for site in evidence.sites
        if (site.alone if other == "alone" else site.central)
    }


def judged(evidence: Evidence) -> dict[str, Figure]:
    """Site → the figure by which sites are compared."""
    return {site.name: site.figure("federated", evidence.split, evidence.metric.key) for site in evidence.sites}


def worst(evidence: Evidence) -> tuple[str, Figure]:
    """The site worst off and its figure; no name where nobody has one."""
    found = judged(evidence)
    values = {name: figure.value for name, figure in found.items() if figure.value is not None}
    if not values:
        return "", missing("no site has this figure")
    name = (min if evidence.metric.more_is_better else max)(sorted(values), key=values.__getitem__)
    return name, found[name]


def miscalibrated(ece: Figure) -> bool:
    """Whether chance alone does not explain a calibration error."""
    return ece.low is not None and ece.low > 0.0


def verdict(figure: Figure, metric: Metric) -> Verdict:
    """What a difference shows; "open" where its interval includes 0."""
    if figure.value is None:
        return "unknown"
    if figure.low is None or figure.high is None or figure.low <= 0 <= figure.high:
        return "open"
    return "better" if (figure.value > 0) == metric.more_is_better else "worse"


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values adjusted for how many there are (Holm 1979, Scand J Stat 6:65-70)."""
    adjusted: dict[str, float] = {}
    highest = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda key: (p_values[key], key))):
        highest = max(highest, min(1.0, p_values[name] * (len(p_values) - rank)))
        adjusted[name] = highest
    return adjusted


def stability(psi: float) -> str:
    """Reading of a population stability index."""
    return "little" if psi < PSI_SOME else "some" if psi <= PSI_MARKED else "marked"


def centre(bins: Sequence[Bin]) -> tuple[float, float]:
    """(mean confidence, mean frequency) over all images in the bins."""
    total = sum(b.size for b in bins)
    return sum(b.size * b.confidence for b in bins) / total, sum(b.size * b.frequency for b in bins) / total


def folded(bins: Sequence[Bin]) -> list[Bin]:
    """Bins of yes-or-no answers as confidence in the likelier one, and how often that one was right."""
    return [b if b.confidence >= 0.5 else Bin(b.low, b.high, b.size, 1 - b.confidence, 1 - b.frequency) for b in bins]


def leaning(bins: Sequence[Bin], kind: str) -> str:
    """Which way the bins lie off the diagonal, in half a sentence with its figures.

    For a yes-or-no task probabilities may be too high or too low on the whole, or else too extreme or too timid; that
    is said which makes up most of the error. Of several classes, confidence in the likeliest is what is judged.
    """
    said, found = centre(bins)
    if kind == "multiclass":
        name = "over-confident" if said > found else "under-confident"
        return f"{name} (mean confidence {said:.2f}, right {found:.2f})"
    sure, right = centre(folded(bins))
    if abs(said - found) >= abs(sure - right):
        name = "probabilities too high" if said > found else "probabilities too low"
        return f"{name} (mean {said:.2f}, observed {found:.2f})"
    name = "over-confident" if sure > right else "under-confident"
    return f"{name} (mean confidence {sure:.2f}, right {right:.2f})"
