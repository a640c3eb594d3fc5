"""The parts of a report, each from evidence alone: what its templates show. The live page shows the same parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from polyclinic.core.privacy.central import COVERS
from polyclinic.core.statistics.figures import Bin, Figure
from polyclinic.core.statistics.metrics import Metric
from polyclinic.server.report import compare, data, tables, words
from polyclinic.server.report.charts import rounds
from polyclinic.server.report.charts.distance import Distance, distances
from polyclinic.server.report.charts.forest import Row, forest
from polyclinic.server.report.charts.reliability import reliability
from polyclinic.server.report.charts.shift import LOOK, places, shift_map
from polyclinic.server.report.charts.traffic import Load, traffic
from polyclinic.server.report.data import NOT_TOLD, SPLITS, Evidence, Model, known, pick
from polyclinic.server.report.findings import findings

AT_ONCE = 12
"""Panels shown at once; those of more sites can be unfolded."""


LEVEL_MARKS = {
    "good": ("up", "better", "good"),
    "bad": ("down", "worse", "attention"),
    "open": ("circle", "open", "not shown"),
    "unknown": ("diamond", "unknown", "unknown"),
    "note": ("square", "pooled", "noted"),
}
"""Shape, colour and word for each level of a finding."""
CALIBRATION = (
    "Across: the probability that the model gives to “yes”; up: how often the answer is yes.",
    "Across: how sure the model is of the likeliest class; up: how often it is right.",
)
"""Axes of a reliability diagram: of yes-or-no answers, and of one among several classes."""
BASELINES: tuple[Model, ...] = ("alone", "central")


@dataclass(frozen=True)
class Panel:
    """A small chart under its name, or why there is none; with what it says in a line."""

    name: str
    chart: Markup
    note: str


def sections(evidence: Evidence) -> dict[str, Any]:
    """All that the templates under ``sections/`` need."""
    return {
        "evidence": evidence,
        "split": SPLITS[evidence.split],
        "description": evidence.study.get("study", {}).get("description", ""),
        "findings": findings(evidence),
        "tiles": tiles(evidence),
        **history(evidence),
        "sites": tables.sites(evidence),
        "privacy": tables.privacy(evidence),
        "central": tables.central(evidence),
        "central_covers": COVERS,
        "reliability": reliability_panels(evidence),
        **shift(evidence),
        "forests": forests(evidence),
        "compared": tables.compared(evidence),
        "traffic": traffic(loads(evidence)),
        "travelled": tables.travelled(evidence),
        "settings": tables.settings(evidence.study),
        "calibration_hint": evidence.judged.axes or CALIBRATION[evidence.kind == "multiclass"],
        "level_marks": LEVEL_MARKS,
        "at_once": AT_ONCE,
    }


def tiles(evidence: Evidence) -> list[tuple[str, str, str]]:
    """(what, figure, small print) of the five figures at the very top."""
    metric, split, facts = evidence.metric, evidence.split, evidence.facts
    merit, error = pick(evidence.pooled.get(split), metric.key), pick(evidence.pooled.get(split), "ece")
    images = sum(site.sizes[split][0] for site in evidence.sites if split in site.sizes)
    up, down = facts["bytes_up"], facts["bytes_down"]
    judged = f"{words.counted(images, f'{SPLITS[split]} image')}, {words.counted(facts['rounds'], 'round')}"
    told = sum(known(site.federated.get(split, {})) for site in evidence.sites)
    among = "all told" if told == len(evidence.sites) else "the others told none"
    so_far = ("Sites with figures", f"{told} of {len(evidence.sites)}", among)
    return [
        tile(f"{metric.name}, pooled", merit),
        worst_tile(evidence),
        tile("Calibration error, pooled", error, "no interval" if evidence.finished else "interval comes at the end"),
        ("Sites", str(len(evidence.sites)), judged) if evidence.finished else so_far,
        ("Travelled", words.size(up + down), f"{words.size(up)} from the sites, {words.size(down)} to them"),
    ]


def worst_tile(evidence: Evidence) -> tuple[str, str, str]:
    """The site that is worst off."""
    metric = evidence.metric
    name, figure = compare.worst(evidence)
    value = "–" if figure.value is None else words.number(figure.value)
    return f"{metric.name}, worst site", value, name or str(figure.why)


def tile(what: str, figure: Figure, bare: str = "no interval") -> tuple[str, str, str]:
    """A figure and its interval, or why there is none; ``bare`` is said where a figure has no interval."""
    if figure.value is None:
        return what, "–", str(figure.why)
    if figure.low is None or figure.high is None:
        return what, words.number(figure.value), bare
    return what, words.number(figure.value), f"95 % interval {words.number(figure.low)} to {words.number(figure.high)}"


def history(evidence: Evidence) -> dict[str, Any]:
    """Charts and tables round by round, all on validation images."""
    kind = evidence.judged
    metric = data.leading(kind, (site.federated.get("val", {}) for site in evidence.sites))
    chosen = [metric, *(m for m in kind.metrics if m.key in ("nll", "ece") and m.key != metric.key)]
    drawn = [(m, rounds.overview(m, rounds.pooled(evidence, m), rounds.arrived(evidence, m))) for m in chosen]
    arrived, own = rounds.arrived(evidence, metric), rounds.own(evidence, metric)
    limits = rounds.shared(metric, [*arrived, *own])
    panels = [site_panel(metric, a, b, limits) for a, b in zip(arrived, own, strict=True)]
    worst_last = [track.name for track in rounds.ranked(metric, arrived)]
    if len(panels) > AT_ONCE:  # those worst off first, those without a figure last
        panels.sort(key=lambda panel: -worst_last.index(panel.name) if panel.name in worst_last else 1)
    return {
        "history": [(m, chart) for m, chart in drawn if chart],
        "history_metric": metric,
        "panels_by_site": panels,
        "trajectories": [
            tables.trajectory(metric, [rounds.pooled(evidence, metric), *arrived], "global model on arrival"),
            tables.trajectory(metric, own, "own model after local training"),
        ],
    }


def site_panel(metric: Metric, arrived: rounds.Track, own: rounds.Track, limits: tuple[float, float]) -> Panel:
    """One site round by round."""
    reasons = [figure.why for _, figure in arrived.points if figure.why != NOT_TOLD] or [NOT_TOLD]
    note = "" if arrived.last or not arrived.points else f"No {metric.inline}: {reasons[-1]}."
    return Panel(arrived.name, rounds.panel(metric, arrived, own, limits), note)


def reliability_panels(evidence: Evidence) -> list[Panel]:
    """A diagram for all sites together, then one a site; of many sites those with the greatest error first."""
    split = evidence.split
    pooled = pick(evidence.pooled.get(split), "ece")
    bins = evidence.pooled_bins.get(split, ())
    everybody = sum(site.sizes[split][1] for site in evidence.sites if site.bins.get(split) and split in site.sizes)
    drawn = reliability("all sites", bins, witnesses(bins, everybody) if evidence.finished else None)
    first = Panel("All sites together", drawn, error(pooled))
    rows = []
    for site in evidence.sites:
        figure, bins = site.figure("federated", split, "ece"), site.bins.get(split, ())
        _, patients = site.sizes.get(split, (1, 1))
        chart = reliability(site.name, bins, witnesses(bins, patients) if evidence.finished else None)
        leaning = f"; {compare.leaning(bins, evidence.kind)}" if bins and compare.miscalibrated(figure) else ""
        rows.append((figure.value, Panel(site.name, chart, error(figure) + leaning)))
    if len(rows) > AT_ONCE:
        rows.sort(key=lambda row: -1 if row[0] is None else row[0], reverse=True)
    return [first, *(panel for _, panel in rows)]


def witnesses(bins: Sequence[Bin], most: int) -> float:
    """What one answer counts where all together have ``most`` witnesses: an image may have many answers, or none."""
    return min(1.0, most / max(1, sum(b.size for b in bins)))


def error(figure: Figure) -> str:
    """The calibration error, or why there is none."""
    return f"ECE {words.ranged(figure)}" if figure.value is not None else f"Not shown: {figure.why}"


def shift(evidence: Evidence) -> dict[str, Any]:
    """The map and its table."""
    known = {s.name: s.shift.psi for s in evidence.sites if s.shift.psi is not None}
    readings = {name: compare.stability(psi) for name, psi in known.items()}
    spots = places(evidence.places, readings)
    drawn = shift_map(spots)
    far = [Distance(s.name, s.shift.mmd2, readings.get(s.name, "")) for s in evidence.sites if s.shift.mmd2 is not None]
    used = {one.reading for one in (spots if drawn else far)}
    legend = [(*LOOK[r], False, text) for r, text in READINGS.items() if r in used]
    return {
        "map": drawn,
        "distances": "" if drawn else distances(far),
        "map_legend": legend,
        "shifts": tables.shifts(evidence),
    }


READINGS = {
    "little": "little brightness shift (PSI < 0.1)",
    "some": "some brightness shift (0.1 to 0.25)",
    "marked": "marked brightness shift (> 0.25)",
    "": "brightness shift not known",
}


def forests(evidence: Evidence) -> list[tuple[str, Markup, str]]:
    """(title, chart, who is missing) of federated against alone and against central."""
    metric = evidence.metric
    drawn = []
    for other in BASELINES:
        found = compare.against(evidence, other)
        rows = [Row(name, figure, compare.verdict(figure, metric)) for name, figure in found.items()]
        if len(rows) > AT_ONCE:
            rows.sort(key=lambda row: -(row.figure.value or 0.0))
        mean = compare.mean([row.figure for row in rows])
        sides = (f"{other} better", "federated better")
        sides = sides if metric.more_is_better else (sides[1], sides[0])
        title = f"{metric.name}: federated − {other}"
        last = Row("Mean over sites", mean, compare.verdict(mean, metric))
        missing = [f"{row.name} ({row.figure.why})" for row in rows if row.figure.value is None]
        drawn.append((title, forest(title, rows, last, sides), words.listing(missing)))
    return [row for row in drawn if row[1]]


def loads(evidence: Evidence) -> list[Load]:
    """Bytes by round, and of the last evaluation."""
    last = tables.last_evaluation(evidence)
    each = [Load(str(r.number), r.up, r.down) for r in evidence.rounds]
    return [*each, Load("last", *last)] if evidence.finished and any(last) else each
