"""The manifest: one CSV line an image, read strictly, with every problem told at once."""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Literal, Protocol

from polyclinic.client.data.boxes import Box, Named, named, read_boxes
from polyclinic.client.data.problem import Problem
from polyclinic.client.data.table import Table, read_table
from polyclinic.core.errors import DataError
from polyclinic.core.study import SPLITS, Columns, Data, Split

__all__ = ["Labels", "Problem", "Row", "read_manifest", "scan", "share", "sites"]

_SITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}")
_SPLIT_NAMES = {name: name for name in SPLITS} | {"valid": "val", "validation": "val"}
_SHOWN = 20
NEEDED = {"label": "label", "mask": "mask", "boxes": ""}
"""Which column a task needs beside path and site."""


class Labels(Named, Protocol):
    """The part of a task that reading a manifest needs."""

    @property
    def needs(self) -> Literal["label", "mask", "boxes"]:
        """What every image must come with."""


@dataclass(frozen=True, slots=True)
class Row:
    """One image of a manifest.

    Attributes:
        path: the image file, absolute.
        line: the manifest's line, counted from 1, the header included.
        name: the path relative to the manifest's folder as POSIX text: what order and identity rest on, the same on
            every machine. Rows that are made by hand may leave it out; it is then the absolute path.
        label, target: "" and () for a task that learns from masks or boxes.
        mask: the file of its mask, absolute; None if none is named.
        boxes: (class, left, top, right, bottom) of each, in pixels of the picture as it is stored.
    """

    path: Path
    site: str
    label: str
    target: int | tuple[int, ...]
    split: str
    patient: str
    line: int
    name: str = ""
    mask: Path | None = None
    boxes: tuple[Box, ...] = ()

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.path.as_posix())


def read_manifest(path: Path | str, data: Data, task: Labels, seed: int, only: str = "") -> tuple[Row, ...]:
    """The rows of a manifest, sorted by site and name; their order in the file does not matter.

    A manifest without splits is split by patient: see ``share``. ``only``: the site whose images alone are listed; the
    column of sites may then be missing.

    Raises:
        DataError: the manifest cannot be used; lists what is wrong with it, each with its line.
    """
    rows, problems = scan(path, data, task, seed, only)
    errors = [problem for problem in problems if problem.severity == "error"]
    if errors:
        more = [f"and {len(errors) - _SHOWN} more"] if len(errors) > _SHOWN else []
        count = "one problem" if len(errors) == 1 else f"{len(errors)} problems"
        raise DataError("\n  ".join([count, *map(str, errors[:_SHOWN]), *more]), where=str(path))
    return rows


def scan(
    path: Path | str, data: Data, task: Labels, seed: int, only: str = ""
) -> tuple[tuple[Row, ...], tuple[Problem, ...]]:
    """The rows without fault, sorted by site and name, and all problems in the order of their lines.

    Never raises for what a file may hold. Images are looked for, not opened.
    """
    file = Path(path).absolute()
    table = read_table(file)
    needed = tuple(role for role in ("path", "site", NEEDED[task.needs]) if role and not (only and role == "site"))
    problems = [*table.problems, *_header_problems(table, data.columns, needed)]
    places = _places(table.header, data.columns)
    if not set(needed) <= places.keys():
        return (), tuple(problems)
    reader = _Reader(file.parent, data, task, only)
    fields = [(line, {role: cells[place] for role, place in places.items()}) for line, cells in table.records]
    split_given = any(field.get("split") for _, field in fields)
    for line, field in fields:
        reader.read(line, field, split_given)
    if task.needs == "boxes":
        reader.attach(file.parent, data.boxes)
    rows = reader.rows if split_given else [_assigned(row, data.split, seed) for row in reader.rows]
    problems += [*reader.problems, *_patient_problems(fields, data.columns), *_torn_patients(rows)]
    if not (rows or problems):
        problems.append(Problem(None, "", "has a header but no images", "write one line an image"))
    problems.sort(key=lambda problem: problem.line or 0)
    return tuple(sorted(rows, key=lambda row: (row.site, row.name))), tuple(problems)


def sites(rows: Sequence[Row]) -> dict[str, tuple[Row, ...]]:
    """Rows by site, sites and rows in sorted order, whatever the order of ``rows``."""
    by_site: dict[str, list[Row]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: (row.site, row.name)):
        by_site[row.site].append(row)
    return {site: tuple(group) for site, group in by_site.items()}


def share(seed: int, patient: str) -> float:
    """A number in [0, 1) that depends on nothing but the seed and the patient.

    Below ``train`` the patient trains, below ``train + val`` it validates, else it tests: adding, dropping or
    reordering other patients moves nobody.
    """
    digest = hashlib.sha256(f"{seed}/{patient}".encode()).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53  # 53 bits: exact in a float, so never rounded up to 1


def _assigned(row: Row, split: Split, seed: int) -> Row:
    place = share(seed, row.patient)
    return replace(row, split="train" if place < split.train else "val" if place < split.train + split.val else "test")


def _places(header: Sequence[str], columns: Columns) -> dict[str, int]:
    """Where each role (path, site, label, split, patient) stands in the header, for those that it has."""
    return {role: header.index(name) for role, name in columns.model_dump().items() if name in header}


