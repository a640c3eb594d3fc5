"""What needs a process of its own to be measured: time to the first local step, and memory."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from polyclinic.core.errors import EngineError
from polyclinic.simulations.bench.figure import Measured, at_most, federation

GOAL_SECONDS, GOAL_MEMORY, GOAL_HELP = 1.0, 1.2, 0.5

_FIRST_STEP = """
import os
from torch.optim.optimizer import register_optimizer_step_post_hook
register_optimizer_step_post_hook(lambda *a: os._exit(0))
"""
_BARE = """
import sys, torch
torch.set_num_threads(1)
from pathlib import Path
from polyclinic.simulations.bench import bare
from polyclinic.simulations.bench.bare import Work
weights = Path(bare.__file__).parents[2] / "models" / "embedded" / "vit_tiny.safetensors"
bare.run(Work(Path(sys.argv[1]), weights, int(sys.argv[3]), 16, 8, 16.0, 1e-3, ("normal", "lesion")))
"""
_OURS = """
import sys
from pathlib import Path
from polyclinic.simulations.bench.figure import study
from polyclinic.simulations.simulate import Options, simulate
simulate(study(int(sys.argv[3])), Path(sys.argv[1]), Path(sys.argv[2]), Options(workers=int(sys.argv[4])))
"""


def startup(sites: int, patients: int, repeats: int) -> Measured:
    """Seconds from the start of a process to its first local step: simulation − bare loop, in turn."""
    ours: list[float] = []
    theirs: list[float] = []
    with TemporaryDirectory() as place:
        manifest = federation(Path(place, "images"), sites, patients)
        for turn in range(repeats + 1):
            for times, code in ((theirs, _BARE), (ours, _OURS)):
                begun = time.perf_counter()
                _run(code=_FIRST_STEP + code, arguments=(manifest, Path(place, f"run{turn}"), 1, 1))
                times.append(time.perf_counter() - begun)
    later = median(ours[1:]) - median(theirs[1:])
    detail: dict[str, float | list[float]] = {"ours": ours[1:], "theirs": theirs[1:]}
    return Measured("startup", round(later, 3), f"<= {GOAL_SECONDS} s", later <= GOAL_SECONDS, "seconds", detail)


def help_text(repeats: int) -> Measured:
    """Seconds that ``polyclinic --help`` takes."""
    times: list[float] = []
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        _run(code="from polyclinic.cli.main import main; main()", arguments=("--help",))
        times.append(time.perf_counter() - begun)
    value = median(times[1:])
    return Measured("help", round(value, 3), f"< {GOAL_HELP} s", value < GOAL_HELP, "seconds", {"all": times[1:]})


def memory(sites: int, patients: int, rounds: int, repeats: int, workers: int) -> Measured:
    """Peak proportional set size of all processes: simulation ÷ bare loop, in turn."""
    ours: list[float] = []
    theirs: list[float] = []
    with TemporaryDirectory() as place:
        manifest = federation(Path(place, "images"), sites, patients)
        for turn in range(repeats):
            arguments = (manifest, Path(place, f"run{turn}"), rounds, workers)
            theirs.append(peak_pss_mb(_BARE, arguments))
            ours.append(peak_pss_mb(_OURS, arguments))
    return at_most(f"memory, {sites} sites, {workers} worker(s)", ours, theirs, GOAL_MEMORY)


def peak_pss_mb(code: str, arguments: Sequence[object]) -> float:
    """Largest proportional set size, MiB, of a Python process and its children, looked at 20 times a second."""
    if not Path("/proc/self/smaps_rollup").exists():
        raise EngineError("proportional set size can only be measured on Linux", where="bench memory")
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdout=subprocess.DEVNULL)
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, sum(_pss_mb(pid) for pid in _family(process.pid)))
        time.sleep(0.05)
    if process.returncode:
        raise EngineError("a measured process failed", where="bench memory")
    return peak


def _family(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(member for child in children for member in _family(int(child)))]


def _pss_mb(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def _run(code: str, arguments: Sequence[object]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise EngineError(f"a measured process failed: {done.stderr[-300:]}", where="bench")
