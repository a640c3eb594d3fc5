"""Charts of a comparison: trade-offs with their front, label efficiency, blocks, shifts, and sites left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from polyclinic.core.statistics.figures import Figure
from polyclinic.server.report import svg, words
from polyclinic.server.report.svg import Scale
from polyclinic.simulations.compare.estimate import figure

Json = dict[str, Any]
SHAPES = ("circle", "square", "up", "diamond", "down")
COLOURS = 8
"""Marks differ in shape and colour; after eight the colours, after five the shapes come round again."""


def look(place: int) -> tuple[str, str]:
    """(shape, class) of the variant at a place."""
    return SHAPES[place % len(SHAPES)], f"v{place % COLOURS}"


@dataclass(frozen=True)
class Track:
    """A variant's points from left to right: where, and its figure there."""

    name: str
    points: tuple[tuple[float, Figure], ...]


@dataclass(frozen=True)
class Spot:
    """A variant's price and merit, each with its interval if it has one."""

    name: str
    price: Figure
    merit: Figure


def front(spots: Sequence[tuple[float, float]], more_is_better: bool) -> list[int]:
    """Places of those to which no other is both as cheap and better, or as good and cheaper; the cheapest first."""
    sign = 1.0 if more_is_better else -1.0
    kept: list[int] = []
    best = -math.inf
    for i in sorted(range(len(spots)), key=lambda i: (spots[i][0], -sign * spots[i][1], i)):
        if sign * spots[i][1] > best:
            kept.append(i)
            best = sign * spots[i][1]
    return kept


def pareto(title: str, spots: Sequence[Spot], *, more_is_better: bool, write: Callable[[float], str]) -> Markup:
    """Merit against price on a logarithmic axis, whiskers for intervals, a line through the front of the means."""
    shown = [
        (i, s)
        for i, s in enumerate(spots)
        if s.price.value is not None and s.price.value > 0 and s.merit.value is not None
    ]
    if not shown:
        return Markup("")
    merits = [limit for _, s in shown for limit in (s.merit.low, s.merit.value, s.merit.high) if limit is not None]
    prices = [math.log10(s.price.value or 1.0) for _, s in shown]
    low, high = min(prices), max(prices)
    air = max(0.15, 0.12 * (high - low))
    x, y = Scale(low - air, high + air, 44, 350), svg.fitted(merits, 206, 14)
    at = [(x(price), y(s.merit.value or 0.0)) for price, (_, s) in zip(prices, shown, strict=True)]
    pairs = [(s.price.value or 0.0, s.merit.value or 0.0) for _, s in shown]
    steps = [at[i] for i in front(pairs, more_is_better)]
    drawn = [svg.frame(x, y, (), y.ticks()), *_decades(x, y.start, write)]
    if len(steps) > 1:
        drawn.append(svg.path(_stairs(steps), "front"))
    for (place, spot), (across, up) in zip(shown, at, strict=True):
        shape, kind = look(place)
        if spot.merit.low is not None and spot.merit.high is not None:
            drawn.append(svg.line((across, y(spot.merit.low)), (across, y(spot.merit.high)), f"whisker {kind}"))
        said = f"{spot.name}: {words.ranged(spot.merit)} for {write(spot.price.value or 0.0)}"
        drawn.append(svg.mark(shape, across, up, 5, f"mark {kind}", said))
    drawn.append(_names([(spot.name, look(place)[1], point) for (place, spot), point in zip(shown, at, strict=True)]))
    told = "; ".join(f"{s.name}: {words.ranged(s.merit)} for {write(s.price.value or 0.0)}" for _, s in shown)
    return svg.picture(title, told, 360, 236, *drawn)


def limits_of(tracks: Sequence[Track]) -> list[float]:
    """Every value and limit: a scale that left out an interval would make little differences look large."""
    return [limit for t in tracks for _, f in t.points for limit in (f.low, f.value, f.high) if limit is not None]


def curves(
    title: str, tracks: Sequence[Track], ticks: Mapping[float, str], *, across: str = "", hold: Sequence[float] = ()
) -> Markup:
    """Lines of all variants with whiskers; ``ticks`` names places below, ``hold`` is what the axis must hold, too."""
    values = limits_of(tracks)
    if not values:
        return Markup("")
    within = _possible([*values, *hold])
    places = list(ticks)
    x, y = Scale(min(places), max(places) + 1e-9, 48, 340), svg.fitted([*values, *hold], 186, 12, within=within)
    drawn = [svg.frame(x, y, (), y.ticks())]
    drawn += [svg.text(x(place), 200, name, anchor="middle", class_="tick") for place, name in ticks.items()]
    if across:
        drawn.append(svg.text((x.start + x.end) / 2, 215, across, anchor="middle", class_="tick"))
    for i, track in enumerate(tracks):
        drawn.append(_curve(track, i, x, y, nudge=2.4 * (i - (len(tracks) - 1) / 2)))
    told = "; ".join(f"{t.name}: " + ", ".join(words.ranged(f) for _, f in t.points) for t in tracks)
    return svg.picture(title, told, 360, 220, *drawn)