def _header_problems(table: Table, columns: Columns, needed: Sequence[str]) -> Iterator[Problem]:
    header, defaults = table.header, Columns()
    if not header:
        return
    names: dict[str, str] = columns.model_dump()
    for separator, spoken in ((";", "semicolons"), ("\t", "tabs")):
        if len(header) == 1 and separator in header[0]:
            yield Problem(1, "", f"columns are separated by {spoken}", "save the table with commas")
            return
    if not set(names.values()) & set(header):
        what = f"no header: the first line holds {', '.join(header)[:120]}"
        yield Problem(1, "", what, f"begin with a line such as {','.join(list(names.values())[:5])}")
        return
    for role, name in names.items():
        if header.count(name) > 1:
            yield Problem(1, name, "this column stands twice", "keep one")
        # a split or patient column that the study names itself must exist: a typo would leak patients between splits
        if name not in header and (role in needed or (role != "site" and name != getattr(defaults, role))):
            near = get_close_matches(name, header, 2, 0.5)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            remedy = f"{hint}there are {', '.join(header)}; data.columns.{role} in the study names the column"
            yield Problem(1, name, "this column is missing", remedy)


def _patient_problems(fields: Sequence[tuple[int, Mapping[str, str]]], columns: Columns) -> Iterator[Problem]:
    """A warning, once, if images without a patient are counted as patients of their own."""
    alone = [line for line, field in fields if not field.get("patient")]
    if alone:
        everywhere = len(alone) == len(fields)
        what = f"{'no image names' if everywhere else f'{len(alone)} images do not name'} a patient: each counts as one"
        remedy = "name patients, or one with several images may stand in two splits and is protected as several"
        yield Problem(None if everywhere else alone[0], columns.patient, what, remedy, "warning")


def _torn_patients(rows: Sequence[Row]) -> Iterator[Problem]:
    """Patients in two splits; the same id at two sites is two patients."""
    first: dict[tuple[str, str], Row] = {}
    for row in rows:
        other = first.setdefault((row.site, row.patient), row)
        if other.split != row.split:
            what = f"patient '{row.patient}' of {row.site} is in {row.split}, but in {other.split} on line {other.line}"
            yield Problem(row.line, row.name, what, "keep all images of a patient in one split")


class _Reader:
    """Gathers rows and problems, one record at a time."""

    def __init__(self, folder: Path, data: Data, task: Labels, only: str) -> None:
        self.folder, self.columns, self.task, self.only = folder, data.columns, task, only
        self.folders = data.volume != "refuse"
        self.rows: list[Row] = []
        self.problems: list[Problem] = []
        self._lines: dict[str, int] = {}

    def read(self, line: int, field: Mapping[str, str], split_given: bool) -> None:
        """Adds the record's row, or else every problem that it has."""
        before = len(self.problems)
        path, name = self._path(line, field["path"])
        site = field.get("site", self.only)
        if self.only and site != self.only:
            self._note(line, self.columns.site, f"'{site}' is another site than {self.only}", "leave the line out")
        if not _SITE.fullmatch(site):
            what = f"'{site}' is no site name" if site else "no site is named"
            self._note(line, self.columns.site, what, "letters, digits, blanks and . _ -, at most 64, first no sign")
        labelled = self.task.needs == "label"
        target = self._target(line, field["label"]) if labelled else ()
        split = _SPLIT_NAMES.get(field.get("split", "").lower(), "")
        if split_given and not split:
            given = field["split"]
            what = f"'{given}' is no split" if given else "no split, where other lines have one"
            self._note(line, self.columns.split, what, "train, val or test; or leave the whole column empty")
        mask = self._mask(line, field.get("mask", ""))
        if len(self.problems) == before:
            patient = field.get("patient") or name
            label = field["label"] if labelled else ""
            self.rows.append(Row(path, site, label, target, split, patient, line, name, mask))

    def attach(self, folder: Path, boxes: str | None) -> None:
        """Gives every row its boxes, out of the file that the study names, and notes what is wrong with that."""
        if boxes is None:
            self.problems.append(Problem(None, "data.boxes", "the study names no file of boxes", "name it"))
            return
        found, problems = read_boxes(folder / boxes, self._lines, self.task, folder)
        self.rows = [replace(row, boxes=found.get(row.name, ())) for row in self.rows]
        self.problems += problems

    def _note(self, line: int, place: str, what: str, remedy: str) -> None:
        self.problems.append(Problem(line, place, what, remedy))

    def _target(self, line: int, label: str) -> int | tuple[int, ...]:
        try:
            return self.task.target(label)
        except ValueError as failure:
            self._note(line, self.columns.label, str(failure), "mend the label, or list it in task.classes")
            return -1

    def _path(self, line: int, written: str) -> tuple[Path, str]:
        """The absolute path, without detours, and the path relative to the manifest's folder."""
        path, name = named(self.folder, written)
        first = self._lines.setdefault(name, line)
        if not written:
            self._note(line, self.columns.path, "no path", "name the image file")
        elif first != line:
            self._note(line, written, f"the same image as on line {first}", "list every image once")
        elif not os.path.isfile(path) and not (self.folders and os.path.isdir(path)):  # noqa: PTH112, PTH113 - fast
            self._note(line, written, *self._absence(path, written))
        return Path(path), name

    def _mask(self, line: int, written: str) -> Path | None:
        if not written and self.task.needs == "mask":
            self._note(line, self.columns.mask, "no mask, from which the task learns", "name its file")
        path = Path(os.path.normpath(self.folder / written)) if written else None
        if path is not None and not path.is_file():
            self._note(line, written, "there is no such mask", f"paths are relative to {self.folder}")
        return path

    def _absence(self, path: str, written: str) -> tuple[str, str]:
        if os.path.isdir(path):  # noqa: PTH112
            return "this is a folder", 'name an image file, or set data.volume = "middle" for a folder of slices'
        if os.path.exists(path):  # noqa: PTH110
            return "this is no file", "name the image file"
        if "\\" in written and os.sep == "/":
            return "there is no such image", "write / between folders"
        return "there is no such image", f"paths are relative to the manifest's folder {self.folder}"
