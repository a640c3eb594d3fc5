"""SCAFFOLD against the paper's algorithm 1, option II, in NumPy, on quadratic problems that pull apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from polyclinic.client.data.dataset import Images
from polyclinic.client.fit import fit
from polyclinic.client.keep import Keep
from polyclinic.client.respond import Workbench, respond
from polyclinic.core import study as studies
from polyclinic.core.errors import StudyError
from polyclinic.core.messages import Instruction
from polyclinic.core.study import Study
from polyclinic.core.update import Tensors, Update, digest
from polyclinic.core.version import VERSION
from polyclinic.models.adaptation import Memory
from polyclinic.models.adaptations.objective_scaffold import CONTROL, OWN, Scaffold
from polyclinic.models.adaptations.own_weights import Probe
from polyclinic.models.network import build
from polyclinic.models.tasks.classification import Classification
from polyclinic.strategies.mean import MeanStrategy
from tests.conftest import study_text
from tests.models.convolutional import WIDTH, adapted
from tests.models.pooled import members

RATE, STEPS, ROUNDS = 0.1, 5, 40
PLAIN = f'optimiser = "sgd"\nmomentum = 0.0\nweight_decay = 0.0\nclip_norm = "none"\nsteps = {STEPS}\n'


def text(weights: Path, more: str = "", training: str = PLAIN) -> str:
    whole = study_text(weights, f'[[adaptation]]\nmethod = "scaffold"\n{more}')
    return whole.replace(
        "learning_rate = 5e-3\nbatch_size = 4\n", f"learning_rate = {RATE}\nbatch_size = 8\n{training}"
    )


@pytest.fixture(scope="module")
def study(tiny_vit: Path) -> Study:
    return studies.loads(text(tiny_vit, '[rounds]\nweight = "equal"\n').replace("[rounds]\ncount = 2\n", ""))


class Squares(Classification):
    """Half the mean squared distance of the output to ten times the target, less one."""

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """A quadratic in the head's weights."""
        return 0.5 * (output[:, 0] - 10.0 * target + 1.0).square().mean()


def images(seed: int) -> Images:
    """Eight pictures whose share of ones depends on the site, so that optima lie apart."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (8, 1, 8, 8), dtype=np.uint8)
    return Images(pixels, (np.arange(8) < 1 + 3 * seed).astype(np.int64), tuple("abcdefgh"))


def problem(model: Any, found: Images) -> tuple[np.ndarray, np.ndarray]:
    """(A, b) of ½·mean‖A w − b‖², w the head's bias and weight, in the order in which they travel."""
    with torch.no_grad():
        features = model.network(torch.from_numpy(found.pixels).float() / 255, features=True).double().numpy()
    return np.concatenate([np.ones((8, 1)), features], axis=1), 10.0 * found.targets - 1.0


def paper(sites: list[tuple[np.ndarray, np.ndarray]], x: np.ndarray, *, corrected: bool) -> list[np.ndarray]:
    """x after each round; all sites take part, η_g = 1."""
    c, own, course = np.zeros_like(x), [np.zeros_like(x) for _ in sites], []
    for _ in range(ROUNDS):
        models, controls = [], []
        for (A, b), c_i in zip(sites, own, strict=True):
            y = x.copy()
            for _ in range(STEPS):
                gradient = A.T @ (A @ y - b) / len(b)
                y = y - RATE * (gradient - c_i + c if corrected else gradient)
            models.append(y)
            controls.append(c_i - c + (x - y) / (STEPS * RATE))
        c = c + np.mean([new - old for new, old in zip(controls, own, strict=True)], axis=0)
        x = x + np.mean([y - x for y in models], axis=0)
        own = controls
        course.append(x)
    return course


def flat(state: Tensors) -> np.ndarray:
    return np.concatenate([state["head.bias"].ravel(), state["head.weight"].ravel()]).astype(np.float64)


def test_it_is_the_papers_algorithm_and_comes_nearer_to_the_optimum_than_averaging(study: Study) -> None:
    cohort, model, strategy = [images(0), images(1), images(2)], adapted(Probe(), Scaffold()), MeanStrategy()
    state = dict(model.read())
    sites = [problem(model, found) for found in cohort]
    x = flat(state)
    memories: list[Memory] = [{} for _ in cohort]
    expected = paper(sites, x, corrected=True)
    assert state[CONTROL].shape == (WIDTH + 1,)
    for number in range(ROUNDS):
        fold = strategy.init(state)
        for i, found in enumerate(cohort):
            anchor = model.write(state)
            memories[i] = fit(model, Squares(), found, study, str(i), number + 1, anchor, memories[i])
            fold = strategy.add(fold, Update(str(i), 1, model.read()))
        state = dict(strategy.finish(fold))
        np.testing.assert_allclose(flat(state), expected[number], rtol=1e-6, atol=1e-6)
    controls = np.stack([memory[OWN].numpy() for memory in memories])
    np.testing.assert_allclose(state[CONTROL], controls.mean(axis=0), atol=1e-6)
    A, b = (np.concatenate(parts) for parts in zip(*sites, strict=True))

    def above(w: np.ndarray) -> float:
        best = np.linalg.lstsq(A, b, rcond=None)[0]
        return float(((A @ w - b) ** 2).mean() - ((A @ best - b) ** 2).mean())

    assert above(flat(state)) < above(paper(sites, x, corrected=False)[-1])


