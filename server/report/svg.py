"""Small functions that draw SVG: scales, axes, lines, bands and marks. Colours are the page's business (classes)."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

Point = tuple[float, float]
SHAPES: dict[str, tuple[Point, ...]] = {
    "square": ((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    "up": ((0.0, -1.2), (1.1, 0.8), (-1.1, 0.8)),
    "down": ((0.0, 1.2), (1.1, -0.8), (-1.1, -0.8)),
    "diamond": ((0.0, -1.3), (1.3, 0.0), (0.0, 1.3), (-1.3, 0.0)),
}


@dataclass(frozen=True)
class Scale:
    """A linear scale from [low, high] to [start, end]; what lies beyond is drawn at the edge."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Where ``value`` is drawn."""
        part = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return self.start + part * (self.end - self.start)

    def ticks(self, wanted: int = 4) -> tuple[float, ...]:
        """Round numbers within the scale, about as many as ``wanted``."""
        step = round_step((self.high - self.low) / wanted)
        first = math.ceil(self.low / step - 1e-9)
        return tuple(step * i for i in range(first, math.floor(self.high / step + 1e-9) + 1))


def round_step(rough: float) -> float:
    """The nearest of 1, 2 and 5 times a power of ten that is not below ``rough``."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * digit for digit in (1, 2, 5, 10) if power * digit >= rough * (1 - 1e-9))


def fitted(values: Sequence[float], start: float, end: float, *, within: Point = (-math.inf, math.inf)) -> Scale:
    """A scale with round limits around ``values``, kept ``within`` limits that they cannot pass."""
    low, high = min(values), max(values)
    step = round_step(max(high - low, 0.02) / 4)
    bottom = max(within[0], step * math.floor(low / step - 0.25))
    return Scale(bottom, min(within[1], step * math.ceil(high / step + 0.25)), start, end)


def label(value: float) -> str:
    """A tick's label: as few digits as tell it."""
    return f"{value:.6g}".replace("-", "\N{MINUS SIGN}") if value else "0"


def element(tag: str, *children: str, **attributes: str | float) -> Markup:
    """An element; text is escaped, ``class_`` and ``stroke_width`` are written class and stroke-width."""
    written = [
        Markup(' {}="{}"').format(name if name == "viewBox" else name.strip("_").replace("_", "-"), _value(value))
        for name, value in attributes.items()
    ]
    start = Markup("<") + tag + Markup("").join(written)
    if not children:
        return start + Markup("/>")
    return start + Markup(">") + Markup("").join(children) + Markup("</{}>").format(tag)


def _value(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")


def picture(title: str, description: str, width: float, height: float, *children: str) -> Markup:
    """A whole picture, read out by its title and description, that scales to the width it is given."""
    return element(
        "svg",
        element("title", title),
        element("desc", description),
        *children,
        xmlns="http://www.w3.org/2000/svg",
        role="img",
        viewBox=f"0 0 {width:g} {height:g}",
    )


def key(shape: str, class_: str, *, lined: bool = False) -> Markup:
    """A legend's key: a mark, on a piece of line where there is one."""
    piece = line((1, 7), (27, 7), f"line {class_}") if lined else Markup("")
    drawn = piece + mark(shape, 14, 7, 4.2, f"mark {class_}") if shape else piece
    kind, box = ("key", "0 0 28 14") if lined else ("key dot", "7 0 14 14")
    return element("svg", drawn, class_=kind, aria_hidden="true", viewBox=box)


def text(x: float, y: float, content: str, *, anchor: str = "start", class_: str = "label") -> Markup:
    """A line of text whose baseline is at ``y``."""
    return element("text", content or " ", x=x, y=y, text_anchor=anchor, class_=class_)


def line(a: Point, b: Point, class_: str) -> Markup:
    """A straight line."""
    return element("line", x1=a[0], y1=a[1], x2=b[0], y2=b[1], class_=class_)


def path(points: Sequence[Point], class_: str, *, closed: bool = False) -> Markup:
    """A line through ``points``."""
    steps = " ".join(f"{'L' if i else 'M'}{x:.1f} {y:.1f}" for i, (x, y) in enumerate(points))
    return element("path", d=steps + ("Z" if closed else ""), class_=class_)


def mark(shape: str, x: float, y: float, r: float, class_: str, title: str = "") -> Markup:
    """A circle, square, triangle (up, down) or diamond; ``title`` is shown when pointed at."""
    told = (element("title", title),) if title else ()
    if shape == "circle":
        return element("circle", *told, cx=x, cy=y, r=r, class_=class_)
    points = " ".join(f"{x + r * dx:.1f},{y + r * dy:.1f}" for dx, dy in SHAPES[shape])
    return element("polygon", *told, points=points, class_=class_)


def runs(points: Sequence[tuple[int, float | None]]) -> Iterator[list[tuple[int, float]]]:
    """Stretches of consecutive points that have a value."""
    stretch: list[tuple[int, float]] = []
    for x, y in points:
        if y is None or (stretch and x != stretch[-1][0] + 1):
            if stretch:
                yield stretch
            stretch = []
        if y is not None:
            stretch.append((x, y))
    if stretch:
        yield stretch


def frame(x: Scale, y: Scale, x_ticks: Sequence[float], y_ticks: Sequence[float]) -> Markup:
    """Grid lines and tick labels, left and below."""
    across = [
        line((x.start, y(tick)), (x.end, y(tick)), "grid")
        + text(x.start - 5, y(tick) + 3.5, label(tick), anchor="end", class_="tick")
        for tick in y_ticks
    ]
    below = [text(x(tick), y.start + 13, label(tick), anchor="middle", class_="tick") for tick in x_ticks]
    base = line((x.start, y.start), (x.end, y.start), "axis")
    return element("g", *across, base, *below, aria_hidden="true")


def extent(content: str, font: float) -> float:
    """About how wide a text is, without a font to ask."""
    wide = sum(1.0 if unicodedata.east_asian_width(c) in "WF" else 0.6 for c in content)
    return wide * font


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places near ``wanted`` and at least ``gap`` apart, within limits if they have room."""
    order = sorted(range(len(wanted)), key=wanted.__getitem__)
    placed = [0.0] * len(wanted)
    at = low - gap
    for i in order:
        at = placed[i] = max(wanted[i], at + gap)
    at = high + gap
    for i in reversed(order):
        at = placed[i] = min(placed[i], at - gap)
    return placed


def whole_ticks(last: int, wanted: int = 6) -> tuple[float, ...]:
    """Whole numbers from 0 to ``last``."""
    step = max(1, int(round_step(max(last, 1) / wanted)))
    return tuple(float(i) for i in range(0, last + 1, step))
