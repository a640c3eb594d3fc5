"""A run that goes on, told by the report's own parts."""

from __future__ import annotations

import tomllib
from typing import Any

import pytest

from polyclinic.server.report import page, tables
from polyclinic.server.report.charts.attendance import MOST, attendance
from polyclinic.server.report.charts.distance import Distance, distances
from polyclinic.server.report.data import Evidence
from polyclinic.server.report.findings import findings
from polyclinic.server.report.partial import SoFar, partial
from polyclinic.server.report.sections import sections
from tests.server.report.conftest import Made


def until(run: Made, number: int, *sites: str) -> Evidence:
    """What is known after so many rounds."""
    return partial(tomllib.loads(run.study), run.rounds[:number], {"study": "made", "rounds": 10}, sites, run.study)


def test_before_the_first_round(five: Made) -> None:
    found = until(five, 0, "north", "south")
    assert [site.name for site in found.sites] == ["north", "south"]
    assert (found.rounds, found.split, found.finished) == ((), "val", False)
    made = sections(found)
    assert made["history"] == []
    assert made["tiles"][0][1] == "–"


def test_figures_are_those_of_the_last_model_that_was_judged(five: Made) -> None:
    found = until(five, 3)
    record = five.rounds[2]
    for site in found.sites:
        row = record["sites"][site.name]["incoming"]["auroc"]
        assert site.figure("federated", "val", "auroc").json() == row
        assert site.trained == 2
    assert found.pooled["val"]["nll"].json() == record["pooled"]["incoming"]["nll"]
    assert sum(b.size for b in found.pooled_bins["val"]) == sum(b["count"] for b in record["pooled"]["reliability"])


def test_no_point_is_drawn_for_a_model_that_nobody_judged(five: Made) -> None:
    made = sections(until(five, 3))
    table = made["trajectories"][0]
    assert table.head == ("Site", "0", "1", "2")
    assert sections(five.evidence)["trajectories"][0].head[-1] == "10"


def test_who_missed_a_round_keeps_what_it_told_and_when(five: Made) -> None:
    found = until(five, 4)
    harbour = next(site for site in found.sites if site.name == "harbour")
    assert harbour.trained == 2
    assert "model of 2 rounds" in [row[0].note for row in tables.sites(found).rows if row[0].text == "harbour"]
    assert "harbour: no answer within 14400 s" in tables.travelled(found).rows[3][-1].text
    assert tables.travelled(found).rows[-1][0].text == "Total"
    assert "so far" in next(f.text for f in findings(found) if f.topic == "Was anybody set aside?")


def test_shift_is_the_last_that_was_told(five: Made) -> None:
    found = until(five, 3)
    told = {site.name: site.shift.psi for site in found.sites}
    assert told["harbour"] == 0.34
    assert told["village-practice"] is None
    made = sections(found)
    assert not made["map"]
    assert made["distances"].count("<title>") == 1 + 4


def test_only_what_can_be_said_before_the_end_is_said(five: Made) -> None:
    topics = [finding.topic for finding in findings(until(five, 3))]
    assert topics == ["Who is worst off?", "Who is shifted?", "Was anybody set aside?"]


def test_intervals_that_would_count_images_are_not_drawn(five: Made) -> None:
    panels = sections(until(five, 3))["reliability"]
    assert not any("whisker" in panel.chart for panel in panels)
    assert any("whisker" in panel.chart for panel in sections(five.evidence)["reliability"])


@pytest.mark.parametrize("record", [{}, {"round": 1}, {"round": "one", "sites": []}, [], None, 3])
def test_what_is_no_record(record: Any) -> None:
    with pytest.raises((KeyError, TypeError, ValueError, AttributeError)):
        SoFar().add(record)


def test_two_sites_have_distances_in_place_of_a_map(two: Made) -> None:
    assert "How far each site’s images lie from all others’ together" in page.render(two.evidence)


def test_the_furthest_stands_above() -> None:
    drawn = distances([Distance("near", -0.002, "little"), Distance("far", 0.3, "marked"), Distance("some", 0.1, "")])
    places = [drawn.index(f">{name}<") for name in ("far", "some", "near")]
    assert places == sorted(places)
    assert "far: 0.300, brightness marked; some: 0.100, brightness shift unknown; near: −0.002" in drawn
    assert distances([]) == ""


def test_a_mark_a_round(five: Made) -> None:
    rounds = until(five, 5).rounds
    drawn = attendance("harbour", rounds)
    assert drawn.count("<rect") == 4
    assert "Round 4: no answer within 14400 s" in drawn
    assert "set aside in 4" in drawn
    assert attendance("stranger", rounds).count("not asked") == 5
    assert attendance("harbour", rounds * 10).count("<rect") <= MOST
    assert attendance("harbour", ()) == ""


def test_a_figure_of_the_table_is_where_it_was(five: Made) -> None:
    assert tables.sites(five.evidence).head[1] == "Images"
    assert "Images" not in tables.sites(until(five, 2)).head
