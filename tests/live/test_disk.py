"""A disk that fills up in the middle of a run, at a site or the coordinator: said clearly, survived, nothing lost."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from polyclinic.server.live.home import opened
from polyclinic.simulations.live import until
from tests.live.harness import (
    PATIENCE,
    Pictures,
    counted,
    demand_receipts,
    demand_sound,
    go,
    in_round,
    live_json,
    logs,
    prepared,
    small_study,
    state,
    undisturbed,
)
from tests.live.processes import roles

pytestmark = pytest.mark.faults

SITES = ["north", "south"]


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[None]:
    """A file system of its own at ``folder``."""
    folder.mkdir(parents=True)
    size = f"size={megabytes}m,mode=0755"
    mount = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)]
    done = subprocess.run(mount, check=False, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a small disk cannot be made here: {done.stderr.strip() or 'mount failed'}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Takes all that is free on a disk, down to the last byte."""
    path = folder / "filler"
    with path.open("ab", buffering=0) as out:
        for size in (2**20, 2**12, 1):
            with suppress(OSError):
                while True:
                    out.write(bytes(size))
    return path


def test_a_sites_disk_is_full(pictures: Pictures, tmp_path: Path) -> None:
    folder = tmp_path / "f"
    with small_disk(folder / "south", 12), prepared(folder) as local:
        for site in SITES:
            local.join(site, pictures.of(site))
            local.start_site(site)
        study = small_study("full site", rounds=500, quorum=0.5)
        run = go(local, study)
        in_round(run, 2)
        filler = fill(local.sites["south"].folder)
        at = len(counted(Path(run.folder)))
        until(lambda: len(counted(Path(run.folder))) >= at + 4, PATIENCE, "rounds of the others")
        late = counted(Path(run.folder))
        assert "south" not in late[max(late)]
        before = roles(local, "south")
        assert any(
            "cannot write its book" in event["text"] and event["site"] == "south" for event in live_json(run)["events"]
        )
        assert (
            "disk is full" in logs(local.sites["south"].folder)
            or "cannot be written" in (folder / "south.log").read_text()
        )
        time.sleep(6.0)
        assert roles(local, "south") == before, "its processes die"
        filler.unlink()
        until(lambda: "south" in (told := counted(Path(run.folder)))[max(told)], 120.0, "the site's return")
        with opened(local.coordinator) as registry:
            registry.set_state(run.name, "stopped", "by the coordinator")
        until(lambda: live_json(run)["phase"] == "stopped", 20.0, "the stop")
        demand_sound(local, run, None)
        demand_receipts(local, run, 60.0)


def test_the_coordinators_disk_is_full(pictures: Pictures, tmp_path: Path) -> None:
    folder = tmp_path / "f"
    study = small_study("full coordinator", rounds=6, epochs=2)
    expected = undisturbed(study, pictures, SITES, tmp_path / "simulated")
    with small_disk(folder / "coordinator", 24), prepared(folder) as local:
        for site in SITES:
            local.join(site, pictures.of(site))
            local.start_site(site)
        run = go(local, study)
        in_round(run, 2)
        filler = fill(local.coordinator.folder)
        until(lambda: live_json(run)["phase"] == "paused" or state(local, run)[0] == "paused", 60.0, "the pause")
        time.sleep(8.0)
        told = live_json(run)
        assert told["phase"] == "paused", told
        assert "the disk is full: free " in told["why"], told["why"]
        here = roles(local, "coordinator")
        time.sleep(5.0)
        assert roles(local, "coordinator") == here, "its processes die"
        filler.unlink()
        summary = local.wait(run, PATIENCE)
        demand_sound(local, run, expected, summary)
        demand_receipts(local, run, 60.0)
        assert os.statvfs(local.coordinator.folder).f_bavail > 0
