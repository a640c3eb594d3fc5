"""A forest plot: a difference with its interval for every site, and their mean."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from polyclinic.core.statistics.figures import Figure
from polyclinic.server.report import svg, words
from polyclinic.server.report.compare import Verdict
from polyclinic.server.report.svg import Scale

SHAPES: dict[Verdict, str] = {"better": "up", "worse": "down", "open": "circle", "unknown": "circle"}
ROOMY = 12
"""Rows up to which every name and figure is written out; more are drawn closely and the table tells the rest."""


@dataclass(frozen=True)
class Row:
    """A site's difference and what it shows."""

    name: str
    figure: Figure
    verdict: Verdict


def forest(title: str, rows: Sequence[Row], mean: Row, sides: tuple[str, str]) -> Markup:
    """Rows from above to below, the mean as a diamond beneath; ``sides`` says what left and right of 0 mean."""
    shown = [row for row in rows if row.figure.value is not None]
    if not shown:
        return Markup("")
    close = len(shown) > ROOMY
    step, left, top = (15, 132, 26) if close else (34, 24, 26)
    bottom = top + step * len(shown) + 40
    x = around_zero([row.figure for row in (*shown, mean)], left, 336)
    body = [row_of(row, x, top + step * i, close) for i, row in enumerate(shown)]
    axis = [
        svg.text(x(0) - 8, 13, f"◂ {sides[0]}", anchor="end", class_="tick"),
        svg.text(x(0) + 8, 13, f"{sides[1]} ▸", class_="tick"),
        *(svg.line((x(tick), 20), (x(tick), bottom), "grid") for tick in x.ticks(5)),
        svg.line((x(0), 18), (x(0), bottom), "zero"),
        *(svg.text(x(tick), bottom + 14, label(tick), anchor="middle", class_="tick") for tick in x.ticks(5)),
    ]
    said = "; ".join(f"{row.name}: {words.ranged(row.figure, sign=True)}" for row in (*shown, mean))
    return svg.picture(title, said, 360, bottom + 20, *axis, *body, mean_of(mean, x, bottom - 36))


def around_zero(figures: Sequence[Figure], start: float, end: float) -> Scale:
    """A scale that holds 0 and every interval."""
    limits = [limit for f in figures for limit in (f.low, f.value, f.high) if limit is not None]
    low, high = min(0.0, *limits), max(0.0, *limits)
    air = max(0.01, 0.08 * (high - low))
    return Scale(low - air, high + air, start, end)


def row_of(row: Row, x: Scale, top: float, close: bool) -> Markup:
    """Name, interval and mark of a site; the figure in words where there is room."""
    figure = words.ranged(row.figure, sign=True)
    if close:
        name = svg.text(112, top + 11, words.short(row.name, 19), anchor="end", class_="label small")
        return name + interval(row, x, top + 7.5, f"{row.name}: {figure}")
    head = svg.text(8, top + 13, words.short(row.name, 26)) + svg.text(352, top + 13, figure, anchor="end")
    return head + interval(row, x, top + 24, f"{row.name}: {figure}")


def interval(row: Row, x: Scale, y: float, title: str) -> Markup:
    """A whisker and a mark whose shape and colour say what is shown."""
    figure = row.figure
    whisker = Markup("")
    if figure.low is not None and figure.high is not None:
        whisker = svg.line((x(figure.low), y), (x(figure.high), y), f"whisker {row.verdict}")
    return whisker + svg.mark(SHAPES[row.verdict], x(figure.value or 0.0), y, 4.5, f"mark {row.verdict}", title)


def mean_of(mean: Row, x: Scale, top: float) -> Markup:
    """The mean over sites: a diamond as wide as its interval."""
    figure = mean.figure
    value = figure.value or 0.0
    low = value if figure.low is None else figure.low
    high = value if figure.high is None else figure.high
    y = top + 26
    points = [(x(low), y), (x(value), y - 6), (x(high), y), (x(value), y + 6)]
    head = svg.text(8, top + 13, mean.name, class_="label strong")
    words_ = svg.text(352, top + 13, words.ranged(figure, sign=True), anchor="end", class_="label strong")
    return head + words_ + svg.path(points, f"mean {mean.verdict}", closed=True)


def label(tick: float) -> str:
    """A tick with its sign."""
    return f"+{svg.label(tick)}" if tick > 0 else svg.label(tick)
