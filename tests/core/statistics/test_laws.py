"""The shipped laws hold of every statistic, and find each kind of fault in one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

from polyclinic.core import laws
from polyclinic.core.statistics.codec import KINDS
from polyclinic.core.statistics.monoid import Ints, Sums, demand
from polyclinic.core.statistics.outcome import Outcome


@pytest.mark.parametrize("kind", sorted({name for name, cls in KINDS.items() if cls is not Outcome}))
def test_every_kind_of_statistic_keeps_the_laws(statistics, kind):
    make = statistics[kind]
    laws.check_statistic(make(0, 0), [make(n, seed) for seed, n in enumerate((4, 7, 12))])


@dataclass(frozen=True, eq=False)
class Counts(Sums):
    """A statistic of one's own."""

    name: ClassVar[str] = "counts"

    counts: Ints

    def check(self):
        super().check()
        demand(self.counts.ndim == 1 and bool((self.counts >= 0).all()), "counts", "are no counts")


def of(cls, *numbers):
    return [cls(patients=min(n, 1), counts=np.array([n, 2 * n])) for n in numbers]


def check(cls):
    zero, *samples = of(cls, 0, 1, 2, 5)
    laws.check_statistic(zero, samples)


def test_a_statistic_of_ones_own_passes():
    check(Counts)


class Ordered(Counts):
    def __add__(self, other):
        return type(self)(self.patients + other.patients, self.counts + 2 * other.counts)


class Grouped(Counts):
    def __add__(self, other):
        added = self.counts + other.counts
        return type(self)(
            self.patients + other.patients, added // 2 * 2 + (0 if other.patients and self.patients else added % 2)
        )


class Forgetful(Counts):
    @classmethod
    def from_fields(cls, fields):
        return super().from_fields(fields | {"counts": [0, 0]})


class Crashing(Counts):
    def check(self):
        Sums.check(self)
        if self.counts.ndim != 1 or len(self.counts) < 1:
            raise IndexError("no counts")


class Trusting(Counts):
    def check(self):
        pass


class Unread(Counts):
    def fields(self):
        return super().fields() | {"counts": [float(count) for count in self.counts]}


@pytest.mark.parametrize(
    ("cls", "sentence"),
    [
        (Ordered, "adding its zero changes|depends on the order"),
        (Grouped, "depends on the grouping"),
        (Forgetful, "is not the same after travelling"),
        (Crashing, "fails over"),
        (Trusting, "takes fewer than no patients"),
        (Unread, "field 'counts' of 'counts' is neither integers"),
    ],
)
def test_each_fault_is_named(cls, sentence):
    with pytest.raises(AssertionError, match=sentence):
        check(cls)


def test_too_few_samples_tell_nothing():
    zero, *samples = of(Counts, 0, 1, 2)
    with pytest.raises(AssertionError, match="three samples"):
        laws.check_statistic(zero, samples)
