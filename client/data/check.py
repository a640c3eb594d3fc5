"""Preflight: everything that can be known to be wrong with a data set before anything is trained on it."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import numpy as np

from polyclinic.client.data.boxed import beyond
from polyclinic.client.data.federation import federation_problems
from polyclinic.client.data.manifest import Labels, Problem, Row, scan, sites
from polyclinic.client.data.oddities import absent, alone, beside_others, lookalikes, present, series, twins
from polyclinic.client.data.readers.acquisition import FIELDS
from polyclinic.client.data.sighting import Sighting, files, sightings
from polyclinic.core.study import SPLITS, Data, Study, Training

if TYPE_CHECKING:
    from polyclinic.models.contracts import Masking


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
class Quarantined:
    """An image that could not be read, and is kept away from every study."""

    line: int | None
    path: str
    reason: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Acquired:
    """How many images of a site were taken in one way: a value of one of ``readers.acquisition.FIELDS``."""

    site: str
    field: str
    value: str
    images: int


@dataclass(frozen=True, slots=True)
class Report:
    """What a manifest holds and all that is wrong with it, by line; problems of whole sites come first.

    Attributes:
        quarantine: images that could not be read; each is among the problems, too.
        acquisition: how the images were taken, counted; for this site's eyes.
        formats: (format, images) of what could be read.
    """

    manifest: str
    counts: tuple[Count, ...]
    problems: tuple[Problem, ...]
    quarantine: tuple[Quarantined, ...] = ()
    acquisition: tuple[Acquired, ...] = ()
    formats: tuple[tuple[str, int], ...] = ()

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

    def quarantine_list(self) -> str:
        """The quarantined images as a table in CSV: path, reason, remedy."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(("path", "reason", "remedy"))
        writer.writerows((one.path, one.reason, one.remedy) for one in self.quarantine)
        return out.getvalue()


def check(
    manifest: Path | str,
    study: Study | None,
    decode: bool = True,
    one_site: bool = False,
    watch: Callable[[Sequence[Row]], Iterable[Row]] = iter,
) -> Report:
    """Everything that is wrong with a manifest, its images and its sites, found at once. Never raises for the data.

    Args:
        study: without one, columns have their default names and every label is taken for a class.
        decode: open every image; else they are only looked for.
        one_site: the manifest is one hospital's own, so that one site is as it should be.
        watch: wraps the rows while their images are opened, to show progress.
    """
    data, task, seed, batch = Data(), cast(Labels, _AnyLabel()), 0, Training().batch_size
    if study is not None:
        # that the configuration of a task is a task is the plugin's contract
        data, task, seed, batch = study.data, cast(Labels, study.task), study.study.seed, study.training.batch_size
    rows, problems = scan(manifest, data, task, seed)
    found = [*problems, *federation_problems(rows, batch, one_site)]
    if study is None:
        remedy = "give the study with --study"
        found.append(Problem(None, "", "labels and settings were not checked", remedy, "warning"))
    classes: tuple[str, ...] = getattr(task, "classes", ())
    seen = tuple(sightings(watch(rows), data)) if decode else ()
    if task.needs == "mask":  # which classes a mask holds is known only if it was read
        targets, strange = _held(seen, cast("Masking", task), len(classes))
        rows = tuple(replace(row, target=targets.get(row.line, ())) for row in rows)
        found += strange
    found += absent([row for row in rows if row.target != ()], classes)
    return _report(str(manifest), tuple(_counts(rows, classes)), [*found, *_image_problems(seen, data)], seen)


def _held(seen: Sequence[Sighting], task: Masking, classes: int) -> tuple[dict[int, tuple[int, ...]], list[Problem]]:
    """Line → 0 or 1 for each class, of masks that were read; and those whose numbers mean nothing."""
    targets: dict[int, tuple[int, ...]] = {}
    problems = []
    for row, found in ((one.row, one.found) for one in seen if one.found and not one.found.mask):
        try:
            held = task.indexed(np.array(found.numbers))
            targets[row.line] = tuple(int(k in held) for k in range(1, classes + 1))
        except ValueError as failure:
            remedy = "mend the mask, or say in task.values and task.unlabelled what its numbers mean"
            problems.append(Problem(row.line or None, row.name, f"has a mask that {failure}", remedy))
    return targets, problems


def check_folder(folder: Path, watch: Callable[[Sequence[Row]], Iterable[Row]] = iter) -> Report:
    """What the files in and below a folder are, without a manifest: each read, or quarantined with the reason.

    Nothing is an error here: what is no image need not be one.
    """
    rows, data = files(folder), Data(volume="middle")
    seen = tuple(sightings(watch(rows), data))
    found = [replace(problem, severity="warning") for problem in _image_problems(seen, data)]
    found += series([(one.row, one.found) for one in seen if one.found])
    if not rows:
        found.append(Problem(None, str(folder), "holds no files", "name the folder of the images"))
    return _report(str(folder), (), found, seen)


def _report(name: str, counts: tuple[Count, ...], found: list[Problem], seen: Sequence[Sighting]) -> Report:
    found.sort(key=lambda problem: problem.line or 0)
    taken = Counter(
        (one.row.site, field, one.found.acquisition.get(field, "not said"))
        for one in seen if one.found and one.found.format.startswith("DICOM")
        for field in FIELDS
    )  # fmt: skip
    formats = Counter(one.found.format for one in seen if one.found)
    return Report(
        name,
        counts,
        tuple(found),
        tuple(
            Quarantined(one.row.line or None, one.row.name, one.problem, one.remedy) for one in seen if not one.found
        ),
        tuple(Acquired(*place, images) for place, images in sorted(taken.items())),
        tuple(sorted(formats.items())),
    )


class _AnyLabel:
    """Takes every label for a class of its own, numbered as they turn up."""

    needs: Literal["label"] = "label"

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
    if row.target == () and row.mask is not None:  # classes stand in the mask
        return (row.label,) if row.label else ()
    return [classes[i] for i in present(row)] or ["none"]


def _image_problems(seen: Sequence[Sighting], data: Data) -> Iterator[Problem]:
    """Images that cannot be read, show nothing, are odd beside others, or are there twice."""
    pairs = [(one.row, one.found) for one in seen if one.found]
    for one in seen:
        if one.found is None:
            yield Problem(one.row.line or None, one.row.name, one.problem, one.remedy)
    for row, found in pairs:
        yield from alone(row, found)
        yield from beyond(row, found)
        if found.several and data.volume == "refuse":
            remedy = 'data.volume = "middle" in the study takes the middle one; or save the one that is meant as a file'
            yield Problem(row.line or None, row.name, f"holds {found.several}", remedy)
    same = list(twins(seen))
    yield from (problem for _, problem in same)
    yield from beside_others(pairs)
    yield from lookalikes(pairs, [row.name for row, _ in same])
