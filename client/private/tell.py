"""What a site tells beside its update in a private study: every figure with noise, and paid for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch
from torch import nn

from polyclinic.client.data.dataset import Images, SiteData
from polyclinic.client.evaluate import examined, features, first_of_each
from polyclinic.client.policy import Policy
from polyclinic.client.private.answer import Answer
from polyclinic.core.messages import Instruction
from polyclinic.core.privacy.plan import demand
from polyclinic.core.privacy.told import blanks, kind_of, split_of
from polyclinic.core.statistics.kernel import fourier
from polyclinic.core.statistics.monoid import Floats
from polyclinic.core.statistics.noised import Noised
from polyclinic.core.statistics.shift import SHIFT_SEED
from polyclinic.core.study import Study
from polyclinic.models.contracts import Disclosing, Task


def asked(study: Study, policy: Policy, instruction: Instruction) -> set[str]:
    """Figures that an instruction asks for and that the site's policy tells."""
    described = {what for what in blanks(study) if instruction.describe and what.startswith("describe/")}
    judged = {f"incoming/{split}" for split in instruction.evaluate} & blanks(study).keys()
    return {what for what in described | judged if kind_of(what) in policy.tell}


def enough(data: SiteData, policy: Policy, what: str) -> bool:
    """Whether so many patients stand behind a figure that it may leave; how many they are is public."""
    return data.sizes()[split_of(what)][1] >= max(1, policy.minimum_patients)


@dataclass(frozen=True)
class Speaker:
    """What figures are worked out with: the model as it came, and the backbone as it was pretrained."""

    model: nn.Module
    frozen: Callable[[], nn.Module]
    task: Task
    study: Study
    device: torch.device

    def rows(self, what: str, images: Images) -> tuple[Floats, Sequence[str]]:
        """(one vector of length at most 1 an image, whose image each is)."""
        study, task, device = self.study, self.task, self.device
        if what == "describe/kernel":  # the mean of several vectors of length 1 is shorter, which MMD would not know
            chosen = first_of_each(images) if demand(study).unit == "patient" else images
            seen = features(self.frozen(), chosen, study, device)
            return fourier(seen, study.monitoring.kernel_features, SHIFT_SEED), chosen.patients
        if what == "describe/labels":
            return classes(task, images.targets), images.patients
        assert isinstance(task, Disclosing), "a task that tells nothing under privacy has no such release"
        return task.disclosed(examined(self.model, task, images, study, device)), images.patients


def classes(task: Task, targets: np.ndarray) -> Floats:
    """[N, K] which classes each image has, ÷ √K where it may have several."""
    there, k = task.presence(targets), len(task.classes)
    if task.exclusive:
        return np.asarray(there[:, None] == np.arange(k), dtype=np.float64)
    return there.astype(np.float64) / sqrt(k)


def tell(answer: Answer, speaker: Speaker, data: SiteData) -> Iterator[tuple[str, Noised]]:
    """(name, statistic) of every figure that was set aside, from the split that it speaks of."""
    kinds = blanks(speaker.study)
    for what in sorted(answer.releases.keys() & kinds.keys()):
        rows, patients = speaker.rows(what, data.images(split_of(what)))
        yield what, answer.told(what, kinds[what], rows, patients)
