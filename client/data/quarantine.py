"""Images that cannot be read, listed by ``polyclinic data check --quarantine``: left out where the list is given."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from polyclinic.client.data.manifest import Row
from polyclinic.client.data.table import read_table
from polyclinic.core.errors import DataError

COLUMN = "path"
ADVICE = (
    "to go on without such images, list them by 'polyclinic data check --quarantine FILE' and give the list to "
    "'simulate --quarantine FILE', or at a site as data.quarantine in site.toml"
)


def kept(rows: Sequence[Row], listed: Path | None) -> tuple[tuple[Row, ...], str]:
    """(the rows whose images the list does not name, what was left out in words: "" if nothing was).

    Args:
        listed: a CSV with a column ``path`` of names as in the manifest; without one, everything is kept.

    Raises:
        DataError: the list cannot be read, or is none.
    """
    if listed is None:
        return tuple(rows), ""
    names = _names(listed)
    left = tuple(row for row in rows if row.name not in names)
    out = len(rows) - len(left)
    return left, f"{out} of {len(rows)} images are in quarantine and left out (listed in {listed})" if out else ""


def advised(failure: DataError) -> DataError:
    """An image's error that says how to go on without it."""
    remedy = f"{failure.remedy}; {ADVICE}" if failure.remedy else ADVICE
    return DataError(failure.problem, where=failure.where, remedy=remedy)


def _names(listed: Path) -> frozenset[str]:
    table = read_table(listed)
    remedy = "write it anew: polyclinic data check MANIFEST.csv --quarantine FILE"
    if table.problems:
        raise DataError(str(table.problems[0]), where=str(listed), remedy=remedy)
    if COLUMN not in table.header:
        raise DataError(f"is no list of images: it has no column '{COLUMN}'", where=str(listed), remedy=remedy)
    place = table.header.index(COLUMN)
    return frozenset(cells[place] for _, cells in table.records)
