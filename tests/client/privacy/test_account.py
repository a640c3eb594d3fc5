"""An account: what a round costs whom, under every limit that there is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from polyclinic.client.approvals import Limits
from polyclinic.client.data.manifest import Row
from polyclinic.client.policy import Policy
from polyclinic.client.privacy.account import Account, bounds, open_account
from polyclinic.client.privacy.approval import demand_some
from polyclinic.client.privacy.ledger import Ledger
from polyclinic.core import study as studies
from polyclinic.core.errors import PolicyError
from polyclinic.core.privacy.plan import DESCRIBED
from polyclinic.core.study import Study

ROUNDS = 4


def private(extra: str = "epsilon = 4.0\n", unit: str = "patient") -> Study:
    return studies.loads(
        f'[study]\nname = "x"\n[[adaptation]]\nmethod = "lora"\n[training]\nsteps = 3\n[rounds]\ncount = {ROUNDS}\n'
        f'weight = "{unit}s"\n[privacy]\nunit = "{unit}"\nexpected = 8\n{extra}'
    )


def rows(patients: int = 100, images: int = 2) -> list[Row]:
    def split(i: int) -> str:
        return "train" if i < 0.7 * patients else "val" if i < 0.9 * patients else "test"

    names = [(i, k, f"{i}-{k}.png") for i in range(patients) for k in range(images)]
    return [Row(Path("/d") / n, "north", "0", 0, split(i), f"p{i}", j + 2, n) for j, (i, k, n) in enumerate(names)]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Callable[..., Account]]:
    ledger = Ledger(tmp_path)

    def make(study: Study, policy: Policy | None = None, approved: float | None = None, **held: Any) -> Account:
        return open_account(ledger, study, "north", rows(**held), policy or Policy(), approved)

    yield make
    ledger.close()


def spent(account: Account, split: str) -> float:
    record = account.ledger.record()
    return record.epsilon(record.charged(), 1e-5, among=account.cohorts[split])


def whole_run(account: Account, run: str = "run") -> None:
    for number in range(1, ROUNDS + 2):
        names = [one.what for one in account.plan.of_round(number)]
        account.ledger.release(account.reserve(run, number, f"base {number}", names), f"output {number}")


def test_a_whole_run_costs_everybody_what_was_planned(opened: Callable[..., Account]) -> None:
    account = opened(private())
    assert account.plan.units == {"train": 70, "val": 20, "test": 10}
    whole_run(account)
    for split, planned in account.plan.epsilon.items():
        assert 3.95 < planned <= 4.0
        assert spent(account, split) == pytest.approx(planned, rel=2e-3)
        assert spent(account, split) <= 4.0 * 1.001


def test_units_are_what_the_study_says(opened: Callable[..., Account]) -> None:
    account = opened(private(unit="image"))
    assert account.plan.units == {"train": 140, "val": 40, "test": 20}
    assert account.plan.rate == 8 / 140
    whole_run(account)
    assert spent(account, "train") > 8.0  # by patient, of whom each has two images
    assert {one.event.unit for one in account.plan.releases} == {"image"}


def test_only_what_leaves_is_charged(opened: Callable[..., Account]) -> None:
    account = opened(private())
    account.reserve("run", 1, "base", ["update"])
    assert spent(account, "val") == 0.0
    assert spent(account, "train") > 0.0
    account.reserve("run", 2, "base", ["update", "incoming/val"])
    assert 0.0 < spent(account, "val") < account.plan.epsilon["val"]
    for name in ("incoming/test", "describe/else"):
        with pytest.raises(PolicyError, match="is no release of round 2"):
            account.reserve("run", 2, "base", [name])


def test_how_images_are_spread_is_told_once_a_run_in_whichever_round_asks_first(opened: Callable[..., Account]) -> None:
    account = opened(private())
    account.reserve("run", 1, "base", ["update"])  # nobody asked
    account.reserve("run", 3, "base", ["update", *DESCRIBED])
    assert [one.what for one in account.due("run", 3, DESCRIBED)] == list(DESCRIBED)  # the same question again
    assert account.due("run", 4, DESCRIBED) == ()
    assert len(account.due("another", 1, DESCRIBED)) == len(DESCRIBED)
    with pytest.raises(PolicyError, match="is no release of round 4"):
        account.reserve("run", 4, "base", ["update", DESCRIBED[0]])


def test_kinds_that_a_site_does_not_tell_leave_their_share_to_the_others(opened: Callable[..., Account]) -> None:
    everything, outcome = opened(private()), opened(private(), Policy(tell=("outcome",)))
    noise = [{r.what: r.event.noise for r in one.plan.releases}["incoming/val"] for one in (everything, outcome)]
    assert noise[0] == pytest.approx(3**0.5 * noise[1], rel=1e-3)
    assert {r.what for r in outcome.plan.releases} == {"update", "incoming/val", "incoming/test"}


def test_the_model_is_judged_as_often_as_the_study_says_and_at_its_end(opened: Callable[..., Account]) -> None:
    for judged, rounds in ((1, [5]), (2, [3, 5]), (4, [2, 3, 4, 5]), (9, [1, 2, 3, 4, 5])):
        account = opened(private(f"epsilon = 4.0\njudged = {judged}\n"))
        assert [r.round for r in account.plan.releases if r.what == "incoming/val"] == rounds


@pytest.mark.parametrize(
    ("policy", "approved", "extra", "whose"),
    [
        (Policy(epsilon=5.0), None, "epsilon = 4.0\n", "this site's limit"),
        (Policy(), 5.0, "epsilon = 4.0\n", "limit of this site's approval"),
        (Policy(), None, "epsilon = 4.0\nlimit = 5.0\n", "the study's own limit"),
        (Policy(epsilon=3.0), None, "epsilon = 4.0\n", "this site's limit"),
    ],
)
def test_every_limit_is_kept_before_the_first_round_and_over_runs(
    opened: Callable[..., Account], policy: Policy, approved: float | None, extra: str, whose: str
) -> None:
    account = opened(private(extra), policy, approved)
    if policy.epsilon != 3.0:
        whole_run(account)  # the first run fits; a second does not
    with pytest.raises(PolicyError, match=whose):
        account.reserve("another", 1, "base", ["update"])


def test_another_study_counts_against_the_site_and_not_the_approval(opened: Callable[..., Account]) -> None:
    whole_run(opened(private("epsilon = 3.9\n")))
    whole_run(opened(private(), approved=4.1))
    with pytest.raises(PolicyError, match="all that the site ever released"):
        opened(private("epsilon = 3.8\n"), Policy(epsilon=6.5)).reserve("run", 1, "base", ["update"])


def test_simulated_noise_is_the_same_in_every_run_and_says_so(opened: Callable[..., Account]) -> None:
    account = opened(private('epsilon = 4.0\ngenerator = "simulated"\n'))
    one, two = (account.reserve(run, 1, "base", ["update"]) for run in ("one", "two"))
    assert (one.key, one.generator) == (two.key, "simulated")
    assert account.reserve("two", 2, "base", ["update"]).key != one.key
    assert account.receipt(two).generator == "simulated"
    secure = opened(private())
    assert secure.reserve("one", 1, "base", ["update"]).key != secure.reserve("two", 1, "base", ["update"]).key


def test_a_site_that_is_too_small_is_refused_before_anything(opened: Callable[..., Account]) -> None:
    with pytest.raises(PolicyError, match=r"privacy.expected is 8"):
        opened(private(), patients=10)


def test_limits_and_studies_without_privacy() -> None:
    plain = studies.loads('[study]\nname = "x"\n[[adaptation]]\nmethod = "lora"\n')
    with pytest.raises(PolicyError, match="no ε at all"):
        Policy(epsilon=4.0).demand_privacy(plain)
    with pytest.raises(PolicyError, match="no ε at all"):
        demand_some(plain, Limits(epsilon=4.0))
    Policy().demand_privacy(plain)
    Policy(epsilon=4.0).demand_privacy(private())
    assert [one.epsilon for one in bounds(private("epsilon = 4.0\nlimit = 6.0\n"), Policy(epsilon=9.0), 5.0)] == [
        9,
        5,
        6,
    ]


@pytest.mark.parametrize("wrong", ["", "0", "-1", "nan", "inf", "four"])
def test_an_epsilon_that_is_none_is_refused(wrong: str) -> None:
    assert Limits.read(epsilon="4") == Limits(epsilon=4.0)
    assert Limits(epsilon=4.0).words() == "at most ε = 4 for any patient"
    with pytest.raises(PolicyError, match="is no epsilon"):
        Limits.read(epsilon=wrong)
