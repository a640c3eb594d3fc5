"""What a report is made of: rounds.jsonl and summary.json as typed, frozen records."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from polyclinic.core.errors import RunError
from polyclinic.core.runs import Run
from polyclinic.core.statistics.figures import Bin, Figure, missing
from polyclinic.core.statistics.metrics import JUDGED, Judged, Metric, kind_of

Json = Mapping[str, Any]
Figures = Mapping[str, Figure]
Model = Literal["federated", "alone", "central"]
NOT_TOLD = "not told"


SPLITS = {"test": "test", "val": "validation"}
"""Names of the splits that judge, for people."""


@dataclass(frozen=True)
class Shift:
    """How far a site's images lie from all others' together; None where that cannot be told."""

    frechet: float | None = None
    mmd2: float | None = None
    mmd2_noise: float | None = None
    p_value: float | None = None
    psi: float | None = None
    taken: float | None = None
    taken_field: str = ""
    prevalence: tuple[float | None, ...] = ()
    why: str = ""


@dataclass(frozen=True)
class Site:
    """One site at the end of a run; mappings go from split to figures, sizes are (images, patients).

    While the run goes on, ``trained`` says how many rounds the model had of which the site told last. ``privacy`` is
    its last receipt, in a private study.
    """

    name: str
    sizes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    federated: Mapping[str, Figures] = field(default_factory=dict)
    alone: Mapping[str, Figures] = field(default_factory=dict)
    central: Mapping[str, Figures] = field(default_factory=dict)
    bins: Mapping[str, tuple[Bin, ...]] = field(default_factory=dict)
    shift: Shift = Shift()
    excluded: str = ""
    trained: int | None = None
    privacy: Json = field(default_factory=dict)

    def figure(self, model: Model, split: str, key: str) -> Figure:
        """What ``model`` reached here, or why that is not known."""
        found = {"federated": self.federated, "alone": self.alone, "central": self.central}[model]
        if self.excluded and not found:
            return missing(f"set aside: {self.excluded}")
        return pick(found.get(split), key)


@dataclass(frozen=True)
class Round:
    """One round: validation figures of the model on arrival and of each site's own after training, and what moved."""

    number: int
    seconds: float
    up: int
    down: int
    arrived: Mapping[str, Figures]
    own: Mapping[str, Figures]
    pooled: Figures
    excluded: Mapping[str, str]
    result: str


@dataclass(frozen=True)
class Evidence:
    """All that a report may speak of.

    Attributes:
        study: study.toml as plain data; source: its text.
        facts: summary.json as it is, for what needs no reading.
        places: site → place on the map of shift; empty if there is none.
        finished: False while the run goes on: the figures are then those of the last model that was judged.
    """

    study: Json
    source: str
    facts: Json
    sites: tuple[Site, ...]
    rounds: tuple[Round, ...]
    pooled: Mapping[str, Figures]
    pooled_bins: Mapping[str, tuple[Bin, ...]]
    places: Mapping[str, tuple[float, float]]
    finished: bool = True

    @cached_property
    def split(self) -> str:
        """Which images judge the model: test, or validation where only there a site has figures, or until the end."""
        if not self.finished:
            return "val"
        having = [any(known(s.federated.get(split, {})) for s in self.sites) for split in ("test", "val")]
        return "val" if having == [False, True] else "test"

    @cached_property
    def judged(self) -> Judged:
        """How outcomes of this kind of task are judged."""
        return judged(found for site in self.sites for found in site.federated.values())

    @cached_property
    def metric(self) -> Metric:
        """The figure by which sites are compared."""
        return leading(self.judged, (site.federated.get(self.split, {}) for site in self.sites))

    @property
    def kind(self) -> str:
        """Of the task: binary, multiclass or multilabel."""
        return str(self.study.get("task", {}).get("kind", ""))

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their index."""
        return tuple(str(name) for name in self.study.get("task", {}).get("classes", ()))


def read(folder: Path) -> Evidence:
    """The evidence of a finished run's folder. The study is read as plain data: no plugin is needed to report."""
    run, path = Run(folder), folder / "study.toml"
    summary, rounds = run.summary, run.rounds
    if not path.is_file():
        raise RunError("holds no study", where=str(folder), remedy="put study.toml back")
    source = path.read_text(encoding="utf-8")
    return evidence(tomllib.loads(source), summary, rounds, source)


