"""What a benchmark says, and the federation that most of them run."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

from polyclinic.core import study as studies
from polyclinic.core.study import Study
from polyclinic.simulations.bench.bare import Work
from polyclinic.simulations.centres import Centre, write_centres


@dataclass(frozen=True)
class Measured:
    """One figure of one run: a ratio (measured side by side) or a value, its goal, and what it was measured on."""

    name: str
    value: float
    goal: str
    reached: bool
    unit: str = "ratio"
    detail: dict[str, float | list[float]] = field(default_factory=dict)
    on: str = ""

    def line(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self) | {"on": self.on or machine()})


def machine() -> str:
    """Processor, cores that may be used, Python and torch."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{platform.machine()}, {cores} cores, Python {platform.python_version()}, torch {torch.__version__}"


def at_most(name: str, ours: list[float], theirs: list[float], goal: float) -> Measured:
    """The ratio of the medians of two lists that were measured in turn."""
    ratio = median(ours) / median(theirs)
    detail: dict[str, float | list[float]] = {
        "ours": [round(x, 3) for x in ours],
        "theirs": [round(x, 3) for x in theirs],
    }
    return Measured(name, round(ratio, 4), f"<= {goal}", ratio <= goal, detail=detail)


def at_least(name: str, theirs: list[float], ours: list[float], goal: float, **more: float) -> Measured:
    """How many times faster we are: the ratio of the medians of two lists that were measured in turn."""
    ratio = median(theirs) / median(ours)
    detail: dict[str, float | list[float]] = {
        "ours": [round(x, 3) for x in ours],
        "theirs": [round(x, 3) for x in theirs],
    }
    detail.update(more)
    return Measured(name, round(ratio, 4), f">= {goal}", ratio >= goal, detail=detail)


def federation(folder: Path, sites: int, patients: int) -> Path:
    """A manifest of ``sites`` synthetic centres with ``patients`` patients each."""
    return write_centres(folder, tuple(Centre(f"site{i:03d}", patients) for i in range(sites)), seed=1)


def study(rounds: int) -> Study:
    """LoRA on the embedded backbone, nothing else."""
    return studies.loads(
        f"""
[study]
name = "bench"
[data]
colour = "grey"
[task]
method = "classification"
classes = ["normal", "lesion"]
[[adaptation]]
method = "lora"
[training]
batch_size = 16
[rounds]
count = {rounds}
""",
        "bench",
    )


def work(manifest: Path, rounds: int) -> Work:
    """The same for the bare loop."""
    from polyclinic import models

    weights = Path(models.__path__[0]) / "embedded" / "vit_tiny.safetensors"
    return Work(manifest, weights, rounds, 16, 8, 16.0, 1e-3, ("normal", "lesion"))
