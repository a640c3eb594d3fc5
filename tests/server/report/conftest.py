"""Runs that never were: seeded answers of models that learn, counted by the same statistics as real ones."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.random import Generator

from polyclinic.core.statistics.figures import figures, reliability
from polyclinic.core.statistics.outcome import Outcome, tally
from polyclinic.server.report import data
from polyclinic.server.report.data import Evidence

Json = dict[str, Any]
METRICS = ("auroc", "accuracy", "balanced_accuracy", "nll", "brier", "ece", "ece_adaptive")
STUDY = """
[study]
name = "{name}"
description = "Pneumonia or not, on chest X-rays."
seed = 7
[data]
image_size = 128
[data.columns]
path = "path"
[task]
method = "classification"
kind = "{kind}"
classes = ["normal", "pneumonia"]
[backbone]
reference = "embedded:vit-tiny"
[[adaptation]]
method = "lora"
rank = 8
[[adaptation]]
method = "augment"
flip = true
[training]
learning_rate = 0.001
[rounds]
count = {rounds}
deadline = "14400 s"
"""


@dataclass(frozen=True)
class Centre:
    """A site that never was: how many patients judge it, how its model does, and what it lets out."""

    patients: int = 160
    skill: float = 2.0
    alone: float = 1.2
    offset: float = 0.0
    stretch: float = 1.0
    prevalence: float = 0.4
    withheld: bool = False
    psi: float = 0.05
    p_value: float | None = 0.4


def answers(rng: Generator, centre: Centre, skill: float, patients: int) -> Outcome:
    """What a model of that skill says of that many patients: probabilities right but for offset and stretch."""
    truth = (rng.random(patients) < centre.prevalence).astype(np.int64)
    seen = rng.normal(skill * (truth - 0.5), 1.0)
    prior = np.log(max(centre.prevalence, 0.02) / max(1 - centre.prevalence, 0.02))
    logit = centre.stretch * (skill * seen + prior) + centre.offset
    nll = np.logaddexp(0.0, np.where(truth == 1, -logit, logit))
    return tally("binary", 1 / (1 + np.exp(-logit)), truth, [str(i) for i in range(patients)], nll)


def judged(rng: Generator, outcome: Outcome | None) -> Json:
    """Figures as a site's row holds them."""
    if outcome is None:
        why = {"value": None, "low": None, "high": None, "why": "fewer than 10 patients"}
        return dict.fromkeys(METRICS, why)
    return {key: figure.json() for key, figure in figures(outcome, rng).items()}


def bins(outcome: Outcome | None) -> list[Json]:
    """Reliability bins that hold anything."""
    names = ("low", "high", "count", "confidence", "frequency")
    return [dict(zip(names, b, strict=True)) for b in reliability(outcome) if b.size] if outcome else []


def together(rng: Generator, outcomes: Sequence[Outcome | None]) -> tuple[Json | None, list[Json]]:
    """Figures and bins pooled over those that told."""
    told = [outcome for outcome in outcomes if outcome is not None]
    total = sum(told[1:], start=told[0]) if told else None
    return (judged(rng, total) if total else None), bins(total)


def told(rng: Generator, centres: Mapping[str, Centre], growth: float, patients: float) -> dict[str, Outcome | None]:
    """Every site's outcome under a model that has ``growth`` of its skill."""
    return {
        name: None if c.withheld else answers(rng, c, c.skill * growth, int(c.patients * patients))
        for name, c in centres.items()
    }


def made_round(rng: Generator, centres: Mapping[str, Centre], number: int, of: int, out: Mapping[str, str]) -> Json:
    """One line of rounds.jsonl."""
    there = {name: centre for name, centre in centres.items() if name not in out}
    growth = 1 - 0.93 ** (8 * (number - 1) / max(of, 3))
    incoming, fitted = told(rng, there, 0.05 + 1.8 * growth, 0.5), told(rng, there, 0.5 + growth, 0.5)
    sites = {
        name: {
            "incoming": judged(rng, incoming[name]),
            "fitted": judged(rng, fitted[name]),
            "reliability": bins(incoming[name]),
            "weight": centre.patients,
            "seconds": 1.5,
        }
        for name, centre in there.items()
    }
    found, reliable = together(rng, list(incoming.values()))
    pooled = {"incoming": found, "fitted": together(rng, list(fitted.values()))[0], "reliability": reliable}
    shift = {name: made_shift(centre) for name, centre in there.items()} if number == 1 else None
    moved = {"bytes_up": 93_000 * len(there), "bytes_down": 91_000 * len(centres)}
    ends = {"base": f"{number:064x}", "result": f"{number + 1:064x}"}
    head = {"round": number, "seconds": 3.2, "worst_site": None, "excluded": dict(out)}
    return {**head, **moved, **ends, "sites": sites, "pooled": pooled, "shift": shift}


def made_shift(centre: Centre) -> Json:
    """How far a centre's images lie from the others'."""
    row: Json = {
        "frechet": centre.psi / 4, "mmd2": centre.psi / 8, "p_value": centre.p_value,
        "intensity_psi": centre.psi, "prevalence": [1 - centre.prevalence, centre.prevalence],
    }  # fmt: skip
    return dict.fromkeys(row, None) | {"why": "withheld: too few patients"} if centre.withheld else row


