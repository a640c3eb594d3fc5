"""Predictions turned into mergeable statistics: how good the model is here, and how this site's data are spread."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from polyclinic.client.data.dataset import Images
from polyclinic.client.fit import autocast, scaled
from polyclinic.client.policy import Kind
from polyclinic.core.statistics import shift
from polyclinic.core.statistics.monoid import Statistic
from polyclinic.core.study import Study
from polyclinic.models.contracts import Task

BATCH = 64
"""Pictures at once, or slices of volumes."""


def predict(model: nn.Module, images: Images, study: Study, device: torch.device) -> np.ndarray:
    """What ``model`` gives for every image, float32 [N, …]."""
    parts: list[Tensor] = []
    with torch.inference_mode(), autocast(study.training, device):
        for pixels in torch.from_numpy(images.pixels).split(at_once(images)):
            parts.append(model(scaled(pixels, device)).float().cpu())
    result: np.ndarray = torch.cat(parts).numpy()
    return result


def at_once(images: Images) -> int:
    """How many images a batch holds when nothing is trained."""
    return BATCH if images.pixels.ndim == 4 else max(1, BATCH // images.pixels.shape[2])


def outcome(model: nn.Module, task: Task, images: Images, study: Study, device: torch.device) -> Statistic:
    """How the model did on ``images``; of each batch only what matters for it is kept."""
    found: dict[str, list[np.ndarray]] = {}
    monitoring = study.monitoring
    with torch.inference_mode(), autocast(study.training, device):
        for places in np.array_split(np.arange(len(images)), range(at_once(images), len(images), at_once(images))):
            pixels = scaled(torch.from_numpy(images.pixels[places]), device)
            output = task.infer(model, pixels).float().cpu().numpy()
            seen = task.examine(output, images.targets[places], bins=monitoring.bins, spacing=images.spacing[places])
            for name, rows in seen.items():
                found.setdefault(name, []).append(rows)
    findings = {name: np.concatenate(rows) for name, rows in found.items()}
    return task.tally(findings, images.patients, bins=monitoring.bins, score_bins=monitoring.score_bins)


def describe(
    backbone: nn.Module, task: Task, images: Images, study: Study, device: torch.device
) -> dict[Kind, Statistic]:
    """How ``images`` are spread: features of the frozen ``backbone`` (one picture a patient), intensities, labels,
    and how they were taken."""
    first = np.unique(np.asarray(images.patients), return_index=True)[1]
    one_each = Images(images.pixels[first], images.targets[first], tuple(images.patients[i] for i in first))
    features = shift.standardise(predict(backbone, one_each, study, device).astype(np.float64))
    monitoring = study.monitoring
    projected = features @ shift.projection(features.shape[1], monitoring.feature_dims, shift.SHIFT_SEED)
    # a backbone of fewer features than that leaves some empty: what merges is known from the study alone
    projected = np.pad(projected, ((0, 0), (0, monitoring.feature_dims - projected.shape[1])))
    return {
        "features": shift.FeatureMoments.of(projected),
        "kernel": shift.KernelMeans.of(projected, monitoring.kernel_features, shift.SHIFT_SEED),
        "intensities": shift.Intensities.of(images.pixels, images.patients),
        "labels": shift.Labels.of(task.presence(images.targets), images.patients, task.classes),
        "acquisition": shift.Acquisition.of(images.taken or [{}] * len(images), images.patients),
    }
