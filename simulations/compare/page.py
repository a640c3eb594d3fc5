"""compare.html: one file that needs no network, from compare.json alone, in the style of a run's report."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from jinja2 import PackageLoader
from markupsafe import Markup

from polyclinic.core.statistics.figures import Figure
from polyclinic.server.report import page, words
from polyclinic.server.report.sections import LEVEL_MARKS
from polyclinic.simulations.compare import charts, matrix
from polyclinic.simulations.compare.burden import PARTS, PROPERTIES
from polyclinic.simulations.compare.charts import Spot
from polyclinic.simulations.compare.depth import POOLED
from polyclinic.simulations.compare.estimate import figure

Json = dict[str, Any]
Chart = tuple[str, str, Markup]
"""Title, small print, picture."""


def render(document: Json) -> str:
    """The page."""
    names = [row["name"] for row in document["variants"]]
    seeds = document["seeds"]
    return (
        page.environment(PackageLoader("polyclinic.simulations.compare"))
        .get_template("compare.html")
        .render(
            it=document,
            legend=[(*charts.look(i), True, name) for i, name in enumerate(names)],
            level_marks=LEVEL_MARKS,
            groups=matrix.groups(document),
            trade_offs=trade_offs(document),
            depth=depth(document),
            labels=labels(document),
            unseen=unseen(document),
            shifts=shifts(document),
            burden=burden(document),
            basis=basis(document),
            once=len(seeds) == 1,
            failed=[f"{c['variant']}, seed {c['seed']}: {c['why']}" for c in document["cells"] if c["why"]],
        )
    )


def basis(document: Json) -> str:
    """On what the figures rest, in a sentence."""
    seeds, sites = len(document["seeds"]), words.counted(len(document["sites"]), "site")
    trained = words.counted(len(document["cells"]), "training")
    return (
        f"{words.counted(len(document['variants']), 'method')}, {words.counted(seeds, 'seed')}, "
        f"{words.counted(document['rounds'], 'round')}, {trained}; judged by {document['metric']['name']} on test "
        f"images of {sites}."
    )


def trade_offs(document: Json) -> list[Chart]:
    """Merit against bytes, seconds and the share that trains."""
    metric = document["metric"]
    prices: list[tuple[str, str, Callable[[Json], Figure], Callable[[float], str]]] = [
        ("cost", "bytes that a site sends a round", lambda row: figure(row["cost"]["bytes_up"]), _bytes),
        ("cost", "seconds of a training step", lambda row: figure(row["cost"]["step_seconds"]), _seconds),
        ("depth", "share of the numbers that train", lambda row: Figure(row["depth"]["share"], None, None), _share),
    ]
    drawn = []
    for axis, what, price, write in prices:
        spots = [Spot(row["name"], price(row), figure(row["merit"])) for row in document["variants"] if row[axis]]
        title = f"{metric['name']} against {what}"
        picture = charts.pareto(title, spots, more_is_better=metric["more_is_better"], write=write)
        drawn.append((title, "", picture))
    return [chart for chart in drawn if chart[2]]


def depth(document: Json) -> list[Chart]:
    """CKA with the frozen backbone, block by block."""
    rows = [row["depth"] for row in document["variants"] if row["depth"]]
    if not rows or not rows[0]["cka"]:
        return []
    names = list(rows[0]["cka"])
    every = max(1, math.ceil(len(names) / 12))
    ticks = {
        float(i): "pooled" if name == POOLED else str(i + 1) if i % every == 0 else "" for i, name in enumerate(names)
    }
    drawn = charts.curves(
        "Likeness to the frozen backbone by block",
        charts.tracks(
            document,
            lambda row: [(float(i), row["depth"]["cka"][n]) for i, n in enumerate(names)] if row["depth"] else [],
        ),
        ticks,
        across="block",
    )
    return [("Likeness to the frozen backbone", "linear CKA: 1 is unchanged", drawn)]


def labels(document: Json) -> list[Chart]:
    """Merit against the share of labelled patients."""
    rows = [row["labels"] for row in document["variants"] if row["labels"]]
    if not rows:
        return []
    ticks = {math.log(point["share"]): f"{point['share']:.0%}" for point in rows[0]["curve"]}
    drawn = charts.curves(
        "Label efficiency",
        charts.tracks(document, lambda row: [(math.log(p["share"]), p) for p in row["labels"]["curve"]]),
        ticks,
        across="labelled patients, logarithmic",
    )
    return [(f"{document['metric']['name']} by labelled patients", "mean over sites, 95 % intervals over seeds", drawn)]


def unseen(document: Json) -> list[Chart]:
    """Sites seen, and left out."""
    names = [row["name"] for row in document["variants"]]
    if "robustness" not in document["axes"]:
        return []

    def rows(pick: Callable[[Json, str], Json]) -> list[tuple[str, list[Figure]]]:
        return [(site, [figure(pick(row, site)) for row in document["variants"]]) for site in document["sites"]]

    return [
        (
            "Left out of training",
            "judged at the site that was left out",
            charts.dots("Left out", rows(_left_out), names),
        ),
        ("Taking part", "judged at each site, all of them trained", charts.dots("Taking part", rows(_seen), names)),
    ]


def shifts(document: Json) -> list[Chart]:
    """Merit and calibration error by kind and size of shift, each on one scale; size 0 is as taken."""
    if "robustness" not in document["axes"]:
        return []
    drawn = []
    for key, title in (("merit", document["metric"]["name"]), ("calibration", "Calibration error")):
        lines = {name: charts.tracks(document, partial(_under, name=name, key=key)) for name in document["shifts"]}
        hold = [limit for tracks in lines.values() for limit in charts.limits_of(tracks)]
        for name, kind in document["shifts"].items():
            ticks = {0.0: "none"} | {float(i + 1): f"{size:g}" for i, size in enumerate(kind["sizes"])}
            picture = charts.curves(f"{title} under {name}", lines[name], ticks, across=kind["unit"], hold=hold)
            drawn.append((f"{title}: {name}", "", picture))
    return [chart for chart in drawn if chart[2]]


def _under(row: Json, name: str, key: str) -> list[tuple[float, Json]]:
    """A variant's figures under a shift, from none of it to the strongest."""
    if not row["robustness"]:
        return []
    sizes = row["robustness"]["shifts"][name]
    return [(0.0, row[key]), *((float(i + 1), one[key]) for i, one in enumerate(sizes))]


def burden(document: Json) -> list[tuple[str, str, list[str], list[tuple[str, str]]]]:
    """(property, what it means, who has it, [(part, what must be answered)]) of every property that any method has."""
    found = []
    for name, meaning in PROPERTIES.items():
        having = [row for row in document["variants"] if row["burden"] and row["burden"]["properties"][name]]
        if having:
            points = [p for p in having[0]["burden"]["points"] if p["property"] == name]
            pairs = [(part, p["reason"]) for part in PARTS for p in points if p["part"] == part]
            found.append((name, meaning, [row["name"] for row in having], pairs))
    return found


def _left_out(row: Json, site: str) -> Json:
    found: Json = row["robustness"]["unseen_sites"][site]
    return found


def _seen(row: Json, site: str) -> Json:
    found: Json = row["sites"][site]
    return found


def _bytes(count: float) -> str:
    return words.size(count).replace(".0 ", " ")


def _seconds(value: float) -> str:
    return f"{value * 1e3:g} ms" if value < 1 else f"{value:g} s"


def _share(value: float) -> str:
    return f"{100 * value:.2g} %"
