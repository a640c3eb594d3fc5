"""Every method that fits segmentation or detection: two federated rounds, nothing frozen moves, and it loads back."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from polyclinic.client.data.dataset import Images, SiteData
from polyclinic.client.data.manifest import Row
from polyclinic.client.policy import Policy
from polyclinic.client.respond import Site, Workbench, respond
from polyclinic.core import registry
from polyclinic.core import study as studies
from polyclinic.core.messages import Instruction
from polyclinic.core.study import Study
from polyclinic.core.update import Tensors, Update, digest
from polyclinic.core.version import VERSION
from polyclinic.models import network
from polyclinic.models.export import load_adapted, write_adapter
from polyclinic.models.network import plain
from tests.models.test_methods import BEFORE, KNOBS, NO_VIT, TRAINING, frozen

SIDE = 32
TASKS = {
    "segmentation": '[task]\nmethod = "segmentation"\nclasses = ["disc", "square"]\n',
    "detection": '[task]\nmethod = "detection"\nclasses = ["disc", "square"]\nmost = 4\nmost_detections = 8\n',
}
MORE = {"active": 'criterion = "core_set"\nfirst = 6\nper_round = 4'}
AFTER = {"fedsvd": '[strategy]\nmethod = "fedsvd"\n'}
SPLITS = {"train": 16, "val": 4, "test": 4}


def fitting(task: str) -> list[str]:
    kind = registry.load("tasks", task)
    names = sorted(set(registry.names("adaptations")) - NO_VIT)
    return [name for name in names if registry.load("adaptations", name).fits(kind)]


CASES = [(task, method) for task in TASKS for method in fitting(task)]


def study_of(task: str, method: str, vit: Path) -> Study:
    first = "" if registry.load("adaptations", method).adapts else '[[adaptation]]\nmethod = "lora"\nrank = 2\n'
    first += BEFORE.get(method, "")
    training = TRAINING.get(method, "learning_rate = 5e-3\n")
    return studies.loads(
        f'[study]\nname = "dense"\nseed = 3\n[data]\nimage_size = {SIDE}\ncolour = "grey"\nboxes = "boxes.csv"\n'
        f'[backbone]\nreference = "file:{vit}"\n{TASKS[task]}{first}[[adaptation]]\nmethod = "{method}"\n'
        f"{MORE.get(method, KNOBS.get(method, ''))}\n[training]\nbatch_size = 8\n{training}"
        f"[rounds]\ncount = 2\n{AFTER.get(method, '')}"
    )


def pictures(count: int, task: str, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(pixels, targets): a bright square in each, of one of two classes by its grey."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 60, (count, 1, SIDE, SIDE)).astype(np.uint8)
    masks = np.zeros((count, SIDE, SIDE), dtype=np.uint8)
    boxes = np.full((count, 4, 5), -1.0, dtype=np.float32)
    for i in range(count):
        kind, (x, y) = i % 2, rng.integers(2, 16, 2)
        pixels[i, 0, y : y + 12, x : x + 12] = 150 + 90 * kind
        masks[i, y : y + 12, x : x + 12] = 1 + kind
        boxes[i, 0] = (kind, x / SIDE, y / SIDE, (x + 12) / SIDE, (y + 12) / SIDE)
    return pixels, masks if task == "segmentation" else boxes


def site(name: str, study: Study, task: str) -> Site:
    rows, seed = [], {"north": 1, "south": 2}[name]
    for split, count in SPLITS.items():
        places = [f"{split}{i}.png" for i in range(count)]
        rows += [Row(Path("/", place), name, "", (), split, place, 2, place) for place in places]
    data = SiteData(name, tuple(rows), study.data, network.task(study))
    for split, count in SPLITS.items():
        pixels, targets = pictures(count, task, seed + 10 * len(split))
        data._decoded[split] = Images(pixels, targets, tuple(f"{split}{i}.png" for i in range(count)))
    return Site(name, data, Policy(minimum_patients=1))


def federated(study: Study, task: str) -> tuple[Workbench, Tensors, Tensors, list[Any]]:
    bench, method = Workbench(study, torch.device("cpu")), study.strategy
    strategy: Any = method.build()  # type: ignore[attr-defined]
    before, told = frozen(bench), []
    started = state = bench.adapted.read()
    members = [site(name, study, task) for name in ("north", "south")]
    for number in (1, 2):
        fold = strategy.init(state)
        for member in members:
            base, nonce = digest(state), f"{number}{member.name}"
            asked = Instruction(study.digest, "run", number, nonce, base, True, ("val",), number == 1, VERSION, state)
            reply = respond(bench, member, asked)
            assert reply.update is not None
            strategy.expects(state).check(reply.update.tensors)
            fold = strategy.add(fold, Update(member.name, reply.update.weight, reply.update.tensors))
            told.append(reply.statistics)
        state = strategy.finish(fold)
    after = frozen(bench)
    assert all(torch.equal(before[name], after[name]) for name in before), "something frozen has moved"
    return bench, started, state, told


@pytest.fixture(scope="module")
def run(tiny_vit: Path) -> Any:
    @cache
    def made(task: str, method: str) -> tuple[Any, ...]:
        study = study_of(task, method, tiny_vit)
        return (study, *federated(study, task))

    return made


def outputs(model: nn.Module) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(torch.rand((2, 1, SIDE, SIDE), generator=torch.Generator().manual_seed(1)))
    return result


def test_both_tasks_have_methods_of_every_family() -> None:
    for task in TASKS:
        families = {family for name in fitting(task) for family in registry.load("adaptations", name).facts.families}
        assert families == {"parameter", "representation", "objective", "data", "architecture"}
        assert len(fitting(task)) >= 25


@pytest.mark.parametrize(("task", "method"), CASES)
def test_two_rounds_move_what_travels_alone_and_tell_a_mergeable_outcome(task: str, method: str, run: Any) -> None:
    _, bench, started, state, told = run(task, method)
    assert set(state) == set(started) == set(bench.adapted.travelling)
    assert any(not np.array_equal(state[name], started[name]) for name in state if name.startswith("head."))
    assert all(np.isfinite(array).all() for array in state.values())
    total = told[0]["incoming/val"] + told[1]["incoming/val"]
    assert total.patients == 2 * SPLITS["val"]
    assert {"describe/features", "describe/labels"} <= set(told[0])


@pytest.mark.parametrize(("task", "method"), CASES)
def test_it_is_saved_and_loads_back_with_equal_outputs(task: str, method: str, run: Any, tmp_path: Path) -> None:
    study, bench, _, state, _ = run(task, method)
    bench.adapted.write(state)
    expected = outputs(bench.adapted.network)
    write_adapter(study, state, tmp_path / "adapter", plain(study).backbone.sha256)
    torch.testing.assert_close(outputs(load_adapted(study, tmp_path / "adapter")), expected, rtol=0, atol=1e-5)
