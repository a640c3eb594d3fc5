"""One thing that is wrong with a manifest, an image or a federation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong, where, and what to do; an error stops a study, a warning does not.

    ``line`` counts the manifest's lines from 1, the header included; None where no one line is to blame.
    """

    line: int | None
    column_or_path: str
    what: str
    remedy: str = ""
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        place = ", ".join(part for part in (f"line {self.line}" if self.line else "", self.column_or_path) if part)
        advice = f" ({self.remedy})" if self.remedy else ""
        return f"{place}: {self.what}{advice}" if place else f"{self.what}{advice}"
