"""Noise at the server in the loop: who is asked, how much noise there is, and that each state is paid for once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from polyclinic.core import ledger
from polyclinic.core import study as studies
from polyclinic.core.errors import DivergedError, QuorumError, RunError
from polyclinic.core.messages import Reply, decode_instruction, encode_reply
from polyclinic.core.privacy.accounting import epsilon
from polyclinic.core.privacy.events import Event
from polyclinic.core.statistics.monoid import Withheld
from polyclinic.core.study import Study
from polyclinic.core.update import Tensors, Update, digest
from polyclinic.server import rounds
from polyclinic.server.central import Mechanism
from polyclinic.server.journal import Journal, State
from polyclinic.server.receive import Delivery
from polyclinic.strategies.clipped import ClippedSum

WIDE = 4000
INITIAL: Tensors = {"head.bias": np.zeros(2, np.float32), "head.weight": np.zeros((2, WIDE), np.float32)}


class Steady:
    """Sites that each move every number by ``step``; a dead one says nothing, and ``stops`` ends the process."""

    def __init__(self, count: int, step: float = 0.0, dead: Sequence[str] = (), stops: int = 0) -> None:
        self._names = [f"s{i:03d}" for i in range(count)]
        self._step, self._dead, self._stops = step, dead, stops
        self.asked: list[tuple[int, str]] = []
        self.bases: list[str] = []
        self.described: list[bool] = []

    def names(self) -> Sequence[str]:
        return self._names

    def send(self, message: bytes, to: Sequence[str], deadline: float) -> Iterator[Delivery]:
        asked = decode_instruction(message)
        self.bases.append(asked.base)
        self.described.append(asked.describe)
        for site in to:
            self.asked.append((asked.round, site))
            if site in self._dead:
                yield Delivery(site, failure="it broke")
                continue
            moved = {name: array + np.float32(self._step) for name, array in asked.tensors.items()}
            update = Update(site, 1, moved) if asked.fit else None
            same = (site, asked.study, asked.run, asked.round, asked.nonce, asked.base)
            told = {"incoming/val": Withheld("outcome", 10)}
            yield Delivery(site, encode_reply(Reply(*same, update, told, {"train": (9, 9)}, 0.1)))
        if asked.round == self._stops:
            raise KeyboardInterrupt


def study(central: str, count: int = 3, quorum: float = 0.5, extra: str = "") -> Study:
    return studies.loads(
        '[study]\nname = "x"\n[[adaptation]]\nmethod = "lora"\n'
        f'[rounds]\nweight = "equal"\ncount = {count}\nquorum = {quorum}\n[central]\n{central}\n{extra}'
    )


def play(agreed: Study, sites: Steady, folder: Path | None = None) -> tuple[State, Journal]:
    journal = Journal.create(folder, {"run": "run"})
    return rounds.train(agreed, sites, INITIAL, journal, lambda event: None), journal


def numbers(tensors: Tensors) -> np.ndarray:
    return np.concatenate([tensors[name].astype(float).ravel() for name in sorted(tensors)])


def test_without_a_clip_that_bites_the_sum_is_noised_by_as_much_as_said_and_divided_by_a_constant() -> None:
    """Ten sites of which two fail: the sum lacks them, the divisor does not change."""
    agreed = study("sites = 20\nnoise = 2.0\nclip = 3.0", count=1, quorum=0.4)
    state, _ = play(agreed, Steady(10, 1e-3, dead=("s003", "s007")))
    noise = numbers(state.tensors) - 8 * 1e-3 / 20
    variance = (2.0 * 3.0 / 20) ** 2
    low, high = stats.chi2.ppf([1e-7, 1 - 1e-7], len(noise)) * variance
    assert low < np.square(noise).sum() < high
    assert stats.kstest(noise / variance**0.5, "norm").pvalue > 1e-6


def test_a_site_that_sends_much_is_worth_no_more_than_the_clip() -> None:
    agreed = study('sites = 2\nnoise = 0.3\nclip = 100.0\ngenerator = "simulated"', count=1)
    far, _ = play(agreed, Steady(2, 1000.0))
    none, _ = play(agreed, Steady(2, 0.0))
    moved = numbers(far.tensors) - numbers(none.tensors)  # simulated noise is the same in both
    assert np.linalg.norm(moved) == pytest.approx(100.0, rel=1e-4)


def test_sites_are_drawn_by_themselves_with_the_rate() -> None:
    count, rate, times = 40, 0.3, 400
    agreed = study(f"sites = {count}\nnoise = 1.0\nrate = {rate}", count=times)
    mechanism, journal = Mechanism.of(agreed), Journal.create(None, {"run": "run"})
    assert mechanism is not None
    names = Steady(count).names()
    drawn = [mechanism.choose(names, number, journal) for number in range(1, times + 1)]
    sizes = np.array([len(sites) for sites in drawn])
    expected = stats.binom.pmf(np.arange(count + 1), count, rate) * times
    enough = expected > 8
    seen = np.bincount(sizes, minlength=count + 1)
    pooled = np.append(seen[enough], seen[~enough].sum()), np.append(expected[enough], expected[~enough].sum())
    assert stats.chisquare(*pooled).pvalue > 1e-6
    often = Counter(site for sites in drawn for site in sites)
    assert all(abs(often[site] / times - rate) < 6 * np.sqrt(rate * (1 - rate) / times) for site in names)
    again = mechanism.choose(names[::-2], 7, journal)  # asked anew, with others gone: nobody is drawn another time
    assert set(again) == set(drawn[6]) & set(names[::-2])


def test_who_is_drawn_does_not_follow_from_the_study_unless_it_is_simulated() -> None:
    for generator, same in (("system", False), ("simulated", True)):
        agreed = study(f'sites = 40\nnoise = 1.0\nrate = 0.5\ngenerator = "{generator}"', count=2)
        one, other = Steady(40), Steady(40)
        states = [play(agreed, sites)[0] for sites in (one, other)]
        assert (one.asked == other.asked) is same
        assert (digest(states[0].tensors) == digest(states[1].tensors)) is same


def test_a_round_in_which_nobody_is_drawn_is_noise_alone_and_is_charged() -> None:
    sites = Steady(3, 1.0)
    state, journal = play(study("sites = 3\nnoise = 1.0\nrate = 1e-6\nclip = 1e-6"), sites)
    assert sites.asked == []
    assert len(list(journal.entries("central"))) == len(journal.rounds()) == 3
    assert np.std(numbers(state.tensors)) > 0


def test_every_round_is_charged_by_its_events_and_the_record_says_so() -> None:
    agreed = study("sites = 30\nnoise = 1.5\nrate = 0.2", count=4)
    _, journal = play(agreed, Steady(30))
    events = [Event.read(entry.body["event"]) for entry in journal.entries("central")]
    assert [event.document() for event in events] == [Event("poisson_gaussian", 1.5, 0.2, 1, "site").document()] * 4
    for number, record in enumerate(journal.rounds(), 1):
        told = record["privacy"]
        assert told["study"] == epsilon(events[:number], 1e-5)
        assert (told["unit"], told["adjacency"], told["delta"]) == ("site", "add or remove one", 1e-5)
        assert told["known"] == epsilon([Event("gaussian", 1.5, steps=number)], 1e-5)


def test_the_question_does_not_tell_whether_others_were_drawn_who_had_not_told() -> None:
    sites = Steady(5)
    play(study("sites = 5\nnoise = 1.0\nrate = 0.9", count=5), sites)
    assert set(sites.described) == {True}


@pytest.mark.parametrize("central", ["rate = 0.5", 'mechanism = "banded"\nbands = 2', 'clipping = "adaptive"'])
def test_a_killed_run_draws_no_other_sites_and_pays_once_for_every_state_that_leaves(
    tmp_path: Path, central: str
) -> None:
    agreed = study(f"sites = 12\nnoise = 1.0\n{central}", count=4)
    killed = Steady(12, 1e-3, stops=2)
    with pytest.raises(KeyboardInterrupt):
        play(agreed, killed, tmp_path)
    journal = Journal.open(tmp_path)
    assert len(list(journal.entries("central"))) == 1
    resumed = Steady(12, 1e-3)
    state = rounds.train(agreed, resumed, INITIAL, journal, lambda event: None)

    def of_two(sites: Steady) -> list[str]:
        return [site for number, site in sites.asked if number == 2]

    assert of_two(killed) == of_two(resumed)
    records = journal.rounds()
    paid = {record["result"] for record in records} | {digest(INITIAL)}
    assert set(killed.bases) | set(resumed.bases) | {digest(state.tensors)} <= paid
    assert [entry.body["round"] for entry in journal.entries("central")] == [1, 2, 3, 4]
    list(ledger.verify((tmp_path / "ledger.jsonl").read_text().splitlines()))


def test_a_round_that_could_not_be_committed_released_nothing_and_gets_new_noise(tmp_path: Path) -> None:
    agreed = study("sites = 12\nnoise = 1.0\nrate = 0.5", count=1)
    tried: list[State] = []

    class Torn(Journal):
        def commit(self, **given: Any) -> None:
            if given.get("record"):
                tried.append(given["state"])
                raise KeyboardInterrupt
            super().commit(**given)

    torn = Torn.create(tmp_path, {"run": "run"})
    torn = Torn(torn._db, tmp_path, torn._clock)
    with pytest.raises(KeyboardInterrupt):
        rounds.train(agreed, Steady(12), INITIAL, torn, lambda event: None)
    torn.close()
    journal = Journal.open(tmp_path)
    assert list(journal.entries("central")) == journal.rounds() == []
    state = rounds.train(agreed, Steady(12), INITIAL, journal, lambda event: None)
    assert digest(state.tensors) != digest(tried[0].tensors)
    assert len(list(journal.entries("central"))) == 1


@pytest.mark.parametrize("central", ["rate = 0.5", 'mechanism = "banded"\nbands = 2'])
def test_a_round_that_diverged_has_told_something_and_is_charged_each_time(central: str) -> None:
    extra = '[server_step]\nmethod = "adam"\nlearning_rate = 1e9\n'
    agreed = study(f"sites = 12\nnoise = 1.0\n{central}", count=4, extra=extra)
    journal = Journal.create(None, {"run": "run"})
    for times in (1, 2):
        with pytest.raises(DivergedError):
            rounds.train(agreed, Steady(12), INITIAL, journal, lambda event: None)
        assert sum(entry.body["event"] is not None for entry in journal.entries("central")) == times
        assert journal.key("draw/1") is None


def test_the_key_that_drew_is_gone_once_its_round_is_over() -> None:
    _, journal = play(study("sites = 12\nnoise = 1.0\nrate = 0.5", count=2), Steady(12))
    assert [journal.key(f"draw/{number}") for number in (1, 2)] == [None, None]


def test_enough_sites_must_be_there_before_anyone_is_drawn_and_none_is_missed_afterwards() -> None:
    names = Steady(10).names()
    agreed = study("sites = 20\nnoise = 1.0\nrate = 0.5", quorum=0.5)
    state, _ = play(agreed, Steady(10, dead=names))  # all fail, and the run goes on: stopping would tell of the draw
    assert state.round == 3
    with pytest.raises(QuorumError, match="9 of 20 sites can be asked, 10 are needed"):
        play(agreed, Steady(9))
    with pytest.raises(QuorumError, match="0 of 10 sites answered well"):  # nobody is hidden where all are asked
        play(study("sites = 20\nnoise = 1.0", quorum=0.5), Steady(10, dead=names))


def test_more_sites_than_the_study_says_are_refused() -> None:
    with pytest.raises(RunError, match=r"21 sites can be asked, and central\.sites says 20"):
        play(study("sites = 20\nnoise = 1.0"), Steady(21))


def test_groups_are_asked_in_turn_each_site_once() -> None:
    sites, bands = Steady(40), 4
    play(study(f'sites = 40\nnoise = 1.0\nmechanism = "banded"\nbands = {bands}', count=9), sites)
    for name in sites.names():
        rounds_asked = [number for number, site in sites.asked if site == name]
        assert {n % bands for n in rounds_asked} == {rounds_asked[0] % bands}
        assert np.diff(rounds_asked).tolist() == [bands] * (len(rounds_asked) - 1)
    assert len({site for _, site in sites.asked}) == 40


def test_banded_noise_of_a_run_is_what_the_matrix_says(tmp_path: Path) -> None:
    """Without any change the state after T rounds is the T-th prefix of the noise."""
    bands, count = 3, 8
    agreed = study(f'sites = 6\nnoise = 1.0\nclip = 2.0\nmechanism = "banded"\nbands = {bands}', count=count)
    state, journal = play(agreed, Steady(6), tmp_path)
    c = np.array([1.0, 0.5, 0.375])
    matrix = sum(np.diag([c[k]] * (count - k), -k) for k in range(bands))
    last = np.ones(count) @ np.linalg.inv(matrix)
    deviation = np.linalg.norm(c) * 2.0 * np.linalg.norm(last) / agreed.central.expected  # type: ignore[union-attr]
    noise = numbers(state.tensors) / deviation
    low, high = stats.chi2.ppf([1e-7, 1 - 1e-7], len(noise))
    assert low < np.square(noise).sum() < high
    assert sum(name.startswith("central/noise/") for name in state.memory) == (bands - 1) * len(INITIAL)
    said = (tmp_path / "rounds.jsonl").read_text() + (tmp_path / "ledger.jsonl").read_text()
    assert "central/noise" not in said
    assert len(json.loads(said.splitlines()[0])["privacy"]) == 8
    journal.close()


def test_an_adaptive_clip_goes_to_the_quantile_and_update_and_count_share_one_gaussian() -> None:
    agreed = study('sites = 1000\nnoise = 1.0\nclipping = "adaptive"\nquantile = 0.7\nclip = 0.1', count=1)
    mechanism = Mechanism.of(agreed)
    assert mechanism is not None
    share = mechanism.terms.count_share
    update, count = 1.0 / np.sqrt(1 - share), 1.0 / (2 * np.sqrt(share))
    assert update == pytest.approx((1.0**-2 - (2 * count) ** -2) ** -0.5)  # Andrew et al., theorem 1
    rng = np.random.default_rng(0)
    reference = {"a": np.zeros(3, np.float32)}
    norms = rng.lognormal(1.0, 0.5, 1000)
    state, clips = State(0, reference, mechanism.start()), []
    for number in range(120):
        strategy = mechanism.strategy(state.memory)
        assert isinstance(strategy, ClippedSum)
        fold = strategy.init(reference)
        for norm in norms:
            direction = rng.normal(size=3)
            sent = {"a": (norm * direction / np.linalg.norm(direction)).astype(np.float32)}
            fold = strategy.add(fold, Update("s", 1, sent))
        memory, _ = mechanism.noised(state, strategy.finish(fold))
        state = State(number + 1, reference, memory)
        clips.append(float(memory["central/clip"][0]))
    within = np.array([(norms <= clip).mean() for clip in clips[60:]])
    # the count of 1000 has noise of 5: a share is off by 0.005, and the clip's walk adds little to that
    assert abs(within.mean() - 0.7) < 0.02


def test_what_the_sites_are_worth_alone_is_measured_without_noise() -> None:
    agreed = study("sites = 4\nnoise = 5.0", count=2)
    journal = Journal.create(None, {"run": "run"})
    state = rounds.train(agreed, Steady(4, 0.25), INITIAL, journal, lambda event: None, noised=False)
    assert np.array_equal(numbers(state.tensors), np.full(2 * WIDE + 2, 0.5))
    assert "privacy" not in journal.rounds()[0]


@pytest.mark.parametrize("step", ["sgd", "momentum", "adam"])
def test_any_server_step_goes_over_what_is_noised_already(step: str) -> None:
    agreed = study(
        'sites = 4\nnoise = 1.0\nclipping = "adaptive"', extra=f'[server_step]\nmethod = "{step}"\nlearning_rate = 0.5'
    )
    state, _ = play(agreed, Steady(4))
    assert state.round == 3
    assert [name for name in state.memory if name.startswith("central/")] == ["central/clip"]
