"""Made-up patients for any task: pictures of noise, each with a target drawn by itself, so that it fits no other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from polyclinic.client.data.dataset import Images, SiteData
from polyclinic.client.data.manifest import Row
from polyclinic.core.study import Study
from polyclinic.models import network
from polyclinic.models.contracts import Task

if TYPE_CHECKING:
    from polyclinic.client.data.boxed import Boxing


@dataclass(frozen=True, eq=False)
class Held(SiteData):
    """A site's data whose pictures are in memory; ``given``: split → its images, in the order of its rows' names."""

    given: Mapping[str, Images] = field(default_factory=dict)

    def images(self, split: str) -> Images:
        """See ``SiteData``."""
        return self.given[split] if split in self.given else super().images(split)


def made_up(study: Study, site: str, patients: Mapping[str, Sequence[int]], rng: np.random.Generator) -> Held:
    """A site of made-up patients.

    Args:
        patients: split → how many pictures each of its patients has.
    """
    task, rows, given = network.task(study), [], {}
    for split, counts in patients.items():
        whose = tuple(f"{split} {i:06d}" for i, count in enumerate(counts) for _ in range(count))
        rows += [_row(site, split, patient, f"{i:06d}") for i, patient in enumerate(whose)]
        targets = np.stack([_target(task, study, rng) for _ in whose])
        given[split] = Images(_noise(study, len(whose), rng), targets, whose)
    return Held(site, tuple(rows), study.data, task, given)


def joined(own: SiteData, more: SiteData) -> tuple[Held, int]:
    """One site with the training patients of both, as others, and the place of the first of ``more``, who come last."""
    first, second = own.images("train"), more.images("train")
    channels = max(first.pixels.shape[1], second.pixels.shape[1])
    pixels = [np.repeat(one.pixels, channels // one.pixels.shape[1], axis=1) for one in (first, second)]
    patients = tuple(f"{i} {patient}" for i, one in enumerate((first, second)) for patient in one.patients)
    targets = np.concatenate([first.targets, second.targets])
    rows = [row for one in (own, more) for row in one.rows if row.split == "train"]
    renamed = tuple(  # so that they stay in this order
        replace(row, site=own.site, name=f"{i:08d}", patient=patient, path=Path("/", own.site, f"{i:08d}"))
        for i, (row, patient) in enumerate(zip(rows, patients, strict=True))
    )
    train = Images(np.concatenate(pixels), targets, patients)
    return Held(own.site, renamed, own.data, own.task, {"train": train}), len(first)


def _row(site: str, split: str, patient: str, number: str) -> Row:
    return Row(Path("/", patient, number), site, "", (), split, patient, 2, f"{patient}/{number}")


def _noise(study: Study, count: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """uint8 [count, 1, (D,) S, S], of squares of four pixels."""
    side, depth = study.data.image_size, study.data.depth
    coarse = (count, 1, *(() if depth is None else (depth,)), -(-side // 4), -(-side // 4))
    return rng.integers(0, 256, coarse, dtype=np.uint8).repeat(4, axis=-1).repeat(4, axis=-2)[..., :side, :side]


def _target(task: Task, study: Study, rng: np.random.Generator) -> NDArray[Any]:
    """One target, of the shape and kind that reading a manifest would give."""
    which, side = int(rng.integers(len(task.classes))), study.data.image_size
    low, high = side // 4, side // 2 + int(rng.integers(side // 4))
    if task.needs == "label":
        return np.asarray(task.target(task.classes[which]), np.int64)
    if task.needs == "mask":
        mask = np.zeros((*(() if study.data.depth is None else (study.data.depth,)), side, side), np.uint8)
        mask[..., low:high, low:high] = 1 + which
        return mask
    boxes = np.full((cast("Boxing", task).most, 5), -1.0, np.float32)
    boxes[0] = (which, low / side, low / side, high / side, high / side)
    return boxes
