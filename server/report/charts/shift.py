"""A map of the sites: the further apart, the more their images differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from polyclinic.server.report import svg, words
from polyclinic.server.report.svg import Scale

WIDTH, HEIGHT, EDGE = 360.0, 320.0, 34.0
LOOK = {
    "little": ("circle", "calm"),
    "some": ("square", "some"),
    "marked": ("up", "marked"),
    "": ("diamond", "unknown"),
}
"""Shape and colour by the reading of the intensities' stability index."""


@dataclass(frozen=True)
class Place:
    """A site on the map, and how its brightness compares: little, some, marked, or "" where it is not known."""

    name: str
    x: float
    y: float
    reading: str


@dataclass(frozen=True)
class Box:
    """Where something is drawn."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box) -> bool:
        """Whether the two overlap."""
        apart = self.right < other.left or other.right < self.left or self.bottom < other.top or other.bottom < self.top
        return not apart


def places(found: Mapping[str, tuple[float, float]], readings: Mapping[str, str]) -> list[Place]:
    """Sites on the map, by name."""
    return [Place(name, x, y, readings.get(name, "")) for name, (x, y) in sorted(found.items())]


def shift_map(sites: Sequence[Place]) -> Markup:
    """Sites as marks whose distances follow the MMD, with a bar for scale."""
    if not sites:
        return Markup("")
    x, y, unit = scales(sites)
    at = [(x(site.x), y(site.y)) for site in sites]
    marks = [
        svg.mark(LOOK[site.reading][0], *point, 5, f"mark {LOOK[site.reading][1]}", site.name)
        for site, point in zip(sites, at, strict=True)
    ]
    border = svg.element("rect", x=0.5, y=0.5, width=WIDTH - 1, height=HEIGHT - 1, class_="border")
    described = "; ".join(f"{site.name}: brightness {site.reading or 'shift unknown'}" for site in sites)
    title = "Map of the sites by how much their images differ"
    return svg.picture(title, described, WIDTH, HEIGHT, border, *marks, named(sites, at), ruler(unit))


def scales(sites: Sequence[Place]) -> tuple[Scale, Scale, float]:
    """x, y, and pixels per unit: the same both ways, for only distances mean anything."""
    xs, ys = [site.x for site in sites], [site.y for site in sites]
    wide, high = max(xs) - min(xs), max(ys) - min(ys)
    room_x, room_y = WIDTH - 2 * EDGE, HEIGHT - 2 * EDGE
    unit = min(room_x / wide if wide else 1e6, room_y / high if high else 1e6, 1e6)
    middle_x, middle_y = (max(xs) + min(xs)) / 2, (max(ys) + min(ys)) / 2
    half_x, half_y = room_x / 2 / unit, room_y / 2 / unit
    x = Scale(middle_x - half_x, middle_x + half_x, EDGE, WIDTH - EDGE)
    return x, Scale(middle_y - half_y, middle_y + half_y, HEIGHT - EDGE, EDGE), unit


def named(sites: Sequence[Place], at: Sequence[tuple[float, float]]) -> Markup:
    """Names beside their marks, each where it meets nothing else; those without room can be pointed at."""
    taken = [Box(x - 6, y - 6, x + 6, y + 6) for x, y in at]
    texts = []
    for site, point in zip(sites, at, strict=True):
        name = words.short(site.name, 20)
        for anchor, box, base in candidates(point, svg.extent(name, 11)):
            inside = box.left > 2 and box.right < WIDTH - 2 and box.top > 2 and box.bottom < HEIGHT - 2
            if inside and not any(box.meets(other) for other in taken):
                taken.append(box)
                texts.append(svg.text(*base, name, anchor=anchor))
                break
    return Markup("").join(texts)


def candidates(point: tuple[float, float], width: float) -> list[tuple[str, Box, tuple[float, float]]]:
    """(anchor, box, base point) of the places for a name: right, left, above, below, and aslant."""
    x, y = point
    right, left, middle = ("start", x + 8, x + 8), ("end", x - 8, x - 8 - width), ("middle", x, x - width / 2)
    spots = [(right, 0), (left, 0), (middle, -13), (middle, 13), (right, -9), (left, -9), (right, 9), (left, 9)]
    return [
        (anchor, Box(start, y + down - 5, start + width, y + down + 5), (base, y + down + 3.5))
        for (anchor, base, start), down in spots
    ]


def ruler(unit: float) -> Markup:
    """A bar of a round length, in units of the MMD."""
    length = svg.round_step(50 / unit)
    end = 12 + length * unit
    bar = svg.path([(12, HEIGHT - 15), (12, HEIGHT - 10), (end, HEIGHT - 10), (end, HEIGHT - 15)], "ruler")
    return bar + svg.text(end + 6, HEIGHT - 9, f"MMD {svg.label(length)}", class_="tick")
