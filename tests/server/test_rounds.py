"""The loop with sites that exist only as bytes: what is good counts once, what is bad is set aside with its reason."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyclinic.core import ledger, seeds
from polyclinic.core import study as studies
from polyclinic.core.errors import RunError
from polyclinic.core.messages import Instruction, Reply, decode_instruction, encode_reply
from polyclinic.core.statistics.contents import Labels
from polyclinic.core.statistics.monoid import Withheld
from polyclinic.core.statistics.outcome import Outcome, tally
from polyclinic.core.study import Study
from polyclinic.core.update import Tensors, Update, digest
from polyclinic.server import rounds
from polyclinic.server.journal import Journal
from polyclinic.server.rounds import Delivery

Change = Callable[[Reply], Reply | bytes | None]


def study(extra: str = "") -> Study:
    return studies.loads(f'[study]\nname = "x"\n[[adaptation]]\nmethod = "lora"\n[rounds]\ncount = 3\n{extra}')


INITIAL: Tensors = {"head.weight": np.zeros((2, 3), np.float32), "head.bias": np.zeros(2, np.float32)}


class Fakes:
    """Sites that answer by adding noise of their own; ``changes`` bend a site's replies."""

    def __init__(self, names: Sequence[str], changes: dict[str, Change] | None = None, repeat: int = 1) -> None:
        self._names, self._changes, self._repeat = names, changes or {}, repeat
        self.asked: list[tuple[int, str]] = []

    def names(self) -> Sequence[str]:
        return self._names

    def send(self, message: bytes, to: Sequence[str], deadline: float) -> Iterator[Delivery]:
        asked = decode_instruction(message)
        for site in to:
            self.asked.append((asked.round, site))
            answer = self._changes.get(site, lambda reply: reply)(honest(site, asked))
            body = encode_reply(answer) if isinstance(answer, Reply) else answer
            for _ in range(self._repeat):
                yield Delivery(site, body, "" if body else "it broke")


def honest(site: str, asked: Instruction) -> Reply:
    rng = seeds.generator("fake", site, asked.round)
    tensors = {
        name: array + rng.normal(size=array.shape).astype(np.float32)
        for name, array in asked.tensors.items()
        if not name.endswith(".residual")
    }
    update = Update(site, len(site), tensors) if asked.fit else None
    told = {"incoming/val": Withheld("outcome", 10)}
    return Reply(
        site,
        asked.study,
        asked.run,
        asked.round,
        asked.nonce,
        asked.base,
        update,
        told,
        {"train": (len(site),) * 2},
        0.1,
    )


def play(sites: Fakes, folder: Path | None = None, agreed: Study | None = None) -> tuple[str, Journal]:
    agreed = agreed or study()
    journal = Journal.create(folder, {"run": "run"})
    state = rounds.run(agreed, sites, INITIAL, journal, lambda event: None)
    return digest(state.tensors), journal


def with_update(change: Callable[[Update], Update]) -> Change:
    return lambda reply: replace(reply, update=change(reply.update)) if reply.update else reply


def with_tensor(array: np.ndarray) -> Change:
    return with_update(lambda update: replace(update, tensors={**update.tensors, "head.bias": array}))


def outcome(**bins: int) -> Outcome:
    return tally("binary", np.array([0.2, 0.7]), np.array([0, 1]), ["p", "q"], np.array([0.2, 0.4]), **bins)


def telling(statistic: Any) -> Change:
    return lambda reply: replace(reply, statistics={"incoming/val": statistic})


