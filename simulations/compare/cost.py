"""Cost: seconds, operations and memory of a training step, latency of inference, and what travels in a round."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from polyclinic.core import files
from polyclinic.core.errors import EngineError
from polyclinic.core.runs import Run
from polyclinic.core.study import Study
from polyclinic.simulations.compare.cells import Cohort, Json

STUDY, BATCH = "study.toml", "batch.npz"


def measure(study: Study, cohort: Cohort) -> Json:
    """What ``polyclinic.simulations.compare.step`` says in a fresh process, on one batch of the first site's pictures.

    Raises:
        EngineError: that process failed.
    """
    images = next(held.data.images("train") for _, held in sorted(cohort.items()))
    size = study.training.batch_size
    with TemporaryDirectory() as place:
        folder = Path(place)
        files.write(folder / STUDY, study.toml(), durable=False)
        patients = np.array(images.patients[:size], dtype=np.str_)
        with (folder / BATCH).open("wb") as out:
            np.savez(out, pixels=images.pixels[:size], targets=images.targets[:size], patients=patients)
        command = [sys.executable, "-m", "polyclinic.simulations.compare.step", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EngineError(f"the measured process failed: {done.stderr[-300:]}", where="compare, axis 'cost'")
    found: Json = json.loads(done.stdout.splitlines()[-1])
    return found


def traffic(run: Run) -> dict[str, float]:
    """Bytes that a site sends and receives in a round, statistics included; the mean over rounds and sites."""
    replies = [(record, len(record["sites"]) + len(record["excluded"])) for record in run.rounds]
    return {way: fmean(record[way] / max(1, count) for record, count in replies) for way in ("bytes_up", "bytes_down")}


def together(found: Mapping[str, Any], run: Run) -> Json:
    """Both."""
    return {**found, **traffic(run)}
