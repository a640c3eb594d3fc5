"""A federation whose messages come twice, late and out of order ends at the same bits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from polyclinic.core.update import digest
from polyclinic.server import rounds
from polyclinic.server.journal import Journal
from polyclinic.server.receive import Delivery
from tests.faults.duplicating import Duplicating
from tests.faults.hostile.bench import INITIAL, Honest, agreed

NAMES = ["north", "south", "west", "zenith"]


class Fixed:
    def names(self) -> Sequence[str]:
        return NAMES

    def send(self, message: bytes, to: Sequence[str], deadline: float) -> Iterator[Delivery]:
        yield from (Delivery(site, message + site.encode()) for site in to)


def test_nothing_is_lost_much_comes_again_and_a_seed_repeats_it() -> None:
    one, other = Duplicating(Fixed(), 5), Duplicating(Fixed(), 5)
    first = [list(sites.send(b"1", NAMES, 1.0)) for sites in (one, other)]
    second = [list(sites.send(b"2", NAMES, 1.0)) for sites in (one, other)]
    assert first[0] == first[1]
    assert second[0] == second[1]
    assert {delivery.site for delivery in first[0]} == set(NAMES)
    assert len(first[0]) + len(second[0]) == 8 + one.extra
    assert any(delivery.message and delivery.message.startswith(b"1") for delivery in second[0])
    assert [d.site for d in first[0]] != [d.site for d in list(Duplicating(Fixed(), 6).send(b"1", NAMES, 1.0))]


@pytest.mark.parametrize("seed", range(5))
def test_a_run_over_it_ends_at_the_same_bits_and_counts_each_update_once(seed: int) -> None:
    study = agreed()
    plain, doubled = Journal.create(None, {"run": "run"}), Journal.create(None, {"run": "run"})
    expected = rounds.run(study, Honest(NAMES), INITIAL, plain, lambda event: None)
    sites = Duplicating(Honest(NAMES), seed)
    found = rounds.run(study, sites, INITIAL, doubled, lambda event: None)
    assert digest(found.tensors) == digest(expected.tensors)
    assert sites.extra > 0
    for one, other in zip(plain.rounds(), doubled.rounds(), strict=True):
        assert one["result"] == other["result"]
        assert one["sites"].keys() == other["sites"].keys()
        assert other["excluded"] == {}