HOSTILE: dict[str, tuple[Change, str]] = {
    "nan": (with_tensor(np.array([0, np.nan], np.float32)), "NaN"),
    "infinity": (with_tensor(np.array([0, np.inf], np.float32)), "infinity"),
    "huge": (with_tensor(np.array([0, 1e7], np.float32)), "above"),
    "shape": (with_tensor(np.zeros(3, np.float32)), "shape"),
    "dtype": (with_tensor(np.zeros(2, np.float64)), "F32"),
    "missing": (with_update(lambda u: replace(u, tensors={"head.bias": u.tensors["head.bias"]})), "missing"),
    "extra": (with_update(lambda u: replace(u, tensors={**u.tensors, "x": np.zeros(1, np.float32)})), "not agreed"),
    "weight zero": (with_update(lambda u: replace(u, weight=0)), "weight"),
    "weight negative": (with_update(lambda u: replace(u, weight=-99)), "weight"),
    "weight absurd": (with_update(lambda u: replace(u, weight=2**50)), "weight"),
    "no update": (lambda reply: replace(reply, update=None), "update was asked for and is missing"),
    "other study": (lambda reply: replace(reply, study="0" * 64), "another study"),
    "other run": (lambda reply: replace(reply, run="else"), "another run"),
    "other round": (lambda reply: replace(reply, round=reply.round + 1), "another round"),
    "other nonce": (lambda reply: replace(reply, nonce="0"), "another nonce"),
    "other base": (lambda reply: replace(reply, base="0"), "another base"),
    "other name": (lambda reply: replace(reply, site="aa"), "another site's name"),
    "free text": (lambda reply: replace(reply, statistics={"my/own": Withheld("outcome", 3)}), "not agreed on"),
    "other kind": (telling(Labels.of(np.array([0, 1]), ["p", "q"], ("no", "yes"))), "of another kind"),
    "other kind withheld": (telling(Withheld("labels", 10)), "of another kind"),
    "other bins": (telling(outcome(bins=7)), "another configuration"),
    "other score bins": (telling(outcome(score_bins=64)), "another configuration"),
    "no message": (lambda reply: None, "it broke"),
    "noise": (lambda reply: b"\x00" * 100, "protocol"),
    "pickle": (lambda reply: b"\x80\x04\x95.", "protocol"),
    "torn": (lambda reply: encode_reply(reply)[:60], "damaged"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_bad_reply_is_set_aside_and_the_round_goes_on_without_it(kind: str) -> None:
    change, reason = HOSTILE[kind]
    found, journal = play(Fakes(["aa", "bbb", "cccc"], {"cccc": change}))
    without, _ = play(Fakes(["aa", "bbb"]))
    assert found == without
    record = journal.rounds()[0]
    assert list(record["excluded"]) == ["cccc"]
    assert reason in record["excluded"]["cccc"]
    entries = [ledger.Entry(**ledger_line) for ledger_line in _ledger(journal)]
    assert any("cccc" in pair and reason in pair[1] for e in entries if e.kind == "round" for pair in e.body["refused"])


def _ledger(journal: Journal) -> list[dict[str, object]]:
    return [json.loads(row) for row in journal._lines("SELECT line FROM ledger ORDER BY sequence")]


def test_who_answers_twice_counts_once_and_the_ledger_says_so() -> None:
    once, _ = play(Fakes(["aa", "bbb"]))
    twice, journal = play(Fakes(["aa", "bbb"], repeat=2))
    assert once == twice
    assert journal.rounds()[0]["excluded"] == {}
    (entry,) = [line for line in _ledger(journal) if line["kind"] == "round"][:1]
    assert [pair[1] for pair in entry["body"]["refused"]] == ["answered twice in one round"] * 2  # type: ignore[index]


def test_a_site_that_nobody_asked_and_one_that_claims_another_are_refused() -> None:
    class Stranger(Fakes):
        def send(self, message: bytes, to: Sequence[str], deadline: float) -> Iterator[Delivery]:
            asked = decode_instruction(message)
            yield Delivery("stranger", encode_reply(honest("stranger", asked)))
            yield from super().send(message, to, deadline)

    assert play(Stranger(["aa", "bbb"]))[0] == play(Fakes(["aa", "bbb"]))[0]


def test_order_of_replies_changes_no_bit() -> None:
    class Backwards(Fakes):
        def send(self, message: bytes, to: Sequence[str], deadline: float) -> Iterator[Delivery]:
            yield from super().send(message, list(reversed(to)), deadline)

    names = ["aa", "bbb", "cccc", "ddddd"]
    assert play(Backwards(names))[0] == play(Fakes(names))[0]


def test_weight_is_cut_to_what_the_study_allows() -> None:
    def greedy(reply: Reply) -> Reply:
        many = replace(reply, sizes={"train": (10**9, 10**9)})
        return with_update(lambda update: replace(update, weight=10**9))(many)  # type: ignore[return-value]

    agreed = study("weight_cap = 3\n")
    capped, _ = play(Fakes(["aa", "bbb"], {"aa": greedy}), agreed=agreed)
    one = with_update(lambda update: replace(update, weight=1))
    equal, journal = play(Fakes(["aa", "bbb"], {"aa": one, "bbb": one}), agreed=study('weight = "equal"\n'))
    assert capped == equal  # the honest site has 3 images, and the greedy one counts no more
    assert journal.rounds()[0]["excluded"] == {}


def test_where_sites_count_alike_none_can_claim_more() -> None:
    one = with_update(lambda update: replace(update, weight=1))
    agreed = study('weight = "equal"\n')
    _, journal = play(Fakes(["aa", "bbb", "cccc"], {"aa": one, "bbb": one}), agreed=agreed)
    assert "weight 4 is not the 1" in journal.rounds()[0]["excluded"]["cccc"]


def test_a_site_whose_products_would_overflow_the_sums_is_set_aside() -> None:
    layer = "backbone.x"
    initial = {f"{layer}.lora_{f}.default.weight": np.zeros(s, np.float32) for f, s in (("A", (2, 3)), ("B", (3, 2)))}

    def giant(reply: Reply) -> Reply:
        update = reply.update and replace(
            reply.update, tensors={name: array + np.float32(2**19) for name, array in reply.update.tensors.items()}
        )
        return replace(reply, update=update)

    agreed = study('[strategy]\nmethod = "exact"\n')
    journals = [Journal.create(None, {"run": "run"}) for _ in range(2)]
    states = [
        rounds.run(agreed, fakes, initial, journal, lambda event: None)
        for fakes, journal in zip(
            (Fakes(["aa", "bbb", "cccc"], {"cccc": giant}), Fakes(["aa", "bbb"])), journals, strict=True
        )
    ]
    assert digest(states[0].tensors) == digest(states[1].tensors)
    assert "product B·A" in journals[0].rounds()[0]["excluded"]["cccc"]


def test_a_server_step_that_diverges_is_named_before_anything_is_committed() -> None:
    agreed = study('[server_step]\nmethod = "adam"\nlearning_rate = 1e9\n')
    with pytest.raises(RunError, match=r"round 1: the server step diverged: .*lower server_step\.learning_rate"):
        play(Fakes(["aa", "bbb"]), agreed=agreed)


@pytest.mark.parametrize(("quorum", "sites", "needed"), [(0.55, 100, 55), (0.28, 25, 7), (0.5, 3, 2), (1.0, 7, 7)])
def test_quorum_is_counted_without_rounding_errors(quorum: float, sites: int, needed: int) -> None:
    names = [f"s{i:03d}" for i in range(sites)]
    silent: dict[str, Change] = {name: lambda reply: None for name in names[needed - 1 :]}
    with pytest.raises(RunError, match=f"round 1: {needed - 1} of {sites} sites answered well, {needed} are needed"):
        play(Fakes(names, silent), agreed=study(f"quorum = {quorum}\n"))
    play(Fakes(names, dict(list(silent.items())[1:])), agreed=study(f"quorum = {quorum}\n"))


def test_below_quorum_the_run_pauses_and_resumes_to_the_same_bits(tmp_path: Path) -> None:
    names = ["aa", "bbb", "cccc"]
    expected, _ = play(Fakes(names))
    agreed = study("quorum = 1.0\n")
    journal = Journal.create(tmp_path, {"run": "run"})
    broken = Fakes(names, {"cccc": lambda reply: reply if reply.round < 2 else None})
    with pytest.raises(RunError, match=r"round 2: 2 of 3 .* 3 are needed"):
        rounds.run(agreed, broken, INITIAL, journal, lambda event: None)
    journal.close()
    again = Journal.open(tmp_path)
    healed = Fakes(names)
    state = rounds.run(agreed, healed, INITIAL, again, lambda event: None)
    assert digest(state.tensors) == expected
    assert min(asked for asked, _ in healed.asked) == 2  # round 1 was not repeated
    kinds = [entry.kind for entry in ledger.verify((tmp_path / "ledger.jsonl").read_text().splitlines())]
    assert kinds == ["start", "round", "paused", "round", "round", "evaluation"]


def test_sites_of_a_round_are_drawn_from_the_seed_and_change_from_round_to_round() -> None:
    agreed = study("sites_per_round = 2\n")
    names = [f"s{i}" for i in range(8)]
    drawn = [rounds.choose(agreed, names, number) for number in range(1, 30)]
    assert all(len(set(sites)) == 2 for sites in drawn)
    assert len(set(drawn)) > 5
    assert {site for sites in drawn for site in sites} == set(names)
    assert drawn == [rounds.choose(agreed, list(reversed(names)), number) for number in range(1, 30)]


def test_the_mean_over_rounds_is_the_weighted_mean_computed_by_hand() -> None:
    _, journal = play(Fakes(["aa", "bbb"]))
    state = journal.state()
    assert state is not None
    for name, array in _by_hand().items():
        np.testing.assert_allclose(state.tensors[name], array, atol=1e-5)


def _by_hand() -> dict[str, np.ndarray]:
    # tensors come from the wire sorted by name, and so are the draws
    current = {name: INITIAL[name].astype(np.float64) for name in sorted(INITIAL)}
    for number in (1, 2, 3):
        moved = {name: np.zeros_like(array) for name, array in current.items()}
        for site in ("aa", "bbb"):
            rng = seeds.generator("fake", site, number)
            for name, array in current.items():
                moved[name] += len(site) / 5 * (array + rng.normal(size=array.shape))
        current = moved
    return current
