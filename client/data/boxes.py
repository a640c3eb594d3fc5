"""The boxes of a detection task: a CSV file beside the manifest, one line a box, read strictly."""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Container, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Protocol

from polyclinic.client.data.problem import Problem
from polyclinic.client.data.table import read_table

COLUMNS = ("image", "label", "xmin", "ymin", "xmax", "ymax")
EDGES = {"xmin": "left", "ymin": "top", "xmax": "right", "ymax": "bottom"}

Box = tuple[int, float, float, float, float]
"""Class, left, top, right, bottom."""


class Named(Protocol):
    """The part of a task that knows its classes."""

    def target(self, label: str) -> int | tuple[int, ...]:
        """The target that a label stands for; ValueError if it is none."""


def named(folder: Path, written: str) -> tuple[str, str]:
    """The absolute path of what a table in ``folder`` calls ``written``, without detours, and the path relative to
    ``folder`` as POSIX text, which is an image's name.
    """
    path = os.path.normpath(folder / written)
    try:
        return path, Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # Windows: on another drive
        return path, Path(path).as_posix()


def read_boxes(
    file: Path, images: Container[str], task: Named, folder: Path
) -> tuple[dict[str, tuple[Box, ...]], tuple[Problem, ...]]:
    """The boxes of every image that has any, in the order of their lines, and all that is wrong with the file.

    Columns ``image`` (as the manifest names it), ``label`` (of a class of the task), ``xmin``, ``ymin``, ``xmax`` and
    ``ymax``: pixels of the picture as it is stored, before its EXIF orientation is applied, counted from the outer
    corner of its first pixel. Others are passed over. An image without a line has no box. Never raises for what the
    file may hold; whether a box lies within its picture is looked at when that is opened.

    Args:
        file: absolute.
        images: names of the manifest's.
        task: whose classes the labels are.
        folder: the manifest's.
    """
    table = read_table(file)
    problems = [Problem(p.line, _place(file, p.column_or_path), p.what, p.remedy) for p in table.problems]
    if table.header:
        problems += [Problem(1, f"{file.name}, {place}", *said) for place, said in _header(table.header)]
    if len(problems) > len(table.problems) or not table.header:
        return {}, tuple(problems)
    at = {column: table.header.index(column) for column in COLUMNS}
    found: dict[str, list[Box]] = defaultdict(list)
    lines: dict[tuple[str, Box], int] = {}
    for line, cells in table.records:
        cell = {column: cells[place] for column, place in at.items()}
        name = named(folder, cell["image"])[1] if cell["image"] else ""
        wrong = [*_image(cell["image"], name in images), *_label(cell["label"], task), *_edges(cell)]
        if not wrong:
            box = (int(task.target(cell["label"])), *(float(cell[edge]) for edge in EDGES))  # type: ignore[arg-type]
            first = lines.setdefault((name, box), line)  # type: ignore[arg-type]
            wrong = [("", f"the same box as on line {first}", "list every box once")] if first != line else []
            if not wrong:
                found[name].append(box)  # type: ignore[arg-type]
        problems += [Problem(line, _place(file, place), what, remedy) for place, what, remedy in wrong]
    return {name: tuple(boxes) for name, boxes in found.items()}, tuple(problems)


Wrong = Iterator[tuple[str, str, str]]
"""(column or value, what is wrong, remedy)."""


def _place(file: Path, what: str) -> str:
    return f"{file.name}, {what}" if what else file.name


def _header(header: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, str]]]:
    for column in COLUMNS:
        if header.count(column) > 1:
            yield column, ("this column stands twice", "keep one")
        if column not in header:
            near = get_close_matches(column, header, 2, 0.5)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            yield column, ("this column is missing", f"{hint}a line of boxes has {','.join(COLUMNS)}")


def _image(written: str, known: bool) -> Wrong:
    if not written:
        yield "image", "no image", "name it as the manifest does"
    elif not known:
        yield written, "the manifest lists no such image", "name it as the manifest does, or leave the line out"


def _label(label: str, task: Named) -> Wrong:
    try:
        task.target(label)
    except ValueError as failure:
        yield "label", str(failure), "mend the label, or list it in task.classes"


def _edges(cell: Mapping[str, str]) -> Wrong:
    numbers: dict[str, float] = {}
    for edge, spoken in EDGES.items():
        try:
            numbers[edge] = float(cell[edge])
        except ValueError:
            numbers[edge] = math.nan
        if not math.isfinite(numbers[edge]):
            said = f"'{cell[edge]}' is no number" if cell[edge] else "no number"
            yield edge, said, f"the {spoken} edge in pixels"
        elif numbers[edge] < 0:
            yield edge, f"{cell[edge]} lies outside of the picture", "count pixels from its left and upper edge"
    for low, high in (("xmin", "xmax"), ("ymin", "ymax")):
        if numbers[low] > numbers[high]:
            yield low, f"{cell[low]} is beyond {high} {cell[high]}", f"exchange them: {low} is the {EDGES[low]} edge"
        elif numbers[low] == numbers[high]:
            yield low, f"the box is empty: {low} and {high} are both {cell[low]}", "leave it out, or draw it anew"
