"""All axes of all variants as one table, for terminal and page alike: lines are measures, columns are methods."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from polyclinic.server.report import words
from polyclinic.server.report.tables import Cell, cell
from polyclinic.simulations.compare.burden import PARTS
from polyclinic.simulations.compare.estimate import figure
from polyclinic.simulations.compare.sentences import milliseconds, operations

Json = dict[str, Any]
TITLES = {
    "merit": "How good",
    "depth": "Adaptation depth",
    "labels": "Label efficiency",
    "robustness": "Domain robustness",
    "cost": "Cost",
    "audit": "Auditability",
    "burden": "Regulatory burden",
}


@dataclass(frozen=True)
class Line:
    """One measure: what it is, in small print how it is meant, and a cell for each variant."""

    name: str
    note: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Group:
    """The measures of an axis."""

    axis: str
    title: str
    lines: tuple[Line, ...]


def groups(document: Json) -> list[Group]:
    """Every axis that was measured, after how good the methods are."""
    makers: dict[str, Callable[[Json], Iterator[tuple[str, str, Callable[[Json], Cell]]]]] = {
        "merit": _merit, "depth": _depth, "labels": _labels, "robustness": _robustness, "cost": _cost, "audit": _audit,
        "burden": _burden,
    }  # fmt: skip
    found = []
    for axis, maker in makers.items():
        if axis != "merit" and axis not in document["axes"]:
            continue
        lines = [
            Line(name, note, tuple(_made(draw, row, axis) for row in document["variants"]))
            for name, note, draw in maker(document)
        ]
        found.append(Group(axis, TITLES[axis], tuple(lines)))
    return found


Drawn = Iterator[tuple[str, str, Callable[[Json], Cell]]]


def _made(draw: Callable[[Json], Cell], row: Json, axis: str) -> Cell:
    absent = axis != "merit" and row[axis] is None
    return Cell("–", "not measured") if absent else draw(row)


def _merit(document: Json) -> Drawn:
    name, better = document["metric"]["name"], "more" if document["metric"]["more_is_better"] else "less"
    yield f"{name}, mean over sites", f"{better} is better", lambda row: _cell(row["merit"])
    yield f"{name}, pooled", "all test images together", lambda row: _cell(row["pooled"])
    yield f"{name}, worst site", "whichever it is under each seed", lambda row: _cell(row["worst_site"])
    yield "Calibration error, pooled", "less is better", lambda row: _cell(row["calibration"])


def _depth(document: Json) -> Drawn:
    yield "Numbers that train", "", lambda row: _number(row["depth"]["trained"])
    yield "Share of all numbers", "", lambda row: Cell(_share(row["depth"]["share"]))
    yield (
        "Change of representation",
        "1 − linear CKA with the frozen backbone, mean over blocks",
        lambda row: _small(row["depth"]["change"]),
    )


def _labels(document: Json) -> Drawn:
    name = document["metric"]["name"]
    shares: list[Json] = next((row["labels"]["curve"] for row in document["variants"] if row["labels"]), [])
    for i, point in enumerate(shares):
        yield (
            f"{name} at {point['share']:.0%} of labels",
            "mean over sites",
            partial(_at_share, i),
        )
    yield "Area under that curve", "mean over the log of the share", lambda row: _cell(row["labels"]["area"])


def _at_share(place: int, row: Json) -> Cell:
    return _cell(row["labels"]["curve"][place])


def _robustness(document: Json) -> Drawn:
    name = document["metric"]["name"]
    yield f"{name} at unseen sites", "each left out in turn, mean", lambda row: _cell(row["robustness"]["unseen"])
    yield "Unseen less seen", "paired", lambda row: _cell(row["robustness"]["unseen_less_seen"], sign=True)
    yield f"{name} under scanner shift", "mean of all shifts", lambda row: _cell(row["robustness"]["shifted"])
    yield "Calibration error under shift", "mean of all", lambda row: _cell(row["robustness"]["shifted_calibration"])


def _cost(document: Json) -> Drawn:
    yield (
        "Time of a training step",
        "on this machine",
        lambda row: Cell(*_split(milliseconds(figure(row["cost"]["step_seconds"])))),
    )
    yield "Operations a training step", "", lambda row: Cell(operations(row["cost"]["step_flops"]))
    yield "Memory of a step", "beyond the loaded model, MiB", lambda row: _cell(row["cost"]["step_mb"], 1)
    yield "Sent by a site a round", "", lambda row: Cell(words.size(row["cost"]["bytes_up"]["value"]))
    yield "Sent to a site a round", "", lambda row: Cell(words.size(row["cost"]["bytes_down"]["value"]))
    yield "Operations an answer", "unmerged", lambda row: Cell(operations(row["cost"]["inference_flops"]))
    yield "Latency ÷ frozen model", "unmerged, one picture", lambda row: _cell(row["cost"]["latency"], 2)


def _audit(document: Json) -> Drawn:
    yield "Tensors that travel", "", lambda row: _number(row["audit"]["tensors"])
    yield "Bytes of them", "", lambda row: Cell(words.size(row["audit"]["bytes"]))
    yield "Merge in any order", "to the same bits", lambda row: _yes(row["audit"]["any_order"])
    yield "Memory at the server", "does not grow with the sites", lambda row: _yes(row["audit"]["streams"])
    yield (
        "A patient’s share bounded",
        "exact gradients to clip",
        lambda row: _yes(row["audit"]["bounded"], "; ".join(row["audit"]["not_bounded_because"])),
    )
    yield "Personal numbers", "kept at each site", lambda row: _number(row["audit"]["personal_numbers"])
    yield "Numbers changed", "of what travels", lambda row: _number(row["audit"]["changed_numbers"])
    yield "Backbone changed, merged", "share of its numbers", lambda row: _merged(row["audit"]["merged"])
    yield (
        "Effective rank of that",
        "summed over matrices, of what is possible",
        lambda row: _rank(row["audit"]["merged"]),
    )


def _burden(document: Json) -> Drawn:
    yield "Points of a change plan", "sum", lambda row: _number(len(row["burden"]["points"]))
    for part in PARTS:
        yield part, "points", partial(_points, part)


def _points(part: str, row: Json) -> Cell:
    return _number(row["burden"]["parts"][part])


def _cell(row: Json, places: int = 3, *, sign: bool = False) -> Cell:
    """A figure with its interval below."""
    found = figure(row)
    if places == 3:
        return cell(found, sign=sign)
    if found.value is None:
        return Cell("–", str(found.why))
    limits = (
        "" if found.low is None else f"{words.number(found.low, places)} to {words.number(found.high or 0.0, places)}"
    )
    return Cell(words.number(found.value, places), limits.replace(" ", "\N{NO-BREAK SPACE}"))


def _small(row: Json) -> Cell:
    """A figure of which the first digits count, however small it is."""
    if row["value"] is None:
        return Cell("–", str(row["why"]))
    limits = "" if row["low"] is None else f"{row['low']:.2g} to {row['high']:.2g}"
    return Cell(f"{row['value']:.2g}", limits.replace(" ", "\N{NO-BREAK SPACE}"))


def _number(count: int) -> Cell:
    return Cell(words.whole(count))


def _yes(holds: bool, note: str = "") -> Cell:
    return Cell("yes" if holds else "no", note)


def _share(value: float) -> str:
    return f"{100 * value:.3g} %"


def _merged(found: Json | None) -> Cell:
    if found is None:
        return Cell("–", "does not merge")
    return Cell(_share(found["numbers"] / found["of_numbers"]), f"{words.whole(found['tensors'])} tensors")


def _rank(found: Json | None) -> Cell:
    if found is None:
        return Cell("–", "does not merge")
    if not found["matrices"]:
        return Cell("0", "no matrix changes")
    return Cell(f"{found['rank']:.1f}", f"of {words.whole(found['full_rank'])}, {found['matrices']} matrices")


def _split(text: str) -> tuple[str, str]:
    """ "3.1 ms (3.0 to 3.2)" as a figure and its small print."""
    head, _, tail = text.partition(" (")
    return head, tail.rstrip(")")
