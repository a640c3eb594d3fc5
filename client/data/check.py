"""Preflight: everything that can be known to be wrong with a data set before anything is trained on it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import numpy as np

from polyclinic.client.data.federation import federation_problems
from polyclinic.client.data.images import Pixels, decode
from polyclinic.client.data.manifest import Labels, Problem, Row, scan, sites
from polyclinic.core.errors import DataError
from polyclinic.core.study import SPLITS, Data, Study, Training

_DARK = 8


@dataclass(frozen=True, slots=True)
class Count:
    """What a site holds in one split. ``classes`` are (class, images) in sorted order; multi-label images count in
    each of their classes, or as "none".
    """

    site: str
    split: str
    images: int
    patients: int
    classes: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Report:
    """What a manifest holds and all that is wrong with it, by line; problems of whole sites come first."""

    manifest: str
    counts: tuple[Count, ...]
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """No errors; warnings do not stop a study."""
        return not self.errors

    @property
    def errors(self) -> tuple[Problem, ...]:
        """The problems that stop a study."""
        return tuple(problem for problem in self.problems if problem.severity == "error")

    def json(self) -> str:
        """The report as JSON text, with ``ok``."""
        return json.dumps({"ok": self.ok} | asdict(self), indent=2)


def check(
    manifest: Path | str,
    study: Study | None,
    decode: bool = True,
    alone: bool = False,
    watch: Callable[[Sequence[Row]], Iterable[Row]] = iter,
) -> Report:
    """Everything that is wrong with a manifest, its images and its sites, found at once. Never raises for the data.

    Args:
        study: without one, columns have their default names and every label is taken for a class.
        decode: open every image; else they are only looked for.
        alone: the manifest is one hospital's own, so that one site is as it should be.
        watch: wraps the rows while their images are opened, to show progress.
    """
    data, task, seed, batch = Data(), cast(Labels, _AnyLabel()), 0, Training().batch_size
    if study is not None:
        # that the configuration of a task is a task is the plugin's contract
        data, task, seed, batch = study.data, cast(Labels, study.task), study.study.seed, study.training.batch_size
    rows, problems = scan(manifest, data, task, seed)
    found = [*problems, *federation_problems(rows, batch, alone)]
    if study is None:
        remedy = "give the study with --study"
        found.append(Problem(None, "", "labels and settings were not checked", remedy, "warning"))
    if decode:
        found += _image_problems(watch(rows), data)
    found.sort(key=lambda problem: problem.line or 0)
    classes: tuple[str, ...] = getattr(task, "classes", ())
    return Report(str(manifest), tuple(_counts(rows, classes)), tuple(found))


class _AnyLabel:
    """Takes every label for a class of its own, numbered as they turn up."""

    def __init__(self) -> None:
        self.seen: dict[str, int] = {}

    def target(self, label: str) -> int:
        return self.seen.setdefault(label, len(self.seen))


def _counts(rows: Sequence[Row], classes: Sequence[str]) -> Iterator[Count]:
    for site, held in sites(rows).items():
        for split in SPLITS:
            here = [row for row in held if row.split == split]
            labels = Counter(name for row in here for name in _classes(row, classes))
            yield Count(site, split, len(here), len({row.patient for row in here}), tuple(sorted(labels.items())))


def _classes(row: Row, classes: Sequence[str]) -> Sequence[str]:
    if isinstance(row.target, int):
        return (row.label,)
    return [name for name, present in zip(classes, row.target, strict=False) if present] or ["none"]


def _image_problems(rows: Iterable[Row], data: Data) -> Iterator[Problem]:
    """Images that cannot be read, show nothing, or are there twice."""
    squashed = data.model_copy(update={"fit": "squash"})  # so that no border hides an empty picture
    same: dict[bytes, list[Row]] = defaultdict(list)
    for row in rows:
        try:
            with row.path.open("rb") as stream:
                same[hashlib.file_digest(stream, "sha256").digest()].append(row)
                stream.seek(0)
                pixels = decode(stream, squashed, row.name)
        except DataError as failure:
            yield Problem(row.line, row.name, failure.problem, failure.remedy)
        except OSError as failure:
            yield Problem(row.line, row.name, f"cannot be read: {failure.strerror}", "check its permissions")
        else:
            yield from _empty(row, pixels)
    for group in same.values():
        yield from _twins(group)


def _empty(row: Row, pixels: Pixels) -> Iterator[Problem]:
    remedy = "look at it, and leave it out if it shows nothing"
    if np.array_equal(pixels.min(axis=(1, 2)), pixels.max(axis=(1, 2))):
        yield Problem(row.line, row.name, "shows one flat colour", remedy, "warning")
    elif pixels.max() < _DARK:
        yield Problem(row.line, row.name, "is nearly black", remedy, "warning")


def _twins(group: Sequence[Row]) -> Iterator[Problem]:
    """The same bytes in two sites, two splits or under two labels: a leak or a contradiction."""
    first, *others = sorted(group, key=lambda row: row.line)
    for row in others:
        if (row.site, row.split, row.label) != (first.site, first.split, first.label):
            what = (
                f"is byte for byte the image on line {first.line} ({first.site}, {first.split}, label {first.label}), "
                f"but stands under {row.site}, {row.split}, label {row.label}"
            )
            yield Problem(row.line, row.name, what, "keep one of the two", "warning")
