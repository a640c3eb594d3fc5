"""A live federation against Flower's own: the price of a round beyond training, and bytes on the wire.

Both sides run in turn on this machine, every process the one that is used for real, with TLS and registered nodes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from polyclinic.core.config import parse
from polyclinic.core.study import Study
from polyclinic.core.update import Tensors, encode
from polyclinic.models import network
from polyclinic.server.governance.runs import Run
from polyclinic.simulations.bench import figure
from polyclinic.simulations.bench.figure import Measured, at_most
from polyclinic.simulations.bench.opponent import Times, stock
from polyclinic.simulations.bench.relay import Relay, relays
from polyclinic.simulations.centres import Centre, write_centres
from polyclinic.simulations.live import Local, federation, simple_run

GOAL_NOOP, GOAL_TRAINING, GOAL_WIRE = 0.5, 0.3333, 1.02
SITES = ("site000", "site001")
PATIENCE = 600.0
"""Seconds that a run may take."""
RANKS = {1: ("attention", 27), 16: ("attention", 434), 64: ("all", 772)}
"""MB of an update → targets and rank of LoRA that make it so large on the embedded backbone."""


def noop(rounds: int, repeats: int) -> Measured:
    """Seconds of a round without training, 1 MB, two sites, from round 2 on: ours ÷ Flower's FedAvg app."""
    ours: list[float] = []
    theirs: list[float] = []
    busy = os.getloadavg()[0]
    agreed = study(rounds, 1)
    values = len(encode(initial(agreed))) // 4
    with TemporaryDirectory() as place, ends_well():
        manifests = centres(Path(place, "images"), 12)
        for turn in range(repeats):
            with stock(Path(place, f"stock{turn}"), {site: {"site": site} for site in SITES}) as flower:
                theirs += flower.run(PATIENCE, values=values, rounds=rounds).rounds()[1:]
            with idle(Path(place, f"ours{turn}"), manifests) as local:
                ours += live_times(simple_run(local, agreed, PATIENCE)[0]).rounds()[1:]
    return loaded(at_most("live, seconds of a no-op round of 1 MB", ours, theirs, GOAL_NOOP), busy)


def training(patients: int, rounds: int, repeats: int) -> Measured:
    """Seconds of a round beyond its slowest site's work, LoRA, from round 2 on: ours ÷ Flower's FedAvg app."""
    ours: list[float] = []
    theirs: list[float] = []
    busy = os.getloadavg()[0]
    agreed = figure.study(rounds)
    with TemporaryDirectory() as place, ends_well():
        manifests = centres(Path(place, "images"), patients)
        weights = figure.work(manifests[SITES[0]], rounds).weights
        nodes = {site: {"site": site, "manifest": str(manifest)} for site, manifest in manifests.items()}
        for turn in range(repeats):
            with stock(Path(place, f"stock{turn}"), nodes) as flower:
                theirs += flower.run(PATIENCE, weights=str(weights), rounds=rounds).beyond()[1:]
            with federation(Path(place, f"ours{turn}"), manifests) as local:
                ours += live_times(simple_run(local, agreed, PATIENCE)[0]).beyond()[1:]
    found = at_most("live, seconds of a round beyond the slowest site's work", ours, theirs, GOAL_TRAINING)
    return loaded(found, busy)


def wire(megabytes: int, rounds: int) -> Measured:
    """Bytes on the wire of a whole run ÷ its updates and instructions, both ports: the worst site and direction."""
    agreed = study(rounds, megabytes)
    size = len(encode(initial(agreed)))
    with TemporaryDirectory() as place, ends_well():
        manifests = centres(Path(place, "images"), 12)
        with counted(Path(place, "ours"), manifests) as (local, found):
            local.publish(agreed)
            for site in local.sites:
                local.approve(agreed, site)
            local.approved(agreed)
            before = {site: passed(pair) for site, pair in found.items()}
            local.wait(local.run(agreed), PATIENCE)
            ratios: dict[str, float] = {}
            for site, pair in found.items():
                up, down = (after - then for after, then in zip(passed(pair), before[site], strict=True))
                ratios |= {f"{site} up": up / (rounds * size), f"{site} down": down / ((rounds + 1) * size)}
    worst = max(ratios.values())
    detail: dict[str, float | list[float]] = {"update": size, **{way: round(r, 4) for way, r in ratios.items()}}
    name = f"live, bytes on the wire ÷ {megabytes} MB updates"
    return Measured(name, round(worst, 4), f"<= {GOAL_WIRE}", worst <= GOAL_WIRE, detail=detail)


def loaded(found: Measured, busy: float) -> Measured:
    """With the machine's load in the minute before the benchmark began: what else ran then may run still."""
    return replace(found, detail={**found.detail, "load before": round(busy, 2)})


def study(rounds: int, megabytes: int) -> Study:
    """LoRA on the embedded backbone, of a rank at which an update takes so many MB."""
    document = figure.study(rounds).model_dump(mode="json")
    targets, rank = RANKS[megabytes]
    document["adaptation"][0] |= {"targets": targets, "rank": rank}
    return parse(Study, document, "bench")


def initial(agreed: Study) -> Tensors:
    """What round 1 starts from."""
    return network.build(agreed).read()


def centres(folder: Path, patients: int) -> dict[str, Path]:
    """Site → its manifest, which lists nobody else's images."""
    return {site: write_centres(folder / site, (Centre(site, patients),), seed=1) for site in SITES}


def untrained(local: Local, site: str) -> None:
    """Starts a site whose agent answers without training."""
    command = [sys.executable, "-m", "polyclinic.simulations.bench.noop", "site", str(local.sites[site].folder)]
    with (local.folder / f"{site}.log").open("ab") as log:
        local.processes[site] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)


@contextmanager
def idle(folder: Path, manifests: Mapping[str, Path]) -> Iterator[Local]:
    """A running federation whose sites answer without training."""
    with federation(folder, {}) as local:
        for site, manifest in manifests.items():
            local.join(site, manifest)
            untrained(local, site)
        yield local


@contextmanager
def counted(folder: Path, manifests: Mapping[str, Path]) -> Iterator[tuple[Local, dict[str, list[Relay]]]]:
    """The same, each site behind relays of its own: (federation, site → relays)."""
    with federation(folder, {}) as local:
        at = local.coordinator.settings
        with relays(*[at.fleet_port, at.governance_port] * len(manifests)) as found:
            pairs = {site: found[2 * i : 2 * i + 2] for i, site in enumerate(manifests)}
            for site, manifest in manifests.items():
                home = local.join(site, manifest)
                ports = {"fleet_port": pairs[site][0].port, "governance_port": pairs[site][1].port}
                there = home.settings.coordinator.model_copy(update=ports)
                home.config.write_text(home.settings.model_copy(update={"coordinator": there}).render())
                untrained(local, site)
            yield local, pairs


def passed(pair: list[Relay]) -> tuple[int, int]:
    """(up, down) so far."""
    return sum(relay.up for relay in pair), sum(relay.down for relay in pair)


def live_times(run: Run) -> Times:
    """When each round was committed, and what its slowest site worked, as the run's folder tells."""
    folder = Path(run.folder)
    entries = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    committed = [entry["time"] for entry in entries if entry["kind"] in ("start", "round")]
    records = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    return Times(committed, [max(site["seconds"] for site in record["sites"].values()) for record in records])


@contextmanager
def ends_well() -> Iterator[None]:
    """Has SIGTERM end the block as Ctrl-C does, so that every process that was begun ends, too."""

    def leave(number: int, frame: Any) -> None:
        sys.exit(128 + number)

    heard = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, leave) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
