"""A site whose clock is ten minutes off: told early and by how much, not waited for, back once it is right."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from polyclinic.client.outbox import Inbox
from polyclinic.server.live.home import opened
from polyclinic.simulations.live import PROGRAM, until
from tests.live.harness import (
    PATIENCE,
    Pictures,
    counted,
    demand_sound,
    go,
    in_round,
    injected,
    live_json,
    prepared,
    small_study,
    started,
    statuses,
    surroundings,
)

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("seconds", [600, pytest.param(-600, marks=pytest.mark.faults)])
def test_a_clock_that_is_ten_minutes_off(pictures: Pictures, tmp_path: Path, seconds: int) -> None:
    clock = tmp_path / "clock"
    clock.write_text("0")
    shifted = injected(clock=clock)
    said = f"{abs(seconds)} s {'ahead of' if seconds > 0 else 'behind'} the coordinator's"
    with prepared(tmp_path / "f", absence="5 s") as local:
        for site in ("north", "south"):
            local.join(site, pictures.of(site))
        local.start_site("north")
        started(local, "south", environment=shifted)
        run = go(local, small_study("clock", rounds=500, quorum=0.5))
        folder = Path(run.folder)
        in_round(run, 2)

        clock.write_text(str(seconds))
        log = local.sites["south"].logs / "link.log"
        until(lambda: said in log.read_text(), 30.0, "the link's word")
        until(
            lambda: abs((statuses(local)["south"][0]["skew"] or 0) - seconds) < 3, 30.0, "the coordinator's knowledge"
        )
        at = len(counted(folder))
        until(lambda: len(counted(folder)) >= at + 4, PATIENCE, "the others' rounds")
        assert "south" not in counted(folder)[max(counted(folder))]
        assert live_json(run)["sites"]["south"]["state"] in ("away", "overdue")
        doctor = subprocess.run(
            [PROGRAM, "site", "doctor", "--dir", str(local.sites["south"].folder)],
            env=surroundings(shifted), capture_output=True, text=True, check=False,
        )  # fmt: skip
        told = re.search(r"([\d.]+) s (ahead of|behind)", doctor.stdout)
        assert told is not None, doctor.stdout
        assert abs(float(told[1]) - abs(seconds)) < 5

        clock.write_text("0")
        until(lambda: "south" in counted(folder)[max(counted(folder))], PATIENCE, "the site's return")
        with opened(local.coordinator) as registry:
            registry.set_state(run.name, "stopped", "by the coordinator")
        until(lambda: live_json(run)["phase"] == "stopped", 20.0, "the stop")
        demand_sound(local, run, None)
        assert not Inbox(local.sites["south"].inbox).alarms()
