"""A reliability diagram: how often the model is right against how sure it is."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

from markupsafe import Markup

from polyclinic.core.statistics import intervals
from polyclinic.core.statistics.figures import Bin
from polyclinic.server.report import svg
from polyclinic.server.report.svg import Scale

TICKS = (0.0, 0.5, 1.0)


def reliability(name: str, bins: Sequence[Bin], witnesses: float | None = 1.0) -> Markup:
    """Dots as large as their bins are full, with 95 % intervals, on the diagonal of perfect calibration.

    Args:
        name: of the site.
        bins: those that hold anything.
        witnesses: patients per answer, for intervals count patients; without it (None) there are none.
    """
    if not bins:
        return Markup("")
    x, y = Scale(0, 1, 30, 172), Scale(0, 1, 150, 8)
    most = max(b.size for b in bins)
    bars = Scale(0, most, 196, 174)
    drawn = [svg.frame(x, y, TICKS, TICKS), svg.line((x(0), y(0)), (x(1), y(1)), "ideal")]
    for b in bins:
        if witnesses is None:
            break
        low, high = intervals.wilson(b.frequency, b.size * witnesses)
        drawn.append(svg.line((x(b.confidence), y(low)), (x(b.confidence), y(high)), "whisker thin"))
    for b in bins:
        said = f"{b.size} answers, {b.confidence:.2f} sure, {b.frequency:.2f} right"
        drawn.append(svg.mark("circle", x(b.confidence), y(b.frequency), dot(b.size, most), "mark pooled", said))
        drawn.append(bar(x(b.low), x(max(b.high, b.low)), bars(b.size), bars.start))
    described = "; ".join(f"{b.confidence:.2f} sure, {b.frequency:.2f} right ({b.size})" for b in bins)
    return svg.picture(f"Reliability at {name}", described, 180, 200, *drawn)


def dot(size: int, most: int) -> float:
    """Radius of a dot, its area by how full the bin is, never too small to see."""
    return max(2.6, 5.0 * sqrt(size / most))


def bar(left: float, right: float, top: float, bottom: float) -> Markup:
    """A bar of the histogram below; the bin of exactly 1 has no width and gets a thin one."""
    width = max(1.5, right - left - 0.8)
    return svg.element("rect", x=min(left, 172 - width), y=top, width=width, height=bottom - top, class_="bar")
