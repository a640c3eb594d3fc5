"""Wall time of a simulation against a bare PyTorch loop that does the same work, and of two workers against one."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from polyclinic.simulations.bench import bare
from polyclinic.simulations.bench.figure import Measured, at_most, federation, study, work
from polyclinic.simulations.simulate import Options, simulate

GOAL_SIMULATE, GOAL_WORKERS = 1.05, 0.60


def against_bare(sites: int, patients: int, rounds: int, repeats: int) -> Measured:
    """Simulation ÷ bare loop, in turn in this process, imports done before; both write or read the same images."""
    torch.set_num_threads(1)
    with TemporaryDirectory() as place:
        manifest = federation(Path(place, "images"), sites, patients)
        task, settings = work(manifest, rounds), study(rounds)
        bare.run(work(manifest, 1))  # imports and caches, for both
        ours: list[float] = []
        theirs: list[float] = []
        for turn in range(repeats):
            theirs.append(seconds(lambda: bare.run(task)))
            folder = Path(place, f"run{turn}")
            ours.append(seconds(lambda folder=folder: simulate(settings, manifest, folder, Options())))  # type: ignore[misc]
    return at_most(f"simulate, {sites} sites", ours, theirs, GOAL_SIMULATE)


def workers(sites: int, patients: int, rounds: int, repeats: int) -> Measured:
    """Two worker processes ÷ one, in turn."""
    with TemporaryDirectory() as place:
        manifest, settings = federation(Path(place, "images"), sites, patients), study(rounds)
        simulate(study(1), manifest, Path(place, "warm"), Options())
        taken: dict[int, list[float]] = {1: [], 2: []}
        for turn in range(repeats):
            for count, times in taken.items():
                folder, options = Path(place, f"run{turn}-{count}"), Options(workers=count)
                times.append(seconds(lambda f=folder, o=options: simulate(settings, manifest, f, o)))  # type: ignore[misc]
    return at_most(f"workers, {sites} sites", taken[2], taken[1], GOAL_WORKERS)


def seconds(work_to_do: Callable[[], object]) -> float:
    """Wall time of a call."""
    begun = time.perf_counter()
    work_to_do()
    return time.perf_counter() - begun
