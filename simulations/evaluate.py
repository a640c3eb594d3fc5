"""A finished adapter judged on any sites, those that took no part included (external validation)."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from polyclinic.client.data.dataset import SiteData
from polyclinic.client.data.manifest import read_manifest, sites
from polyclinic.client.data.quarantine import kept
from polyclinic.client.evaluate import outcome
from polyclinic.client.policy import Policy
from polyclinic.core import seeds
from polyclinic.core.errors import DataError, RunError
from polyclinic.core.runs import Run
from polyclinic.core.statistics.monoid import Statistic, Withheld, release
from polyclinic.models import network
from polyclinic.models.export import WEIGHTS, load_adapted
from polyclinic.server import monitor

HERE = "test"
"""Where the chosen images are put, whatever split they came from."""


def evaluate(
    run: Run, manifest: Path, split: str = "test", policy: Policy | None = None, quarantine: Path | None = None
) -> dict[str, Any]:
    """{"split", "sites": {site: {"n", "metrics", "reliability"}}, "pooled": {...}} of a run's model on ``manifest``.

    ``split`` is train, val, test, or "all" for every image whatever its split; what ``quarantine`` lists is left out.

    Raises:
        DataError: the manifest cannot be used, or has no image in that split.
        RunError: the run has no adapter, or another one than it made.
    """
    study, rules = run.study, policy or Policy()
    torch.set_num_threads(study.training.threads)
    task = network.task(study)
    rows, _ = kept(read_manifest(manifest, study.data, task, study.study.seed), quarantine)
    chosen = [replace(row, split=HERE) for row in rows if split in (row.split, "all")]
    if not chosen:
        raise DataError(f"no image is in split '{split}'", where=str(manifest), remedy="choose another --split, or all")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = adapted(run).to(device)
    told: dict[str, Statistic | Withheld] = {}
    found: dict[str, Any] = {}
    for name, group in sites(chosen).items():
        data = SiteData(name, group, study.data, task)
        told[name] = release(outcome(model, task, data.images(HERE), study, device), rules.minimum_patients)
        patients = len({row.patient for row in group})
        found[name] = {"n": {"images": len(group), "patients": patients}} | _judged(run, told[name], name)
    return {
        "study_digest": study.digest,
        "adapter_sha256": run.summary["adapter_sha256"],
        "split": split,
        "sites": found,
        "pooled": _judged(run, monitor.merged(told), "*pooled*"),
    }


def adapted(run: Run) -> nn.Module:
    """The run's model: pixels [N, C, S, S] in [0, 1] → outputs.

    Raises:
        RunError: the run's folder holds no adapter, or another one than the run made.
    """
    model = load_adapted(run.study, run.adapter)
    weights = run.adapter / WEIGHTS
    if hashlib.sha256(weights.read_bytes()).hexdigest() != run.summary["adapter_sha256"]:
        raise RunError(
            "is the adapter of another run", where=str(weights), remedy="put the one back that summary.json names"
        )
    return model


def _judged(run: Run, statistic: Statistic | Withheld | None, site: str) -> dict[str, Any]:
    if statistic is None:
        return {"metrics": None, "reliability": []}
    metrics = monitor.judged(statistic, seeds.generator(run.study.study.seed, "intervals", "external", site))
    return {"metrics": metrics, "reliability": monitor.bins(statistic)}
