"""What travelled, round by round: bytes from the sites above, to the sites below."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from polyclinic.server.report import svg, words
from polyclinic.server.report.svg import Scale


@dataclass(frozen=True)
class Load:
    """Bytes of one round; ``name`` is its number, or says that it was the last evaluation."""

    name: str
    up: int
    down: int


def traffic(loads: Sequence[Load]) -> Markup:
    """Two bars a round, apart by position and not only by colour."""
    most = max((max(load.up, load.down) for load in loads), default=0)
    if not most:
        return Markup("")
    unit = next((scale for scale in (1e9, 1e6, 1e3) if most >= scale), 1.0)
    top = 1.04 * most / unit
    up, down, name = Scale(0, top, 100, 24), Scale(0, top, 100, 176), words.size(unit).split()[1]
    width = (352 - 52) / len(loads)
    body: list[Markup] = [grid(up, down)]
    every = max(1, -(-len(loads) // 10))
    for i, load in enumerate(loads):
        left = 52 + width * i
        said = f"{load.name}: {words.size(load.up)} from the sites, {words.size(load.down)} to the sites"
        body.append(bar(left, up(load.up / unit), 100, width, "up", said))
        body.append(bar(left, 100, down(load.down / unit), width, "down", said))
        if i % every == 0 or i == len(loads) - 1:
            body.append(svg.text(left + width / 2, 192, load.name, anchor="middle", class_="tick"))
    body += [
        svg.line((52, 100), (352, 100), "axis"),
        svg.text(52, 14, f"▴ from the sites, {name}", class_="name up"),
        svg.text(52, 210, f"▾ to the sites, {name}", class_="name down"),
    ]
    said = "; ".join(f"{load.name}: {words.size(load.up)} from, {words.size(load.down)} to the sites" for load in loads)
    return svg.picture("Bytes that travelled, by round", said, 360, 216, *body)


def grid(up: Scale, down: Scale) -> Markup:
    """Lines and their labels both ways."""
    ticks = [(scale, tick) for scale in (up, down) for tick in scale.ticks(3)]
    drawn = [
        svg.line((52, scale(tick)), (352, scale(tick)), "grid")
        + svg.text(46, scale(tick) + 3.5, svg.label(tick), anchor="end", class_="tick")
        for scale, tick in ticks
    ]
    return Markup("").join(drawn)


def bar(left: float, top: float, bottom: float, width: float, kind: str, title: str) -> Markup:
    """A bar with some air beside it."""
    air = min(3.0, width * 0.15)
    told = svg.element("title", title)
    return svg.element(
        "rect", told, x=left + air, y=top, width=width - 2 * air, height=bottom - top, class_=f"bar {kind}"
    )
