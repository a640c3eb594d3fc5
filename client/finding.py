"""One thing that was looked at, and how it was found."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from polyclinic.core.errors import PolyclinicError

State = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """What ``name`` is like. An error keeps the site from taking part; a warning may, one day.

    Attributes:
        sentence: how it is.
        remedy: what to do; "" if it is well.
    """

    name: str
    state: State
    sentence: str
    remedy: str = ""


def looked_at(name: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """What ``look`` finds; an error of ours is a finding, too."""
    try:
        yield from look()
    except PolyclinicError as failure:
        place = f"{failure.where}: " if failure.where else ""
        yield Finding(name, "error", f"{place}{failure.problem}", failure.remedy)
    except OSError as failure:
        yield Finding(name, "error", f"{failure.filename}: {failure.strerror}", "restore it, or mend its permissions")