def made_site(rng: Generator, centre: Centre, outcomes: Mapping[str, Outcome | None], baselines: bool) -> Json:
    """One site's object in summary.json."""
    sizes = {"train": centre.patients * 2, "val": centre.patients // 2, "test": centre.patients}
    row: Json = {
        "n": {split: {"images": 2 * n, "patients": n} for split, n in sizes.items()},
        "metrics": {split: judged(rng, outcome) for split, outcome in outcomes.items()},
        "reliability": {split: bins(outcome) for split, outcome in outcomes.items()},
        "shift": made_shift(centre),
    }
    for name, skill in {"alone": centre.alone, "central": centre.skill * 1.05}.items() if baselines else ():
        model = {s: None if centre.withheld else answers(rng, centre, skill, sizes[s]) for s in ("val", "test")}
        row[name] = {split: judged(rng, outcome) for split, outcome in model.items()}
    return row


@dataclass(frozen=True)
class Made:
    """The contents of a run folder."""

    study: str
    rounds: list[Json]
    summary: Json

    @property
    def evidence(self) -> Evidence:
        """As the report reads it."""
        return data.evidence(tomllib.loads(self.study), self.summary, self.rounds, self.study)

    def write(self, folder: Path) -> Path:
        """Lays the files down."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "study.toml").write_text(self.study)
        (folder / "rounds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in self.rounds))
        (folder / "summary.json").write_text(json.dumps(self.summary))
        return folder


def made(
    centres: Mapping[str, Centre],
    *,
    rounds: int,
    baselines: bool = True,
    excluded: Mapping[int, Mapping[str, str]] | None = None,
    mapped: bool = True,
    seed: int = 0,
    kind: str = "binary",
) -> Made:
    """A run of ``rounds`` over ``centres``; ``excluded`` is round → site → why."""
    rng, out = np.random.default_rng(seed), excluded or {}
    lines = [made_round(rng, centres, i, rounds, out.get(i, {})) for i in range(1, rounds + 1)]
    final = {split: told(rng, centres, 1.0, share) for split, share in (("val", 0.5), ("test", 1.0))}
    pooled = {split: together(rng, list(found.values())) for split, found in final.items()}
    sites = {
        name: made_site(rng, centre, {split: found[name] for split, found in final.items()}, baselines)
        for name, centre in centres.items()
    }
    seen = [name for name, centre in centres.items() if not centre.withheld]
    spots = {name: (rng.normal(0, 0.1, 2) + 4 * centres[name].psi * np.array([0.5, 0.2])).tolist() for name in seen}
    summary = {
        "polyclinic_version": "0.1.0", "study": "made", "study_digest": "ab" * 32, "seed": 7, "engine": "inprocess",
        "rounds": rounds, "seconds": 3.2 * rounds, "peak_rss_mb": 612.4, "adapter_sha256": "cd" * 32,
        "bytes_up": sum(line["bytes_up"] for line in lines) + 9000 * len(centres),
        "bytes_down": sum(line["bytes_down"] for line in lines) + 91_000 * len(centres),
        "pooled": {split: metrics for split, (metrics, _) in pooled.items()},
        "pooled_reliability": {split: found for split, (_, found) in pooled.items()},
        "worst_site": None, "excluded": {}, "ledger_head": "ef" * 32, "map": spots if mapped else None, "sites": sites,
    }  # fmt: skip
    return Made(STUDY.format(name="made", kind=kind, rounds=rounds), lines, summary)


FIVE = {
    "city-general": Centre(patients=320, skill=2.2, alone=1.0, psi=0.06, p_value=0.3),
    "harbour": Centre(patients=200, skill=1.2, alone=1.1, psi=0.34, p_value=1e-6, offset=1.1),
    "lakeside": Centre(patients=90, skill=2.0, alone=1.5, psi=0.16, p_value=0.02, stretch=1.0),
    "rural-clinic": Centre(patients=40, prevalence=0.0, psi=0.08, p_value=0.6),
    "village-practice": Centre(patients=8, withheld=True, p_value=None),
}
LATE = "no answer within 14400 s"


@pytest.fixture(scope="session")
def of_kind() -> Callable[[str], Made]:
    """Two sites whose task is said to be multiclass or multilabel."""
    return lambda kind: made({"north": Centre(), "south": Centre()}, rounds=1, kind=kind)


@pytest.fixture(scope="session")
def five() -> Made:
    """Five sites with baselines: one has one class only, one withholds everything, one missed round 4."""
    return made(FIVE, rounds=10, excluded={4: {"harbour": LATE}}, seed=1)


@pytest.fixture(scope="session")
def two() -> Made:
    """Two sites, one round, no baselines, no map."""
    return made({"north": Centre(), "south": Centre(skill=1.5)}, rounds=1, baselines=False, mapped=False, seed=2)


@pytest.fixture(scope="session")
def fifty() -> Made:
    """Fifty sites, some with names of 64 characters."""
    rng = np.random.default_rng(3)
    centres = {}
    for i in range(50):
        name = f"site-{i:02d}" if i % 5 else f"university-hospital-of-a-town-with-a-rather-long-name-ward-{i:05d}"
        base = Centre(patients=int(rng.integers(20, 160)), skill=rng.uniform(1, 2.4), alone=rng.uniform(0.6, 1.8))
        centres[name] = replace(base, psi=float(rng.exponential(0.12)), p_value=float(rng.random() ** 4))
    return made(centres, rounds=2, seed=3)
