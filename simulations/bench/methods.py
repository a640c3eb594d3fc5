"""What each way to adapt costs a training step and a prediction, against plain LoRA, all in one run, in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median

import numpy as np
import torch

from polyclinic.client import fit
from polyclinic.client.data.dataset import Images
from polyclinic.core import registry
from polyclinic.core import study as studies
from polyclinic.core.errors import StudyError
from polyclinic.core.study import Study
from polyclinic.models import network
from polyclinic.models.network import Adapted, build
from polyclinic.simulations.bench.figure import Measured

PLAIN, BATCH = "lora", 16
DATA = ("", 'volume = "whole"\ndepth = 8\n')
"""Flat pictures and, for what refuses these, volumes."""


def against_lora(repeats: int, names: Sequence[str] = ()) -> list[Measured]:
    """Of every method with its default settings (or of those named): seconds a step of 16 pictures ÷ plain LoRA's.

    On the embedded backbone; what does not adapt by itself stands beside LoRA. Methods that no such study takes are
    left out.
    """
    torch.set_num_threads(1)
    found = {name: study(name) for name in names or registry.names("adaptations")}
    chosen = {PLAIN: study(PLAIN)} | found
    works = {name: work(one) for name, one in chosen.items() if one is not None}
    steps: dict[str, list[float]] = {name: [] for name in works}
    predictions: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(repeats + 1):
        for name, (step, predict) in works.items():
            taken = seconds(step), seconds(predict)
            if turn:  # the first warms up
                steps[name].append(taken[0])
                predictions[name].append(taken[1])
    return [_figure(name, steps, predictions) for name in works if name in found]


def study(method: str) -> Study | None:
    """A study of three classes with the method's default settings; None if it takes no such study."""
    beside = "" if registry.load("adaptations", method).adapts else f'[[adaptation]]\nmethod = "{PLAIN}"\n'
    for data in DATA:
        try:
            return studies.loads(
                f'[study]\nname = "bench"\n[data]\ncolour = "grey"\n{data}[task]\nmethod = "classification"\n'
                f'kind = "multiclass"\nclasses = ["a", "b", "c"]\n{beside}[[adaptation]]\nmethod = "{method}"\n'
                f"[training]\nbatch_size = {BATCH}\n"
            )
        except StudyError:
            continue
    return None


def work(study: Study) -> tuple[Callable[[], object], Callable[[], object]]:
    """(a training step, a prediction) on made-up images, as a site would do them."""
    adapted, images = build(study), made_up(study)
    training, chain, task = study.training, adapted.chain, network.task(study)
    anchor, frozen = adapted.write(adapted.read()), network.plain(study).backbone
    generator = torch.Generator().manual_seed(0)
    begun = fit.start(adapted, task, images, training, anchor, {}, lambda: frozen, generator)
    if chain.select is not None:
        begun = replace(begun, labelled=chain.select(begun, generator))
    objective = chain.objective(lambda model, batch: task.loss(batch.output, batch.target), begun)
    optimiser, places = fit.make_optimiser(adapted, training, training.learning_rate), begun.labelled[:BATCH]

    def step() -> None:
        with adapted.training():
            fit.step(adapted, objective, optimiser, begun, places, training, generator)

    return step, lambda: _predict(adapted, images)


def made_up(study: Study) -> Images:
    """Two batches of noise."""
    count, data, rng = 2 * BATCH, study.data, np.random.default_rng(0)
    depth = () if data.depth is None else (data.depth,)
    pixels = rng.integers(0, 256, (count, 1, *depth, data.image_size, data.image_size), dtype=np.uint8)
    return Images(pixels, np.arange(count) % 3, tuple(f"patient {i}" for i in range(count)))


def _predict(adapted: Adapted, images: Images) -> None:
    with torch.inference_mode():
        adapted.network(fit.scaled(torch.from_numpy(images.pixels[:BATCH]), adapted.device))


def seconds(work_to_do: Callable[[], object]) -> float:
    """Wall time of a call."""
    begun = time.perf_counter()
    work_to_do()
    return time.perf_counter() - begun


def _figure(name: str, steps: dict[str, list[float]], predictions: dict[str, list[float]]) -> Measured:
    """Ratios of medians."""
    step, predict = (median(times[name]) / median(times[PLAIN]) for times in (steps, predictions))
    detail: dict[str, float | list[float]] = {
        "prediction": round(predict, 3),
        "step_ms": round(1000 * median(steps[name]), 1),
        "lora_ms": round(1000 * median(steps[PLAIN]), 1),
    }
    return Measured(f"{name}: a step", round(step, 3), "none", True, detail=detail)