def test_a_sites_control_is_its_mean_gradient_of_the_round(study: Study) -> None:
    model, found = adapted(Probe(), Scaffold()), images(1)
    A, b = problem(model, found)
    y, gradients = flat(model.read()), []
    for _ in range(STEPS):
        gradients.append(A.T @ (A @ y - b) / len(b))
        y = y - RATE * gradients[-1]
    memory = fit(model, Squares(), found, study, "north", 1, model.write(model.read()))
    bias_last = np.roll(np.mean(gradients, axis=0), -1)  # as the head has them
    np.testing.assert_allclose(memory[OWN].numpy(), bias_last, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(model.read()[CONTROL], memory[OWN].numpy())


@pytest.mark.parametrize("strategy", ["mean", "exact"])
@pytest.mark.parametrize("order", ["first", "last"])
def test_it_covers_what_travels_and_trains_wherever_it_stands_in_the_chain(
    strategy: str, order: str, tiny_vit: Path
) -> None:
    more = "".join(f'[[adaptation]]\nmethod = "{name}"\n' for name in ("fedbn", "fedproto", "fedprox"))
    document = text(tiny_vit, f'{more}[strategy]\nmethod = "{strategy}"\n')
    scaffold, lora = '[[adaptation]]\nmethod = "scaffold"\n', '[[adaptation]]\nmethod = "lora"\n'
    if order == "first":
        document = document.replace(scaffold, "").replace(lora, scaffold + lora)
    model = build(studies.loads(document))
    own, trains = set(model.personal), {n for n, w in model.network.named_parameters() if w.requires_grad}
    assert set(model.network.scaffold.names) == trains - own  # type: ignore[union-attr,arg-type]
    assert own <= trains
    sizes = {name: weight.numel() for name, weight in model.network.named_parameters()}
    assert sizes[CONTROL] == sum(sizes[name] for name in trains - own)


def test_a_repeated_round_starts_from_the_controls_before_it(
    tiny_vit: Path, tiny_manifest: Path, tmp_path: Path
) -> None:
    study = studies.loads(text(tiny_vit))
    bench, keep = Workbench(study, torch.device("cpu")), Keep(tmp_path / "own")
    site = replace(members(study, tiny_manifest)["north"], keep=keep)

    def answered(number: int, state: Tensors) -> Tensors:
        asked = Instruction(study.digest, "r", number, "n", digest(state), True, (), False, VERSION, state)
        update = respond(bench, site, asked).update
        assert update is not None
        return update.tensors

    start = bench.adapted.read()
    assert not start[CONTROL].any()
    one = answered(1, start)
    two = answered(2, one)
    assert digest(answered(2, one)) == digest(two)
    assert digest(answered(1, start)) == digest(one)
    assert not np.array_equal(one[CONTROL], two[CONTROL])
    kept = keep.before("r", 2)
    assert kept is not None
    np.testing.assert_array_equal(kept[f"memory/{OWN}"].numpy(), one[CONTROL])


@pytest.mark.parametrize(
    ("training", "more", "where"),
    [
        (PLAIN.replace('"sgd"', '"adamw"'), "", "training.optimiser"),
        (PLAIN.replace("momentum = 0.0", "momentum = 0.9"), "", "training.momentum"),
        (PLAIN.replace("weight_decay = 0.0", "weight_decay = 0.1"), "", "training.weight_decay"),
        (PLAIN.replace('"none"', "1.0"), "", "training.clip_norm"),
        (PLAIN, "[rounds]\nsites_per_round = 2\n", "rounds.sites_per_round"),
        (PLAIN, '[server_step]\nmethod = "adam"\n', "server_step"),
        (PLAIN, '[server_step]\nmethod = "sgd"\nlearning_rate = 0.5\n', "server_step"),
    ],
)
def test_what_the_equation_needs_is_demanded(training: str, more: str, where: str, tiny_vit: Path) -> None:
    document = text(tiny_vit, more, training)
    if "[rounds]" in more:
        document = document.replace("[rounds]\ncount = 2\n", "")
    with pytest.raises(StudyError, match=f"study: {where}: .*'scaffold'"):
        studies.loads(document)


def test_a_study_without_clipping_is_the_same_study_in_toml(tiny_vit: Path) -> None:
    study = studies.loads(text(tiny_vit))
    assert study.training.clip_norm is None
    assert 'clip_norm = "none"' in study.toml()
    assert studies.loads(study.toml()).digest == study.digest