def _curve(track: Track, place: int, x: Scale, y: Scale, nudge: float) -> Markup:
    """Line, whiskers and marks; moved a little sideways so that whiskers of several do not cover each other."""
    shape, kind = look(place)
    known = [(x(at) + nudge, one) for at, one in track.points if one.value is not None]
    drawn = [svg.path([(at, y(one.value or 0.0)) for at, one in known], f"line {kind}")] if len(known) > 1 else []
    for at, one in known:
        if one.low is not None and one.high is not None:
            drawn.append(svg.line((at, y(one.low)), (at, y(one.high)), f"whisker faint {kind}"))
    drawn += [
        svg.mark(shape, at, y(one.value or 0.0), 3.6, f"mark {kind}", f"{track.name}: {words.ranged(one)}")
        for at, one in known
    ]
    return Markup("").join(drawn)


def dots(title: str, rows: Sequence[tuple[str, Sequence[Figure]]], names: Sequence[str]) -> Markup:
    """A row a site, in it a mark with a whisker for every variant."""
    values = [limit for _, row in rows for one in row for limit in (one.low, one.value, one.high) if limit is not None]
    if not values:
        return Markup("")
    step = 14 * len(names) + 22
    x = svg.fitted(values, 24, 344, within=_possible(values))
    bottom = step * len(rows) + 8
    drawn = [svg.line((x(tick), 4), (x(tick), bottom), "grid") for tick in x.ticks(5)]
    drawn += [svg.text(x(tick), bottom + 13, svg.label(tick), anchor="middle", class_="tick") for tick in x.ticks(5)]
    for i, (site, row) in enumerate(rows):
        drawn.append(svg.text(8, step * i + 16, words.short(site, 40), class_="label strong"))
        for j, one in enumerate(row):
            if one.value is None:
                continue
            up, (shape, kind) = step * i + 29 + 14 * j, look(j)
            if one.low is not None and one.high is not None:
                drawn.append(svg.line((x(one.low), up), (x(one.high), up), f"whisker {kind}"))
            drawn.append(svg.mark(shape, x(one.value), up, 4, f"mark {kind}", f"{names[j]}: {words.ranged(one)}"))
    told = "; ".join(
        f"{site}: " + ", ".join(f"{name} {words.ranged(one)}" for name, one in zip(names, row, strict=True))
        for site, row in rows
    )
    return svg.picture(title, told, 360, bottom + 20, *drawn)


def tracks(document: Json, pick: Callable[[Json], Sequence[tuple[float, Json]]]) -> list[Track]:
    """A track for every variant."""
    return [Track(row["name"], tuple((at, figure(one)) for at, one in pick(row))) for row in document["variants"]]


def _possible(values: Sequence[float]) -> tuple[float, float]:
    """Limits of a scale: shares need none beyond 0 and 1."""
    return (0.0, 1.0) if all(0.0 <= value <= 1.0 for value in values) else (-math.inf, math.inf)


def _decades(x: Scale, base: float, write: Callable[[float], str]) -> list[Markup]:
    """Ticks at powers of ten, or at 1, 2 and 5 times them where there are few."""
    low, high = math.floor(x.low), math.ceil(x.high)
    digits = (1, 2, 5) if x.high - x.low < 1.6 else (1,)
    ticks = [math.log10(digit) + power for power in range(low, high + 1) for digit in digits]
    if len(inside := [tick for tick in ticks if x.low <= tick <= x.high]) > 6:
        inside = inside[:: math.ceil(len(inside) / 6)]
    return [
        mark
        for tick in inside
        for mark in (
            svg.line((x(tick), 14), (x(tick), base), "grid"),
            svg.text(x(tick), base + 13, write(10**tick), anchor="middle", class_="tick"),
        )
    ]


def _stairs(steps: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Level to the next price, then up to its merit."""
    points = [steps[0]]
    for before, after in pairwise(steps):
        points += [(after[0], before[1]), after]
    return points


def _names(rows: Sequence[tuple[str, str, tuple[float, float]]]) -> Markup:
    """Names beside their marks, moved apart where they would touch."""
    places = svg.spread([point[1] for _, _, point in rows], 12, 18, 204)
    drawn = []
    for (name, kind, (across, _)), up in zip(rows, places, strict=True):
        left = across + 9 + svg.extent(name, 11) > 356
        drawn.append(
            svg.text(
                across - 9 if left else across + 9,
                up - 5,
                words.short(name, 24),
                anchor="end" if left else "start",
                class_=f"name label {kind}",
            )
        )
    return Markup("").join(drawn)
