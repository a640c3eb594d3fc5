"""What a release of noised figures is to those who stand behind it: the little from which every epsilon follows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from polyclinic.core.errors import RunError

Unit = Literal["patient", "image"]
"""What a site protects."""
Protected = Literal["patient", "image", "site"]
"""Whose vector an event bounds: noise at the server is for whole sites."""
Generator = Literal["system", "simulated"]
Mechanism = Literal["gaussian", "poisson_gaussian"]
ADJACENCY = "add or remove one"
"""Two cohorts are neighbours if one is the other with a unit more or less. Where sizes are known (a rate is a number of
units divided by it), "removed" reads: drawn as before, and adding nothing."""


@dataclass(frozen=True)
class Event:
    """``steps`` sums of vectors, one a unit, each of norm at most 1, to which Gaussian noise was added.

    Attributes:
        mechanism: "gaussian": every unit is in each sum; "poisson_gaussian": each is in by itself with ``rate``.
        noise: standard deviation of the noise in each coordinate, in multiples of the norm's bound.
        rate: 0 < rate ≤ 1.
        steps: how many such sums were released, each with noise of its own.
        unit: whose vector is bounded.
    """

    mechanism: Mechanism
    noise: float
    rate: float = 1.0
    steps: int = 1
    unit: Protected = "patient"

    def __post_init__(self) -> None:
        sound = (
            self.mechanism in get_args(Mechanism)
            and self.unit in get_args(Protected)
            and type(self.steps) is int
            and self.steps >= 1
            and _number(self.noise)
            and _number(self.rate)
            and self.rate <= 1.0
            and (self.mechanism == "poisson_gaussian" or self.rate == 1.0)
        )
        if not sound:
            raise RunError(f"is no privacy event: {asdict(self)}", where="privacy")

    def document(self) -> dict[str, Any]:
        """As JSON data; ``read`` gives it back."""
        return asdict(self)

    @staticmethod
    def read(document: Mapping[str, Any]) -> Event:
        """Raises RunError for whatever is no event."""
        try:
            fields = dict(document)
            for name in ("noise", "rate"):  # canonical JSON writes whole numbers without a point
                fields[name] = float(fields[name]) if type(fields[name]) in (int, float) else None
            return Event(**fields)
        except (TypeError, KeyError, ValueError, OverflowError) as failure:
            raise RunError("is no privacy event", where="privacy") from failure


def _number(value: object) -> bool:
    return type(value) is float and math.isfinite(value) and value > 0.0
