"""Private studies small enough to be audited in a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from polyclinic.core import study as studies
from polyclinic.core.study import Study

TASKS = {
    "binary": "",
    "multiclass": '[task]\nmethod = "classification"\nkind = "multiclass"\nclasses = ["a", "b", "c"]\n',
    "multilabel": '[task]\nmethod = "classification"\nkind = "multilabel"\nclasses = ["a", "b", "c"]\n',
    "segmentation": '[task]\nmethod = "segmentation"\nclasses = ["disc", "square"]\n',
    "detection": '[task]\nmethod = "detection"\nclasses = ["disc", "square"]\nmost = 4\nmost_detections = 8\n',
}
SGD = 'optimiser = "sgd"\nmomentum = 0.0\nweight_decay = 0.0\n'
MakeStudy = Callable[..., Study]


@pytest.fixture(scope="session")
def private(tiny_vit: Path) -> MakeStudy:
    """Makes private studies on the tiny ViT."""

    def made(
        method: str = "lora",
        task: str = "binary",
        *,
        noise: float = 0.8,
        rounds: int = 1,
        steps: int = 1,
        training: str = SGD,
        portion: int = 16,
        more: str = "",
        knobs: str = "",
    ) -> Study:
        boxes = 'boxes = "boxes.csv"\n' if task == "detection" else ""
        return studies.loads(
            f'[study]\nname = "audited"\nseed = 3\n[data]\nimage_size = 32\ncolour = "grey"\n{boxes}'
            f'[backbone]\nreference = "file:{tiny_vit}"\n{TASKS[task]}[[adaptation]]\nmethod = "{method}"\n{knobs}'
            f"[training]\nlearning_rate = 5e-3\nbatch_size = {portion}\nsteps = {steps}\n{training}"
            f'[rounds]\ncount = {rounds}\nweight = "equal"\n'
            f'[privacy]\nnoise = {noise}\nexpected = 8\ngenerator = "simulated"\n{more}'
        )

    return made
