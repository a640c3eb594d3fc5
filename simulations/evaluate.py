"""A finished adapter judged on any sites, those that took no part included (external validation)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from polyclinic.client.data.dataset import SiteData
from polyclinic.client.data.manifest import read_manifest, sites
from polyclinic.client.evaluate import outcome
from polyclinic.client.policy import Policy
from polyclinic.core.errors import DataError
from polyclinic.core.runs import Run
from polyclinic.core.statistics.monoid import Statistic, Withheld, release
from polyclinic.models import network
from polyclinic.models.export import load_adapted
from polyclinic.server import monitor

HERE = "test"
"""Where the chosen images are put, whatever split they came from."""


def evaluate(run: Run, manifest: Path, split: str = "test", policy: Policy | None = None) -> dict[str, Any]:
    """{"split", "sites": {site: {"n", "metrics", "reliability"}}, "pooled": {...}} of a run's model on ``manifest``.

    ``split`` is train, val, test, or "all" for every image whatever its split.

    Raises:
        DataError: the manifest cannot be used, or has no image in that split.
        RunError: the run has no adapter, or one of another study.
    """
    study, rules = run.study, policy or Policy()
    torch.set_num_threads(study.training.threads)
    task = network.task(study)
    rows = read_manifest(manifest, study.data, task, study.study.seed)
    chosen = [replace(row, split=HERE) for row in rows if split in (row.split, "all")]
    if not chosen:
        raise DataError(f"no image is in split '{split}'", where=str(manifest), remedy="choose another --split, or all")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_adapted(study, run.adapter).to(device)
    told: dict[str, Statistic | Withheld] = {}
    found: dict[str, Any] = {}
    for name, group in sites(chosen).items():
        data = SiteData(name, group, study.data)
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


def _judged(run: Run, statistic: Statistic | Withheld | None, site: str) -> dict[str, Any]:
    if statistic is None:
        return {"metrics": None, "reliability": []}
    metrics = monitor.judged(run.study, statistic, "external", 0, site)
    return {"metrics": metrics, "reliability": monitor.bins(statistic)}
