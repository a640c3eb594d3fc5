"""What would stop a federation, or make its figures poor, though every line of the manifest is in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from polyclinic.client.data.manifest import Row, sites
from polyclinic.client.data.problem import Problem

SMALLEST_CELL = 10
"""Patients below which a site's figures are withheld by default."""


def federation_problems(rows: Sequence[Row], batch_size: int, alone: bool = False) -> tuple[Problem, ...]:
    """Problems of the sites, in the order of their names.

    Args:
        batch_size: images of one training batch.
        alone: the manifest is one hospital's own, so that one site is as it should be.
    """
    by_site = sites(rows)
    problems = [problem for site, held in by_site.items() for problem in _site_problems(site, held, batch_size)]
    if len(by_site) == 1 and not alone:
        remedy = "list the images of another; for one hospital's own manifest, check with --one-site"
        problems.append(Problem(None, "", f"'{rows[0].site}' is the only site, and a federation needs two", remedy))
    folded: dict[str, str] = {}
    for site in by_site:
        other = folded.setdefault(site.casefold(), site)
        if other != site:
            what = f"sites '{other}' and '{site}' differ in nothing but capitals"
            problems.append(_warning("", what, "write one of them throughout, if they are one site"))
    return tuple(problems)


def _site_problems(site: str, rows: Sequence[Row], batch_size: int) -> Iterator[Problem]:
    place = f"site '{site}'"
    training = [row for row in rows if row.split == "train"]
    labels = sorted({row.label for row in training})
    if not training:
        yield Problem(None, place, "has no training images", "give it some, or leave the site out")
    elif len(training) < batch_size:
        what = f"has {_count(len(training), 'training image')} where a batch has {batch_size}"
        yield _warning(place, what, "it trains on one smaller batch; training.batch_size sets the size")
    if labels != [""] and len({row.target for row in training}) == 1:
        remedy = "it can train, but its own figures for telling classes apart are undefined"
        yield _warning(place, f"trains on one class only ({', '.join(labels)})", remedy)
    for split in ("val", "test"):
        patients = {row.patient for row in rows if row.split == split}
        if not patients:
            yield _warning(place, f"has no {split} images", f"it adds nothing to the {split} figures")
        elif split == "val" and len(patients) < SMALLEST_CELL:
            remedy = f"its own figures are withheld below {SMALLEST_CELL}"
            yield _warning(place, f"has {_count(len(patients), 'patient')} in val", remedy)


def _warning(place: str, what: str, remedy: str) -> Problem:
    return Problem(None, place, what, remedy, "warning")


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
