"""What a terminal shows: the lines, and the bar that says what is left and who is waited for."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress

from polyclinic.cli.progress import Bar, Lines, progress, sentence, waiting
from polyclinic.cli.result import figure, sentences
from polyclinic.core.study import Study
from polyclinic.server.rounds import Event

RECORD: dict[str, Any] = {
    "pooled": {"incoming": {"auroc": {"value": 0.8123}, "nll": {"value": 0.5}}},
    "worst_site": {"site": "south", "value": 0.7},
    "sites": {"north": {}, "south": {}},
    "bytes_up": 1_000_000,
    "bytes_down": 250_000,
    "seconds": 4.06,
}
EVENTS = [
    Event("warning", 0, failure="site 'south': has no val images"),
    *(
        event
        for number in (1, 2)
        for event in (
            Event("round", number, sites=("north", "south")),
            Event("site", number, "north"),
            Event("site", number, "south", "no reply [before] the deadline" if number == 2 else ""),
            Event("done", number, record=RECORD),
        )
    ),
    Event("round", 3, sites=("north", "south")),
    Event("site", 3, "north"),
    Event("site", 3, "south"),
    Event("baselines", 0, sites=("central", "alone/north", "alone/south")),
    Event("baseline", 0, "alone/north"),
    Event("baseline", 0, "central"),
    Event("baseline", 0, "alone/south"),
]


def test_plain_lines_where_there_is_no_terminal(tiny_study: Study, capsys: pytest.CaptureFixture[str]) -> None:
    with progress(tiny_study, True) as observe:
        for event in EVENTS:
            observe(event)
    said = "began from AUROC 0.812 pooled, 0.700 at worst (south); 2 sites, 1.2 MB, 4.1 s"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "warning: site 'south': has no val images"
    assert lines[1].startswith(f"round 1/2: {said}; rounds end in about ")
    assert lines[2:] == [
        "  set aside: south: no reply [before] the deadline",
        f"round 2/2: {said}",
        "judging the final model at every site",
        "training 3 models for comparison",
        "  alone/north done",
        "  central done",
        "  alone/south done",
    ]


@pytest.mark.parametrize("first", [1, 5, 12], ids=["from the start", "resumed in round 2", "resumed for baselines"])
def test_the_bar_ends_full_and_never_goes_back(first: int, tiny_study: Study) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    bar = Progress(console=console)
    observe, shares = Bar(tiny_study, console, bar, baselines=True), [0.0]
    for event in EVENTS[first:]:
        observe(event)
        shares.append(bar.tasks[0].percentage)
    assert shares == sorted(shares)
    assert shares[-1] == 100
    assert max(shares[:-1]) < 100


def test_the_bar_names_who_is_waited_for(tiny_study: Study) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    bar = Progress(console=console)
    observe = Bar(tiny_study, console, bar, baselines=False)
    assert bar.tasks[0].description == "reading images and loading the backbone"
    observe(EVENTS[1])
    assert bar.tasks[0].description == "round 1 of 2: waiting for north, south"
    observe(EVENTS[2])
    assert bar.tasks[0].description == "round 1 of 2: waiting for south"
    observe(Event("round", 3, sites=("a", "b", "c", "d", "e")))
    assert bar.tasks[0].description == "last evaluation: waiting for a, b and 3 more"
    assert waiting("round 1 of 2", []) == "round 1 of 2"


def test_a_round_without_figures_still_has_a_sentence(tiny_study: Study) -> None:
    nothing: dict[str, Any] = {"pooled": {"incoming": None}, "worst_site": None, "sites": {"north": {}}}
    assert sentence(tiny_study, Event("done", 1, record=RECORD | nothing)) == "round 1/2: 1 site, 1.2 MB, 4.1 s"
    one_class = {"pooled": {"incoming": {"auroc": {"value": None}, "nll": {"value": 0.5}}}, "worst_site": None}
    said = sentence(tiny_study, Event("done", 1, record=RECORD | one_class))
    assert said == "round 1/2: began from log loss 0.500 pooled; 2 sites, 1.2 MB, 4.1 s"


def test_a_result_without_figures_says_why() -> None:
    missing = {"value": None, "low": None, "high": None, "why": "only one class present"}
    summary: dict[str, Any] = {
        "pooled": {"test": {"auroc": missing}}, "worst_site": None, "sites": {}, "excluded": {"north": "no reply"},
        "bytes_up": 0, "bytes_down": 0, "rounds": 2, "seconds": 1.0,
    }  # fmt: skip
    said = list(sentences(summary))
    assert said[0] == "There is no pooled AUROC on test images: only one class present."
    assert said[1] == "Not in these figures: north: no reply."
    assert next(sentences(summary | {"pooled": {}})).endswith("no site told any.")
    assert figure(missing) == "–"
    assert figure({"value": 0.5, "low": None, "high": None}) == "0.500"


def test_lines_are_the_whole_of_it_without_a_bar(tiny_study: Study) -> None:
    out = io.StringIO()
    Lines(tiny_study, Console(file=out))(EVENTS[0])
    assert out.getvalue() == "warning: site 'south': has no val images\n"
