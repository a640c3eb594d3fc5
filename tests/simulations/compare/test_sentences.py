"""Sentences say what hand-made figures show, and nothing beyond them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from polyclinic.simulations.compare import burden, charts, estimate
from polyclinic.simulations.compare.sentences import findings


def figure(value: float | None, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high} | ({"bound": 0.0} if value is not None else {"why": "diverged"})


def document(values: dict[str, dict[int, float]], *, more_is_better: bool = True) -> dict[str, Any]:
    """A comparison of which only how good the methods are was measured."""
    rows = [{"name": name, "merit": estimate.over(list(found.values())).json()} for name, found in values.items()]
    for row in rows:
        row |= {"depth": None, "labels": None, "robustness": None, "cost": None, "audit": None, "burden": None}
    return {
        "axes": [],
        "metric": {"key": "auroc", "name": "AUROC", "more_is_better": more_is_better},
        "sites": ["north", "south"],
        "seeds": sorted({seed for found in values.values() for seed in found}),
        "variants": rows,
        "differences": estimate.pairs(values, "merit"),
    }


CLEAR = {1: 0.90, 2: 0.91, 3: 0.90, 4: 0.91}
POOR = {1: 0.70, 2: 0.71, 3: 0.71, 4: 0.70}
LOUD = {1: 0.98, 2: 0.70, 3: 0.99, 4: 0.94}


def test_what_is_shown_is_said_and_what_is_not_is_said_too() -> None:
    (found,) = findings(document({"a": CLEAR, "b": POOR}))
    assert found.level == "good"
    assert found.text == "a has the highest AUROC on average over 2 sites, shown better than b."
    (found,) = findings(document({"a": CLEAR, "b": POOR, "c": {k: v - 0.001 * k for k, v in CLEAR.items()}}))
    assert found.level in ("open", "good")
    (found,) = findings(document({"a": CLEAR, "c": LOUD}))
    assert found.level == "open"
    assert found.text.startswith("No difference that these data can show: a has the highest AUROC")
    assert "do not tell it apart from c" in found.text
    assert "better" not in found.text
    assert any("not told apart" in line for line in found.more)


def test_less_is_better_where_it_is() -> None:
    (found,) = findings(document({"a": CLEAR, "b": POOR}, more_is_better=False))
    assert found.text.startswith("b has the lowest AUROC")


def test_one_seed_shows_nothing() -> None:
    (found,) = findings(document({"a": {1: 0.9}, "b": {1: 0.1}}))
    assert found.level == "unknown"
    assert found.text.startswith("One seed cannot tell")


def test_a_method_without_a_figure_is_named() -> None:
    (found,) = findings(document({"a": CLEAR, "b": {}}))
    assert "No figure for b" in " ".join(found.more)
    (found,) = findings(document({"a": {}, "b": {}}))
    assert found.level == "unknown"


@given(
    values=some.dictionaries(
        some.sampled_from("abcd"),
        some.lists(some.floats(0, 1).map(lambda x: round(x, 3)), min_size=3, max_size=3),
        min_size=2,
    )
)
@settings(max_examples=100, deadline=None)
def test_no_sentence_claims_more_than_the_tests_show(values: dict[str, list[float]]) -> None:
    made = document({name: dict(enumerate(row)) for name, row in values.items()})
    (found,) = findings(made)
    shown = {frozenset((row["a"], row["b"])) for row in made["differences"] if row["shown"]}
    head, _, claimed = found.text.partition(", shown better than ")
    if claimed:
        first = head.split(" has the ")[0]
        named = claimed.split(";")[0].rstrip(".").replace(" and ", ", ").split(", ")
        assert all(frozenset((first, name)) in shown for name in named)
        assert all(sum(values[first]) > sum(values[name]) for name in named)
    else:
        assert "do not tell it apart" in found.text


def test_cost_and_latency_are_told_as_measured() -> None:
    made = document({"a": CLEAR, "b": POOR})
    made["axes"] = ["cost"]
    for row, (size, latency) in zip(made["variants"], ((2e6, (1.5, 1.4, 1.6)), (1e3, (1.0, 0.9, 1.1))), strict=True):
        row["cost"] = {
            "bytes_up": figure(size), "step_seconds": figure(0.01, 0.009, 0.011), "step_flops": 1e9,
            "latency": figure(*latency),
        }  # fmt: skip
    found = findings(made)[1]
    assert found.text == "A site sends in a round: b 1.0 kB and a 2.0 MB."
    assert any(
        line.startswith("Slower to answer") and "a (1.500" in line and "b" not in line[60:] for line in found.more
    )
    assert any("No difference in latency" in line and line.endswith("b.") for line in found.more)


@given(some.lists(some.tuples(some.floats(1, 9), some.floats(0, 1)), min_size=1, max_size=8), some.booleans())
def test_the_front_is_what_nothing_dominates(spots: list[tuple[float, float]], more: bool) -> None:
    sign = 1 if more else -1

    def dominated(i: int) -> bool:
        return any(p <= spots[i][0] and sign * m >= sign * spots[i][1] and (p, m) != spots[i] for p, m in spots)

    found = {spots[i] for i in charts.front(spots, more)}
    assert found == {spot for i, spot in enumerate(spots) if not dominated(i)}


@pytest.mark.parametrize("name", burden.PROPERTIES)
def test_every_property_raises_points_and_every_part_is_the_guidances(name: str) -> None:
    raised = [point for point in burden.POINTS if point.property == name]
    assert raised
    assert all(point.part in burden.PARTS for point in raised)


def test_the_documented_rule_is_the_one_that_is_applied() -> None:
    text = (Path(__file__).parents[3] / "docs" / "trade-offs.md").read_text(encoding="utf-8")
    rows = text.split("| Property | How it is found |")[1].split("\n\n")[0].splitlines()[2:]
    documented = [[cell.strip() == "×" for cell in row.split("|")[3:9]] for row in rows]
    applied = [
        [any(p.property == name and p.part == part for p in burden.POINTS) for part in burden.PARTS]
        for name in burden.PROPERTIES
    ]
    assert documented == applied
