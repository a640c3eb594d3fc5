"""Predictions turned into mergeable statistics: how good the model is here, and how this site's data are spread."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from polyclinic.client.data.dataset import Images
from polyclinic.client.fit import autocast, scaled
from polyclinic.client.policy import Kind
from polyclinic.core.statistics import shift
from polyclinic.core.statistics.monoid import Floats, Statistic
from polyclinic.core.study import Study
from polyclinic.models.contracts import Findings, Task

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
    """How the model did on ``images``."""
    monitoring = study.monitoring
    found = examined(model, task, images, study, device)
    return task.tally(found, images.patients, bins=monitoring.bins, score_bins=monitoring.score_bins)


def examined(model: nn.Module, task: Task, images: Images, study: Study, device: torch.device) -> Findings:
    """What of the model's outputs on ``images`` matters for its outcome; of each batch only that is kept."""
    found: dict[str, list[np.ndarray]] = {}
    with torch.inference_mode(), autocast(study.training, device):
        for places in np.array_split(np.arange(len(images)), range(at_once(images), len(images), at_once(images))):
            pixels = scaled(torch.from_numpy(images.pixels[places]), device)
            output = task.infer(model, pixels).float().cpu().numpy()
            spacing = images.spacing[places]
            seen = task.examine(output, images.targets[places], bins=study.monitoring.bins, spacing=spacing)
            for name, rows in seen.items():
                found.setdefault(name, []).append(rows)
    return {name: np.concatenate(rows) for name, rows in found.items()}


def describe(
    backbone: nn.Module, task: Task, images: Images, study: Study, device: torch.device
) -> dict[Kind, Statistic]:
    """How ``images`` are spread: features of the frozen ``backbone`` (one picture a patient), intensities, labels,
    and how they were taken."""
    one_each = first_of_each(images)
    projected = features(backbone, one_each, study, device)
    monitoring = study.monitoring
    return {
        "features": shift.FeatureMoments.of(projected),
        "kernel": shift.KernelMeans.of(projected, monitoring.kernel_features, shift.SHIFT_SEED),
        "intensities": shift.Intensities.of(images.pixels, images.patients),
        "labels": shift.Labels.of(task.presence(images.targets), images.patients, task.classes),
        "acquisition": shift.Acquisition.of(images.taken or [{}] * len(images), images.patients),
    }


def first_of_each(images: Images) -> Images:
    """One picture a patient."""
    first = np.unique(np.asarray(images.patients), return_index=True)[1]
    return Images(images.pixels[first], images.targets[first], tuple(images.patients[i] for i in first))


def features(backbone: nn.Module, images: Images, study: Study, device: torch.device) -> Floats:
    """[N, feature_dims] features of the frozen ``backbone``, standardised and projected."""
    width = study.monitoring.feature_dims
    found = shift.standardise(predict(backbone, images, study, device).astype(np.float64))
    projected = found @ shift.projection(found.shape[1], width, shift.SHIFT_SEED)
    # a backbone of fewer features than that leaves some empty: what merges is known from the study alone
    return np.pad(projected, ((0, 0), (0, width - projected.shape[1])))