def evidence(study: Json, summary: Json, rounds: Iterable[Json], source: str = "") -> Evidence:
    """The evidence from the files' contents."""
    return Evidence(
        study=study,
        source=source,
        facts=summary,
        sites=tuple(site(name, row) for name, row in sorted(summary["sites"].items())),
        rounds=tuple(one_round(row) for row in rounds),
        pooled=by_split(summary.get("pooled")),
        pooled_bins=bins_by_split(summary.get("pooled_reliability")),
        places={name: (float(x), float(y)) for name, (x, y) in (summary.get("map") or {}).items()},
    )


def site(name: str, row: Json) -> Site:
    """A site from its object in summary.json."""
    sizes = {split: (int(n["images"]), int(n["patients"])) for split, n in row.get("n", {}).items()}
    return Site(
        name=name,
        sizes=sizes,
        federated=by_split(row.get("metrics")),
        alone=by_split(row.get("alone")),
        central=by_split(row.get("central")),
        bins=bins_by_split(row.get("reliability")),
        shift=shift(row.get("shift") or {}),
        excluded=str(row.get("excluded", "")),
        privacy=row.get("privacy") or {},
    )


def shift(row: Json) -> Shift:
    """A site's shift; a single prevalence is that of the positive class."""
    found = row.get("prevalence")
    prevalence = tuple(found) if isinstance(found, list) else () if found is None else (1.0 - found, found)
    return Shift(
        frechet=row.get("frechet"),
        mmd2=row.get("mmd2"),
        mmd2_noise=row.get("mmd2_noise"),
        p_value=row.get("p_value"),
        psi=row.get("intensity_psi"),
        taken=row.get("acquisition_js"),
        taken_field=str(row.get("acquisition_field") or ""),
        prevalence=prevalence,
        why=str(row.get("why", "")),
    )


def one_round(row: Json) -> Round:
    """A round from its line in rounds.jsonl."""
    return Round(
        number=int(row["round"]),
        seconds=float(row["seconds"]),
        up=int(row["bytes_up"]),
        down=int(row["bytes_down"]),
        arrived={name: figures(found.get("incoming")) for name, found in row["sites"].items()},
        own={name: figures(found.get("fitted")) for name, found in row["sites"].items()},
        pooled=figures(row["pooled"]["incoming"]),
        excluded=dict(row.get("excluded", {})),
        result=str(row.get("result", "")),
    )


def by_split(found: Json | None) -> dict[str, Figures]:
    """Split → figures; splits of which nothing was told are left out."""
    return {split: figures(row) for split, row in (found or {}).items() if row}


def figures(row: Json | None) -> Figures:
    """Figures by key; a figure without a value has a reason."""
    return {key: figure(found) for key, found in (row or {}).items() if found is not None}


def figure(found: Json) -> Figure:
    """A figure from its object."""
    if found.get("value") is None:
        return missing(str(found.get("why") or NOT_TOLD))
    return Figure(
        found["value"], found.get("low"), found.get("high"), found.get("bound", 0.0), noise=found.get("noise", 0.0)
    )


def bins_by_split(found: Json | None) -> dict[str, tuple[Bin, ...]]:
    """Split → reliability bins; splits without any are left out."""
    return {split: bins(rows) for split, rows in (found or {}).items() if rows}


def bins(rows: Iterable[Json] | None) -> tuple[Bin, ...]:
    """Reliability bins from their objects."""
    return tuple(Bin(b["low"], b["high"], b["count"], b["confidence"], b["frequency"]) for b in rows or ())


def pick(found: Figures | None, key: str) -> Figure:
    """The figure under ``key``, or one that says it was not told."""
    return (found or {}).get(key) or missing(NOT_TOLD)


def known(found: Figures) -> bool:
    """Whether any figure has a value."""
    return any(each.value is not None for each in found.values())


def judged(found: Iterable[Figures]) -> Judged:
    """The kind of outcome whose figures these are; classification's, if nobody has any."""
    return kind_of(key for row in found for key in row) or JUDGED["outcome"]


def leading(kind: Judged, found: Iterable[Figures]) -> Metric:
    """The first leading metric of its kind that anybody has; the very first if nobody has any."""
    rows = list(found)
    named = {metric.key: metric for metric in kind.metrics}
    having = [key for key in kind.leading if any(pick(row, key).value is not None for row in rows)]
    return named[having[0] if having else kind.leading[0]]


def dumps(value: Any) -> str:
    """A setting as people read it: text bare, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
