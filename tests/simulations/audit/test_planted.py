"""Every planted bug is caught, and what is as it should be raises no alarm."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from polyclinic.client.private.step import Make, PrivateStep
from polyclinic.core.study import Study
from polyclinic.simulations.audit import checks
from polyclinic.simulations.audit.attack import attack
from polyclinic.simulations.audit.checks import Finding
from polyclinic.simulations.audit.neighbours import moved
from polyclinic.simulations.audit.witness import drawn, short
from tests.simulations.audit.conftest import MakeStudy
from tests.simulations.audit.planted import MORE, TEN, ClippedAfterwards, LastForgotten, Planted, Unclipped, WrongBatch

Check = Callable[[Study, np.random.Generator, Make], Finding]
ONE: dict[str, Check] = {
    "gradients": checks.own_gradients,
    "sensitivity": lambda *given: checks.sensitivity(moved(*given)),
    "sampling": lambda *given: checks.poisson(*drawn(*given)),
    "noise": lambda *given: checks.noise_size(short(*given)),
    "fresh noise": lambda *given: checks.noise_fresh(short(*given)),
    "ledger": lambda *given: checks.ledger(short(*given)),
    "statistics": lambda *given: checks.statistics(short(*given)),
}


def test_nothing_is_found_where_nothing_is_planted(private: MakeStudy) -> None:
    found = list(checks.checks(private(), np.random.default_rng(0)))
    assert [one.check for one in found] == list(ONE)
    assert all(one.passed for one in found), found


@pytest.mark.parametrize(
    "bug", [*TEN, *(pytest.param(bug, marks=pytest.mark.audit) for bug in MORE)], ids=lambda bug: bug.name
)
def test_a_planted_bug_is_caught(bug: Planted, private: MakeStudy, monkeypatch: pytest.MonkeyPatch) -> None:
    study, make = private(), bug.plant(monkeypatch)
    for check in bug.caught_by:
        found = ONE[check](study, np.random.default_rng(0), make)
        assert not found.passed, found


def test_ten_different_bugs_are_planted_and_every_check_is_needed() -> None:
    assert len({bug.name for bug in TEN}) == 10
    assert {check for bug in TEN for check in bug.caught_by} == set(ONE)


@pytest.mark.parametrize("make", [Unclipped, ClippedAfterwards, LastForgotten, WrongBatch])
def test_the_attack_refutes_a_claim_that_does_not_hold_and_none_that_does(make: Make, private: MakeStudy) -> None:
    study = private(noise=3.0, portion=512)
    true, wrong = (
        attack(study, "gradient", 300, np.random.default_rng(1), full=True, make=m) for m in (PrivateStep, make)
    )
    assert true.claim == wrong.claim
    assert true.passed
    assert true.bound <= true.claim < wrong.bound
    assert not wrong.passed


@pytest.mark.audit
def test_pictures_alone_refute_a_claim_whose_noise_is_forgotten(private: MakeStudy) -> None:
    study = private(task="detection", noise=3.0, portion=512)
    true, wrong = (
        attack(study, "input", 200, np.random.default_rng(1), full=True, make=m) for m in (PrivateStep, WrongBatch)
    )
    assert true.passed
    assert true.bound <= true.claim < wrong.bound
    assert not wrong.passed
