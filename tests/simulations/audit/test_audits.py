"""Audits of what should hold: no bound exceeds its claim, and where theory promises a bound, there is one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
from scipy.stats import binom

from polyclinic.core.privacy.accounting import epsilon
from polyclinic.core.privacy.events import Event
from polyclinic.core.study import Study
from polyclinic.models.network import build
from polyclinic.simulations.audit.attack import COMPANY, Attack, attack, trained
from polyclinic.simulations.audit.bound import Guesses, accuracy, separation
from polyclinic.simulations.audit.canaries import Kind
from tests.models.test_methods import KNOBS
from tests.simulations.audit.conftest import SGD, MakeStudy

ADAM, MOMENTUM = "", 'optimiser = "sgd"\nmomentum = 0.9\nweight_decay = 0.0\n'


@dataclass(frozen=True)
class Case:
    """An audit; ``bites``: theory says what it finds at least."""

    method: str = "lora"
    task: str = "binary"
    kind: Kind = "gradient"
    unit: str = "patient"
    clipping: str = "flat"
    noise: float = 0.5
    rounds: int = 1
    steps: int = 1
    training: str = SGD
    full: bool = True
    canaries: int = 400
    more: str = ""
    bites: bool = True

    def study(self, private: MakeStudy) -> Study:
        more = f'unit = "{self.unit}"\nclipping = "{self.clipping}"\n{self.more}'
        return private(
            self.method,
            self.task,
            noise=self.noise,
            rounds=self.rounds,
            steps=self.steps,
            training=self.training,
            more=more,
            knobs=KNOBS.get(self.method, "") + "\n",
        )

    @property
    def name(self) -> str:
        words = [self.method, self.task, self.kind, self.unit, self.clipping, f"{self.rounds}x{self.steps}"]
        words += ["every step" if self.full else "sampled", self.training.split('"')[1] if self.training else "adamw"]
        return " ".join(words) + (" momentum" if self.training == MOMENTUM else "")


FAST = (
    Case(canaries=1000),
    Case(method="vpt", unit="image", noise=0.4),
    Case(task="segmentation", clipping="automatic", noise=0.4, canaries=200),
    Case(kind="input", task="detection", noise=0.3, canaries=100, bites=False),
)
LONG = (
    Case(method="rslora", canaries=1000, noise=0.3),
    Case(method="dora", canaries=1000),
    Case(method="pissa", canaries=1000),
    Case(method="conv_lora"),
    Case(method="houlsby", canaries=1000, noise=0.3),
    Case(method="adaptformer", canaries=1000, unit="image"),
    Case(method="ladder", noise=0.4),
    Case(method="oft"),
    Case(method="full", canaries=1000),
    Case(method="last_blocks", canaries=1000),
    Case(method="layernorm", canaries=300, noise=0.3),
    Case(method="bitfit", noise=0.3),
    Case(method="ia3", canaries=300, noise=0.3, bites=False),
    Case(method="probe", canaries=60, noise=0.3, bites=False),
    Case(task="multiclass", canaries=1000, rounds=4, noise=1.0),
    Case(task="multilabel", canaries=1000, unit="image", clipping="automatic"),
    Case(task="segmentation", method="houlsby", canaries=1000, noise=0.4),
    Case(task="detection", canaries=1000, noise=0.4),
    Case(task="detection", method="layernorm", unit="image"),
    Case(clipping="per_layer", noise=0.4, bites=False),
    Case(method="houlsby", clipping="per_layer", unit="image", noise=0.4, bites=False),
    Case(rounds=3, steps=4, noise=2.0, canaries=1000),
    Case(rounds=2, steps=3, training=MOMENTUM, noise=1.0, bites=False),
    Case(rounds=2, steps=2, training=ADAM, noise=0.5, bites=False),
    Case(rounds=2, steps=5, full=False, noise=0.5, bites=False),
    Case(rounds=2, steps=2, more='step = "opacus"\n', bites=False),
    Case(kind="input", task="multiclass", noise=0.3, rounds=2, steps=2, training=ADAM, canaries=200, bites=False),
    Case(kind="input", noise=0.3, rounds=2, canaries=100, bites=False),
    Case(kind="input", task="segmentation", noise=0.3, canaries=200, unit="image", bites=False),
    Case(kind="input", method="full", unit="image", noise=0.3, rounds=2, steps=3, canaries=200, bites=False),
)


def least(study: Study, found: Attack, steps: int) -> float:
    """The bound that theory promises but for one run in ten thousand: noise is all that hides a canary, and a little
    comes from the patients beside them, whose gradients may all lie along one direction."""
    numbers = sum(math.prod(shape) for shape in trained_shapes(study).values())
    assert study.privacy is not None
    noise = math.hypot(study.privacy.noise or 0.0, COMPANY * math.sqrt(steps / numbers))
    apart = separation(noise, 1.0, steps)
    bounds = []
    for made in (one.made for one in found.guesses):
        right = int(binom.ppf(1e-4, made, accuracy(apart, made / found.guesses[0].canaries)))
        bounds.append(Guesses(found.guesses[0].canaries, made, right).bound(found.delta, 0.975))
    return max(bounds)


def trained_shapes(study: Study) -> dict[str, tuple[int, ...]]:
    return trained(build(study))


def audited(case: Case, private: MakeStudy) -> None:
    study = case.study(private)
    found = attack(study, case.kind, case.canaries, np.random.default_rng(7), full=case.full)
    assert found.passed
    assert found.bound <= found.claim
    assert found.guesses[-1].made >= found.guesses[0].canaries - 1 >= 40
    if case.full:
        event = Event("gaussian", case.noise, 1.0, case.rounds * case.steps)
        assert found.claim == pytest.approx(epsilon([event], found.delta), rel=1e-3)
    if case.bites:
        promised = least(study, found, case.rounds * case.steps)
        assert promised > 0.3
        assert found.bound >= promised


@pytest.mark.parametrize("case", FAST, ids=lambda case: case.name)
def test_the_bound_is_below_the_claim_and_bites(case: Case, private: MakeStudy) -> None:
    audited(case, private)


@pytest.mark.audit
@pytest.mark.parametrize("case", LONG, ids=lambda case: case.name)
def test_so_it_is_for_every_method_task_and_unit(case: Case, private: MakeStudy) -> None:
    audited(case, private)


@pytest.mark.audit
def test_one_seed_is_one_audit(private: MakeStudy) -> None:
    study = private(noise=1.0, steps=2, rounds=2)
    one, same, other = (attack(study, "gradient", 100, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one == same != other
    assert one.claim == other.claim


def test_there_are_more_than_twenty_audits_of_every_task_unit_clipping_and_kind() -> None:
    cases = FAST + LONG
    assert len({case.name for case in cases}) == len(cases) >= 20
    assert {case.task for case in cases} == {"binary", "multiclass", "multilabel", "segmentation", "detection"}
    assert {case.unit for case in cases} == {"patient", "image"}
    assert {case.clipping for case in cases} == {"flat", "per_layer", "automatic"}
    assert {case.kind for case in cases} == {"gradient", "input"}
    assert len({case.method for case in cases}) >= 12
    assert sum(case.bites for case in cases) >= 15
