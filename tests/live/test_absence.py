"""Sites that are gone, too few of them, a run that somebody stops: nobody waits in vain, nothing is lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from polyclinic.server.governance.runs import Run
from polyclinic.server.live.home import opened
from polyclinic.simulations.live import Local, until
from tests.live.harness import (
    PATIENCE,
    Pictures,
    counted,
    cut_off,
    demand_receipts,
    demand_sound,
    go,
    in_round,
    live_json,
    running,
    small_study,
    state,
    stopped,
    undisturbed,
)

pytestmark = pytest.mark.faults

SITES = ["north", "south", "west"]
End = Callable[[Local, str], None]
"""A site stops in order, which the coordinator learns at once, or dies, which it learns after a minute."""


@pytest.fixture(scope="module")
def federation(pictures: Pictures, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    """Three sites, none of which is waited for longer than four seconds after it was heard of last."""
    with running(tmp_path_factory.mktemp("absence"), pictures, SITES, absence="4 s") as local:
        yield local


def row(run: Run, site: str) -> dict[str, object]:
    """What is shown of a site."""
    found: dict[str, object] = live_json(run).get("sites", {}).get(site, {})
    return found


@pytest.mark.parametrize("end", [stopped, pytest.param(cut_off, marks=pytest.mark.faults)])
def test_rounds_go_on_without_a_site_until_it_is_back(federation: Local, end: End) -> None:
    study = small_study("dead", rounds=500, epochs=2, quorum=0.6)
    run = go(federation, study)
    in_round(run, 2)
    end(federation, "west")
    gone, begun = live_json(run)["round"], time.monotonic()
    in_round(run, gone + 2)
    print(f"two rounds after a site's end: {time.monotonic() - begun:.0f} s")
    assert row(run, "west")["state"] in ("away", "overdue")
    until(lambda: len(counted(Path(run.folder))) >= gone + 2, PATIENCE, "rounds")
    federation.start_site("west")
    folder = Path(run.folder)
    until(lambda: "west" in counted(folder)[max(counted(folder))], PATIENCE, "the site that was away")
    with opened(federation.coordinator) as registry:
        registry.set_state(run.name, "stopped", "by the coordinator")
    until(lambda: live_json(run)["phase"] == "stopped", 20.0, "the stop")
    told = counted(folder)
    missed = [number for number, sites in told.items() if "west" not in sites]
    assert missed
    assert min(missed) <= gone + 1
    assert all({"north", "south"} <= set(sites) for sites in told.values())
    demand_sound(federation, run, None)
    demand_receipts(federation, run)


@pytest.mark.parametrize("end", [stopped, pytest.param(cut_off, marks=pytest.mark.faults)])
def test_fewer_than_the_quorum_pause_the_run_until_they_are_back(
    federation: Local, pictures: Pictures, tmp_path: Path, end: End
) -> None:
    study = small_study("pause", rounds=5, epochs=2, quorum=1.0)
    expected = undisturbed(study, pictures, SITES, tmp_path / "simulated")
    run = go(federation, study)
    in_round(run, 2)
    end(federation, "west")
    until(lambda: live_json(run).get("phase") in ("paused", "waiting"), 90.0, "the pause")
    until(lambda: state(federation, run)[0] == "paused", 60.0, "the pause in the registry")
    told, (_, why) = live_json(run), state(federation, run)
    assert told["phase"] == "paused"
    assert "west" in told["why"]
    assert "west" in why
    federation.start_site("west")
    summary = federation.wait(run, 2 * PATIENCE)
    demand_sound(federation, run, expected, summary)
    demand_receipts(federation, run)


def test_stopped_and_resumed_gives_the_same_bits(federation: Local, pictures: Pictures, tmp_path: Path) -> None:
    study = small_study("stop", rounds=5, epochs=2)
    expected = undisturbed(study, pictures, SITES, tmp_path / "simulated")
    run = go(federation, study)
    in_round(run, 2)
    with opened(federation.coordinator) as registry:
        registry.set_state(run.name, "stopped", "by the coordinator")
    until(lambda: live_json(run)["phase"] == "stopped", 20.0, "the stop")
    time.sleep(2.0)
    assert live_json(run)["phase"] == "stopped"
    committed = len(counted(Path(run.folder)))
    assert committed < 5
    with opened(federation.coordinator) as registry:
        registry.set_state(run.name, "wanted", "")
    demand_sound(federation, run, expected, federation.wait(run, PATIENCE))
    demand_receipts(federation, run)
