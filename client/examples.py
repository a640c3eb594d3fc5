"""Example predictions as one HTML page for the site alone: its pictures are in it, so nothing of it leaves."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image
from torch import Tensor, nn

from polyclinic.client.data.dataset import Images
from polyclinic.client.fit import autocast, scaled
from polyclinic.core import files
from polyclinic.core.study import Study
from polyclinic.models.contracts import Example, Task

if TYPE_CHECKING:
    from collections.abc import Sequence

PAGE = "examples.html"
EACH = 4
"""Pictures of each kind: those on which the model does worst, in the middle, and best."""
MOST = 96
"""Images that are looked at, evenly spread over all: what a model gives for thousands of them would fill the memory."""


@dataclass(frozen=True)
class Shown:
    """One example with its loss, and its picture as a data URI."""

    example: Example
    loss: float

    @property
    def uri(self) -> str:
        """PNG, in base64."""
        out = io.BytesIO()
        Image.fromarray(self.example.picture).save(out, "PNG")
        return f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"


def write_examples(
    folder: Path, model: nn.Module, task: Task, images: Images, study: Study, site: str, device: torch.device
) -> Path:
    """Writes the page for ``images`` into ``folder`` and returns its path; RunError if it cannot be written."""
    with files.explained(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / PAGE
    files.write(path, page(chosen(model, task, images, study, device), study, site), durable=False)
    path.chmod(0o600)
    return path


def chosen(
    model: nn.Module, task: Task, images: Images, study: Study, device: torch.device
) -> dict[str, Sequence[Shown]]:
    """Worst, middling and best examples by the task's own loss, each in the order from worse to better."""
    looked_at = np.unique(np.linspace(0, len(images) - 1, min(MOST, len(images))).round().astype(np.int64)).tolist()
    with torch.inference_mode(), autocast(study.training, device):
        outputs = {i: task.infer(model, scaled(_one(images.pixels, i), device)).float() for i in looked_at}
        losses = {i: float(task.loss(o, _one(images.targets, i).to(device))) for i, o in outputs.items()}
    order = sorted(looked_at, key=lambda i: -losses[i])
    middle = max(0, (len(order) - EACH) // 2)
    kinds = {"Where it does worst": order[:EACH], "In the middle": order[middle:][:EACH]}
    kinds["Where it does best"] = order[-EACH:]
    seen: set[int] = set()
    found: dict[str, Sequence[Shown]] = {}
    for kind, numbers in kinds.items():
        fresh = [i for i in numbers if i not in seen]
        seen.update(fresh)
        drawn = [(task.drawn(images.pixels[i], outputs[i][0].cpu().numpy(), images.targets[i]), i) for i in fresh]
        found[kind] = [Shown(example, losses[i]) for example, i in drawn]
    return found


def page(examples: dict[str, Sequence[Shown]], study: Study, site: str) -> str:
    """The page; what it shows is escaped."""
    templates = Environment(
        loader=PackageLoader("polyclinic.client"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    kinds = {kind: shown for kind, shown in examples.items() if shown}
    return templates.get_template("examples.html").render(kinds=kinds, study=study, site=site)


def _one(arrays: np.ndarray, number: int) -> Tensor:
    return torch.from_numpy(arrays[number : number + 1])
