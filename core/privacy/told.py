"""What may leave beside the update in a private study, by name: server and sites read it from the study alone."""

from __future__ import annotations

from typing import Any

from polyclinic.core.statistics.noised import Noised, NoisedKernel, NoisedLabels
from polyclinic.core.statistics.shift import SHIFT_SEED
from polyclinic.core.study import Study


def blanks(study: Study) -> dict[str, Noised]:
    """Name → the statistic of nobody, with which whatever is told under that name merges."""
    task: Any = study.task
    found: dict[str, Noised] = {
        "describe/kernel": NoisedKernel.blank(study.monitoring.kernel_features, SHIFT_SEED),
        "describe/labels": NoisedLabels.blank(len(task.classes), task.exclusive),
    }
    if task.discloses:
        found |= {f"incoming/{split}": task.undisclosed() for split in ("val", "test")}
    return found


def split_of(what: str) -> str:
    """The split whose patients stand behind a figure: how images are spread is told of validation patients."""
    moment, _, rest = what.partition("/")
    return rest if moment == "incoming" else "val"


def kind_of(what: str) -> str:
    """The kind under which a site's policy knows a figure."""
    moment, _, rest = what.partition("/")
    return "outcome" if moment == "incoming" else rest
