"""An answer and what answers have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from polyclinic.core.statistics.figures import Figure
from polyclinic.server.report import words

Level = Literal["good", "bad", "open", "unknown", "note"]
NONE_SHOWN = "no difference that these data can show"
FEW = 5
"""Sites from which it is said how much a choice among them owes to chance."""


@dataclass(frozen=True)
class Finding:
    """An answer: the question, how it is marked, the answer in one sentence, and what it rests on."""

    topic: str
    level: Level
    text: str
    more: tuple[str, ...] = ()


def without(name: str, found: Mapping[str, Figure]) -> tuple[str, ...]:
    """Which sites have no figure of that name, and why."""
    rows = [f"{site} ({figure.why})" for site, figure in found.items() if figure.value is None]
    return (f"No {name}: {words.listing(rows)}.",) if rows else ()
