"""kill -9 of any process at any moment, also while it writes: the same bits, nothing lost, nothing counted twice."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.live.harness import (
    PATIENCE,
    Pictures,
    Undisturbed,
    demand_receipts,
    demand_sound,
    go,
    running,
    small_study,
    undisturbed,
)
from tests.live.nemesis import Kill, Nemesis, Systemd, as_json, ended, groups, plans, quantile, table

SEED = int(os.environ.get("POLYCLINIC_KILL_SEED", "0")) or random.SystemRandom().randrange(1, 2**31)
"""Set the variable to have the same kills again."""
TARGET = 10.0
"""Seconds in which 95 of 100 kills are recovered from."""


def carnage(
    folder: Path, pictures: Pictures, expected: Undisturbed, sites: list[str], count: int, seed: int
) -> list[Kill]:
    """Runs a study again and again until ``count`` processes were killed."""
    study = small_study("kills", rounds=8, epochs=8)
    wanted = groups(plans(seed, sites, count))
    print(f"\n{count} kills; the same again: POLYCLINIC_KILL_SEED={seed}")
    with running(folder, pictures, sites) as local, Systemd(local):
        nemesis = Nemesis(local)
        while wanted:
            run = go(local, study)
            while wanted and not ended(local, run):
                nemesis.strike(wanted.pop(0), run)
            summary = local.wait(run, PATIENCE)
            demand_sound(local, run, expected, summary)
            demand_receipts(local, run)
    print(table(nemesis.kills))
    print(as_json(seed, nemesis.kills))
    return nemesis.kills


@pytest.fixture(scope="module")
def two(pictures: Pictures, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """What the study comes to at two sites."""
    study = small_study("kills", rounds=8, epochs=8)
    return undisturbed(study, pictures, ["north", "south"], tmp_path_factory.mktemp("undisturbed") / "run")


@pytest.mark.timeout(400)
def test_six_kills(pictures: Pictures, two: Undisturbed, tmp_path: Path) -> None:
    kills = carnage(tmp_path / "f", pictures, two, ["north", "south"], 6, SEED)
    assert len(kills) == 6


@pytest.mark.faults
@pytest.mark.timeout(7200)
def test_a_hundred_kills(pictures: Pictures, two: Undisturbed, tmp_path: Path) -> None:
    kills = carnage(tmp_path / "f", pictures, two, ["north", "south"], 110, SEED)
    assert len(kills) >= 100
    assert quantile([kill.recovered for kill in kills]) <= TARGET
