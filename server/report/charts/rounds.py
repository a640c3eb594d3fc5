"""A figure round by round: the global model over all sites, and each site's own panel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from polyclinic.core.statistics.figures import Figure
from polyclinic.core.statistics.metrics import Metric
from polyclinic.server.report import svg, words
from polyclinic.server.report.data import Evidence, pick
from polyclinic.server.report.svg import Scale

UNIT = (0.0, 1.0)
BEYOND = (0.0, float("inf"))


@dataclass(frozen=True)
class Track:
    """One model's figure over rounds: (rounds trained, figure)."""

    name: str
    points: tuple[tuple[int, Figure], ...]

    @property
    def values(self) -> list[float]:
        """Those there are."""
        return [figure.value for _, figure in self.points if figure.value is not None]

    @property
    def last(self) -> tuple[int, float] | None:
        """The last point that has a value."""
        found = [(x, figure.value) for x, figure in self.points if figure.value is not None]
        return found[-1] if found else None


def pooled(evidence: Evidence, metric: Metric) -> Track:
    """The global model over all sites: what arrived in round r had r - 1 rounds; last, if there, the final one."""
    points = [(r.number - 1, pick(r.pooled, metric.key)) for r in evidence.rounds]
    final = [(end(evidence), pick(evidence.pooled.get("val"), metric.key))] if evidence.finished else []
    return Track("pooled", (*points, *final))


def arrived(evidence: Evidence, metric: Metric) -> list[Track]:
    """The global model at each site."""
    return [
        Track(
            site.name,
            (
                *((r.number - 1, pick(r.arrived.get(site.name), metric.key)) for r in evidence.rounds),
                *([(end(evidence), pick(site.federated.get("val"), metric.key))] if evidence.finished else []),
            ),
        )
        for site in evidence.sites
    ]


def own(evidence: Evidence, metric: Metric) -> list[Track]:
    """Each site's own model after its local training of each round."""
    return [
        Track(site.name, tuple((r.number, pick(r.own.get(site.name), metric.key)) for r in evidence.rounds))
        for site in evidence.sites
    ]


def end(evidence: Evidence) -> int:
    """How many rounds the final model had."""
    return max((r.number for r in evidence.rounds), default=0)


def overview(metric: Metric, together: Track, sites: Sequence[Track]) -> Markup:
    """All sites in grey, those best and worst off at the end by name, the pooled figure with its interval on top."""
    values = [value for track in (together, *sites) for value in track.values]
    if not values:
        return Markup("")
    last = max(x for track in (together, *sites) for x, _ in track.points)
    x, y = Scale(0, max(last, 1), 40, 250), svg.fitted(values, 186, 12, within=limits(metric))
    ends = ranked(metric, sites)
    named = {"high": ends[0], "low": ends[-1]} if len(ends) > 1 else {"low": ends[0]} if ends else {}
    plain = [track for track in sites if track not in named.values()]
    lines = [
        svg.frame(x, y, svg.whole_ticks(last), y.ticks()),
        *(curve(track, x, y, "site") for track in plain),
        band(together, x, y),
        *(curve(track, x, y, kind) for kind, track in named.items()),
        curve(together, x, y, "pooled", "circle"),
        labels(y, {"pooled": together} | named),
        svg.text((x.start + x.end) / 2, 214, "rounds trained", anchor="middle", class_="tick"),
    ]
    return svg.picture(f"{metric.name} by round", spoken(metric, together, ends), 360, 220, *lines)


def labels(y: Scale, named: dict[str, Track]) -> Markup:
    """Names at the ends of lines, moved apart where they would touch."""
    shown = [(kind, track, track.last) for kind, track in named.items()]
    rows = [(kind, track.name, last[1]) for kind, track, last in shown if last]
    places = svg.spread([y(value) for _, _, value in rows], 13, y.end + 4, y.start - 2)
    texts = [
        svg.text(257, place + 3.5, words.short(name, 13), class_=f"name {kind}")
        for (kind, name, _), place in zip(rows, places, strict=True)
    ]
    return Markup("").join(texts)


