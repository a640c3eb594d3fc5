"""What may be concluded: never more than the intervals allow."""

from __future__ import annotations

import pytest

from polyclinic.core.statistics.figures import Bin, Figure, missing
from polyclinic.core.statistics.metrics import JUDGED
from polyclinic.server.report import compare, words

AUROC = JUDGED["outcome"].metrics[0]
NLL = next(metric for metric in JUDGED["outcome"].metrics if metric.key == "nll")


def test_a_difference_is_widened_by_what_binning_may_have_moved() -> None:
    sharp = compare.apart(Figure(0.8, 0.7, 0.9), Figure(0.7, 0.6, 0.8))
    coarse = compare.apart(Figure(0.8, 0.7, 0.9, bound=0.01), Figure(0.7, 0.6, 0.8, bound=0.02))
    assert sharp.low is not None
    assert coarse.low == pytest.approx(sharp.low - 0.03)
    assert coarse.value == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("figure", "said"),
    [
        (Figure(0.1, 0.01, 0.2), "better"),
        (Figure(-0.1, -0.2, -0.01), "worse"),
        (Figure(0.1, 0.0, 0.2), "open"),
        (Figure(0.1, None, None), "open"),
        (missing("one class"), "unknown"),
    ],
)
def test_only_an_interval_without_0_shows_a_difference(figure: Figure, said: str) -> None:
    assert compare.verdict(figure, AUROC) == said


def test_less_is_better_where_it_is_a_loss() -> None:
    assert compare.verdict(Figure(-0.1, -0.2, -0.01), NLL) == "better"


def test_the_mean_leaves_out_who_has_no_figure() -> None:
    found = compare.mean([Figure(0.1, 0.0, 0.2), missing("one class"), Figure(0.3, 0.2, 0.4)])
    assert found.value == pytest.approx(0.2)
    assert found.low == pytest.approx(0.2 - 0.1 / 2**0.5)  # two half-widths of 0.1, squared, added, halved
    assert compare.mean([missing("one class")]).value is None
    assert compare.mean([Figure(0.1, None, None), Figure(0.3, 0.2, 0.4)]).low is None


def test_holm_multiplies_by_how_many_are_left_and_never_falls() -> None:
    # Holm 1979 by hand: 0.01 · 4, 0.02 · 3, 0.03 · 2, max(0.06, 0.6)
    adjusted = compare.holm({"a": 0.03, "b": 0.01, "c": 0.6, "d": 0.02})
    assert adjusted == pytest.approx({"b": 0.04, "d": 0.06, "a": 0.06, "c": 0.6})
    assert compare.holm({"a": 0.9, "b": 0.8})["b"] == 1.0
    assert compare.holm({}) == {}


@pytest.mark.parametrize(("psi", "said"), [(0.05, "little"), (0.1, "some"), (0.25, "some"), (0.26, "marked")])
def test_psi_is_read_by_convention(psi: float, said: str) -> None:
    assert compare.stability(psi) == said


@pytest.mark.parametrize(
    ("bins", "kind", "said"),
    [
        ([Bin(0.6, 0.7, 10, 0.62, 0.4)], "binary", "probabilities too high (mean 0.62, observed 0.40)"),
        ([Bin(0.2, 0.3, 10, 0.25, 0.5)], "binary", "probabilities too low (mean 0.25, observed 0.50)"),
        (
            [Bin(0.0, 0.1, 10, 0.05, 0.3), Bin(0.9, 1.0, 10, 0.95, 0.7)],
            "binary",
            "over-confident (mean confidence 0.95, right 0.70)",
        ),
        (
            [Bin(0.3, 0.4, 10, 0.4, 0.1), Bin(0.6, 0.7, 10, 0.6, 0.9)],
            "binary",
            "under-confident (mean confidence 0.60, right 0.90)",
        ),
        ([Bin(0.9, 1.0, 30, 0.9, 0.6)], "multiclass", "over-confident (mean confidence 0.90, right 0.60)"),
        ([Bin(0.2, 0.3, 30, 0.3, 0.6)], "multiclass", "under-confident (mean confidence 0.30, right 0.60)"),
    ],
)
def test_the_direction_of_miscalibration(bins: list[Bin], kind: str, said: str) -> None:
    assert compare.leaning(bins, kind) == said


def test_numbers_as_people_read_them() -> None:
    assert words.number(-0.0004) == "0.000"
    assert words.signed(-0.012) == "−0.012"
    assert words.signed(0.0) == "0.000"
    assert words.ranged(Figure(0.5, None, None)) == "0.500 (no interval)"
    assert words.listing(["a", "b", "c"], most=3) == "a, b and c"
    assert words.listing(list("abcdef"), most=3) == "a, b and 4 more"
    assert [words.size(n) for n in (812, 12_345, 9.1e6, 1.2e9)] == ["812 B", "12.3 kB", "9.1 MB", "1.2 GB"]
    assert [words.duration(s) for s in (3.21, 87.1, 720, 11_100)] == ["3.2 s", "87 s", "12 min", "3 h 5 min"]
    assert [words.probability(p) for p in (0.0001, 0.0123)] == ["p < 0.001", "p = 0.012"]
    assert words.short("university-hospital-of-x-ward-12", 13) == "univer…ard-12"
