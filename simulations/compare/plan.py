"""What a comparison trains: every variant of a study's chain, under every seed, as a whole and in parts."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from polyclinic.core.config import Config, parse, resolve
from polyclinic.core.errors import StudyError
from polyclinic.core.study import Study

AXES = ("depth", "labels", "robustness", "cost", "audit", "burden")
SHARES = (0.05, 0.10, 0.25)
"""Of the labelled patients; the whole of them is what every variant is trained on anyway."""
BUDGET = ("label_budget", "share")
"""The method, and its key, that hides labels from training: the one method that a comparison asks for by itself."""


@dataclass(frozen=True)
class Variant:
    """One way to adapt: its name, and its chain as tables of a study."""

    name: str
    chain: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True)
class Cell:
    """One training.

    Attributes:
        variant: its name.
        study: with the variant's chain and the seed.
        share: of the labelled patients whose labels are used.
        without: the site that is left out; "" for none.
    """

    variant: str
    study: Study
    share: float = 1.0
    without: str = ""

    @property
    def seed(self) -> int:
        """The study's."""
        return self.study.study.seed

    @property
    def whole(self) -> bool:
        """Whether it is the study itself: all sites, all labels."""
        return self.share == 1.0 and not self.without

    def __str__(self) -> str:
        part = f", without {self.without}" if self.without else "" if self.whole else f", {self.share:.0%} of labels"
        return f"{self.variant}, seed {self.seed}{part}"


class _Table(Config):
    """``[[variant]]`` in a file of variants."""

    name: str = Field(min_length=1, max_length=40, pattern=r"^[A-Za-z0-9][A-Za-z0-9 .+_-]*$")
    adaptation: list[dict[str, Any]] = Field(min_length=1)


class _File(Config):
    """A file of variants."""

    variant: list[_Table] = Field(min_length=1)


def named(text: str) -> tuple[Variant, ...]:
    """Variants from ``"lora,probe,lora+fedprox"``: methods with their defaults; ``+`` makes a chain."""
    found = []
    for name in (part.strip() for part in text.split(",") if part.strip()):
        found.append(Variant(name, tuple({"method": method.strip()} for method in name.split("+"))))
    return tuple(found)


def in_file(path: Path) -> tuple[Variant, ...]:
    """Variants from a TOML file of ``[[variant]]`` tables, each with a ``name`` and its ``[[variant.adaptation]]``.

    Raises:
        StudyError: the file cannot be read, or has an unknown or wrong key.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as failure:
        remedy = "give a TOML file with [[variant]] tables, each with a name and [[variant.adaptation]]"
        raise StudyError(f"cannot be read: {failure}", where=str(path), remedy=remedy) from failure
    found = parse(_File, document, str(path))
    return tuple(Variant(table.name, tuple(table.adaptation)) for table in found.variant)


def demand_distinct(variants: Sequence[Variant]) -> None:
    """Nothing, if there are variants to compare.

    Raises:
        StudyError: there is none, or two have one name.
    """
    names = [variant.name for variant in variants]
    if not names:
        raise StudyError("there is nothing to compare", where="--methods", remedy="such as --methods lora,probe")
    for name in names:
        if names.count(name) > 1:
            raise StudyError(f"'{name}' stands twice", where="--methods", remedy="keep one, or give them other names")


def applied(study: Study, variant: Variant) -> Study:
    """The study with the variant's methods where its own that adapt stood; those that do not adapt stay.

    Raises:
        StudyError: a method is unknown, or the chain makes no sense.
    """
    where = f"variant '{variant.name}'"
    methods = [resolve("adaptations", dict(table), where) for table in variant.chain]
    own = {method.method for method in methods}
    kept = [method for method in study.adaptation if not method.adapts and method.method not in own]
    before = 0
    for method in study.adaptation:
        if method.adapts:
            break
        before += method in kept
    chain = [*kept[:before], *methods, *kept[before:]]
    return _altered(study, where, adaptation=[method.model_dump(mode="json") for method in chain])


def budgeted(study: Study, share: float) -> Study:
    """The study with the labels of a share of the patients, trained for as many steps as with all of them.

    Raises:
        StudyError: no method that hides labels is installed.
    """
    method, key = BUDGET
    where = f"{share:.0%} of labels"
    try:
        resolve("adaptations", {"method": method, key: share}, where)
    except StudyError as failure:
        remedy = "leave the axis 'labels' out: --axes depth,robustness,cost,audit,burden"
        raise StudyError(f"this axis needs the method '{method}': {failure.problem}", where=where, remedy=remedy) from (
            failure
        )
    chain = [other.model_dump(mode="json") for other in study.adaptation]
    training = study.training.model_dump(mode="json")
    if study.training.steps is None:
        training["epochs"] = round((study.training.epochs or 1) / share)
    return _altered(study, where, adaptation=[*chain, {"method": method, key: share}], training=training)


def cells(
    study: Study, variants: Sequence[Variant], seeds: int, axes: Sequence[str], sites: Sequence[str]
) -> tuple[Cell, ...]:
    """All trainings, seed by seed, so that what is timed is timed in turn.

    Raises:
        StudyError: a variant is impossible.
    """
    demand_distinct(variants)
    chosen = {variant.name: applied(study, variant) for variant in variants}
    return tuple(
        cell
        for turn in range(seeds)
        for name, one in chosen.items()
        for cell in _of(name, one.with_seed((one.study.seed + turn) % 2**32), axes, sites)
    )


def demand_few(planned: Sequence[Cell], most: int) -> None:
    """Nothing, if there are at most ``most`` trainings.

    Raises:
        StudyError: saying how many there would be, and for what.
    """
    if len(planned) <= most:
        return
    whole = [cell for cell in planned if cell.whole]
    seeds = len({cell.seed for cell in planned})
    parts = [f"{len(whole)} for {len(whole) // seeds} methods × {seeds} seeds"]
    if labels := sum(cell.share < 1.0 for cell in planned):
        parts.append(f"{labels} for the axis 'labels'")
    if robustness := sum(bool(cell.without) for cell in planned):
        parts.append(f"{robustness} for the axis 'robustness', which leaves out each site in turn")
    raise StudyError(
        f"that would be {len(planned)} trainings, at most {most} are allowed: {', '.join(parts)}",
        where="--most",
        remedy=f"name fewer --methods, --seeds or --axes, or allow it: --most {len(planned)}",
    )


def demand_axes(axes: Sequence[str]) -> None:
    """Nothing, if all are known.

    Raises:
        StudyError: naming the one that is not.
    """
    for axis in axes:
        if axis not in AXES:
            raise StudyError(f"there is no axis '{axis}'", where="--axes", remedy=f"some of {', '.join(AXES)}")


def _of(name: str, study: Study, axes: Sequence[str], sites: Sequence[str]) -> Iterator[Cell]:
    yield Cell(name, study)
    if "labels" in axes:
        for share in SHARES:
            yield Cell(name, budgeted(study, share), share)
    if "robustness" in axes:
        for site in sites:
            yield Cell(name, study, without=site)


def _altered(study: Study, where: str, **sections: Any) -> Study:
    return parse(Study, study.model_dump(mode="json") | sections, where)
