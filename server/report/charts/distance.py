"""How far each site's images lie from all others': for when there is no map of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from polyclinic.server.report import svg, words
from polyclinic.server.report.charts.shift import LOOK
from polyclinic.server.report.svg import Scale

ROOMY = 12
"""Rows up to which there is room between them."""
AXIS = "MMD² from all others’ images"


@dataclass(frozen=True)
class Distance:
    """A site's squared MMD, which may be slightly negative, and the reading of its brightness ("" if not known)."""

    name: str
    value: float
    reading: str


def distances(sites: Sequence[Distance]) -> Markup:
    """A row a site, the furthest above; shape and colour as on the map."""
    if not sites:
        return Markup("")
    rows = sorted(sites, key=lambda site: (-site.value, site.name))
    step = 24 if len(rows) <= ROOMY else 15
    bottom = 10 + step * len(rows)
    values = [site.value for site in rows]
    low, high = min(0.0, *values), max(0.001, *values)
    x = Scale(low, high + 0.04 * (high - low), 132, 344)
    ticks = x.ticks(4)
    axis = [
        *(svg.line((x(tick), 6), (x(tick), bottom), "grid") for tick in ticks),
        svg.line((x(0), 6), (x(0), bottom), "zero"),
        *(svg.text(x(tick), bottom + 14, svg.label(tick), anchor="middle", class_="tick") for tick in ticks),
        svg.text(238, bottom + 30, AXIS, anchor="middle", class_="tick"),
    ]
    body = [drawn(site, x, 10 + step * (i + 0.5)) for i, site in enumerate(rows)]
    said = "; ".join(f"{s.name}: {words.number(s.value)}, brightness {s.reading or 'shift unknown'}" for s in rows)
    return svg.picture("How far each site’s images lie from all others’", said, 360, bottom + 36, *axis, *body)


def drawn(site: Distance, x: Scale, y: float) -> Markup:
    """Name, stem and mark of a site."""
    shape, kind = LOOK[site.reading]
    name = svg.text(122, y + 3.5, words.short(site.name, 18), anchor="end")
    stem = svg.line((x(0), y), (x(site.value), y), f"whisker {kind}")
    return name + stem + svg.mark(shape, x(site.value), y, 5, f"mark {kind}", f"{site.name}: {site.value:.3f}")