def panel(metric: Metric, arrived: Track, own: Track, y: tuple[float, float]) -> Markup:
    """One site: the global model as it arrived (filled circles) and its own after local training (open squares)."""
    last = max((x for track in (arrived, own) for x, _ in track.points), default=0)
    across, up = Scale(0, max(last, 1), 30, 172), Scale(*y, 112, 8)
    if not arrived.values and not own.values:
        return Markup("")
    said = (
        f"{metric.name} on validation images. Global model: {told(arrived)}. "
        f"Own model after local training: {told(own)}."
    )
    return svg.picture(
        f"{metric.name} by round at {arrived.name}",
        said,
        180,
        130,
        svg.frame(across, up, svg.whole_ticks(last, 5), up.ticks(3)),
        band(arrived, across, up),
        curve(own, across, up, "own", "square"),
        curve(arrived, across, up, "pooled", "circle"),
    )


def shared(metric: Metric, tracks: Sequence[Track]) -> tuple[float, float]:
    """Limits that all panels share, so that sites can be compared by eye."""
    values = [value for track in tracks for value in track.values]
    scale = svg.fitted(values or [0.0, 1.0], 0, 1, within=limits(metric))
    return scale.low, scale.high


def limits(metric: Metric) -> tuple[float, float]:
    """Beyond which the figure cannot be."""
    return BEYOND if metric.key in ("nll", "brier") else UNIT


def curve(track: Track, x: Scale, y: Scale, kind: str, shape: str = "") -> Markup:
    """A line broken where there is no figure, with marks where they have room."""
    values = [(at, figure.value) for at, figure in track.points]
    drawn = [svg.path([(x(a), y(v)) for a, v in run], f"line {kind}") for run in svg.runs(values) if len(run) > 1]
    alone = [run[0] for run in svg.runs(values) if len(run) == 1]
    roomy = (x.end - x.start) / max(1.0, x.high) >= 7
    marked = [(a, v) for a, v in values if v is not None] if shape and roomy else alone
    size = 3.2 if x.end - x.start > 200 else 2.4
    dots = [
        svg.mark(shape or "circle", x(a), y(v), size, f"mark {kind}", f"{track.name}, {a} rounds: {words.number(v)}")
        for a, v in marked
    ]
    return Markup("").join([*drawn, *dots])


def band(track: Track, x: Scale, y: Scale) -> Markup:
    """The 95 % interval, where there is one."""
    limits = {at: (f.low, f.high) for at, f in track.points if f.low is not None and f.high is not None}
    parts = [[at for at, _ in run] for run in svg.runs([(at, 0.0 if at in limits else None) for at, _ in track.points])]
    drawn = []
    for part in parts:
        low = [(x(at), y(limits[at][0])) for at in part]
        high = [(x(at), y(limits[at][1])) for at in reversed(part)]
        single = len(part) == 1
        drawn.append(svg.line(low[0], high[0], "whisker") if single else svg.path([*low, *high], "band", closed=True))
    return Markup("").join(drawn)


def ranked(metric: Metric, sites: Sequence[Track]) -> list[Track]:
    """Sites that have a figure, those best off at the end first."""
    having = [(track.last[1], track) for track in sites if track.last]
    return [track for _, track in sorted(having, key=lambda pair: -pair[0] if metric.more_is_better else pair[0])]


def told(track: Track) -> str:
    """First and last figure in words."""
    if track.last is None:
        return str(track.points[-1][1].why) if track.points else "none"
    return f"{words.number(track.values[0])} first, {words.number(track.last[1])} last"


def spoken(metric: Metric, together: Track, ends: Sequence[Track]) -> str:
    """The overview in words."""
    parts = [f"On validation images, pooled over sites: {told(together)}."]
    if len(ends) > 1:
        best, worst = ends[0], ends[-1]
        parts.append(f"Last best at {best.name} ({told(best)}), worst at {worst.name} ({told(worst)}).")
    return " ".join(parts)
