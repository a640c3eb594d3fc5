"""A label budget for tests, registered as if it were installed; what is installed is tested elsewhere."""

from __future__ import annotations

import hashlib
import math
from importlib.metadata import EntryPoint
from typing import Any, ClassVar, Literal

import pytest
import torch
from pydantic import Field
from torch import Tensor

from polyclinic.core import registry
from polyclinic.core.config import Method
from polyclinic.core.facts import Facts
from polyclinic.models.adaptation import Adaptation, Start


class Budget(Method):
    """Trains with the labels of a share of each site's patients, rounded up."""

    facts: ClassVar[Facts] = Facts(families=("data",), paper="none", exact_private=False, because="patients compete")

    method: Literal["label_budget"] = "label_budget"
    share: float | None = Field(default=None, gt=0.0, le=1.0)

    def build(self) -> Adaptation:
        return Adaptation(families=frozenset({"data"}), select=self._select)

    def _select(self, start: Start, generator: torch.Generator) -> Tensor:
        def place(patient: str) -> bytes:
            return hashlib.sha256(patient.encode()).digest()

        order = sorted({start.pool.patients[i] for i in start.labelled.tolist()}, key=place)
        chosen = set(order[: math.ceil(len(order) * (self.share or 1.0))])
        kept = [i for i in start.labelled.tolist() if start.pool.patients[i] in chosen]
        return torch.tensor(kept, dtype=torch.int64)


@pytest.fixture
def budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """Installs it, where no other is."""
    found: Any = registry._points

    def points(group: str) -> tuple[EntryPoint, ...]:
        held: tuple[EntryPoint, ...] = found(group)
        if group != "adaptations" or any(point.name == "label_budget" for point in held):
            return held
        return (*held, EntryPoint("label_budget", f"{__name__}:Budget", "polyclinic.adaptations"))

    monkeypatch.setattr(registry, "_points", points)
