"""Drawing: round ticks, broken lines, names that do not overlap, pictures that are XML."""

from __future__ import annotations

from itertools import pairwise
from xml.etree import ElementTree

import pytest

from polyclinic.core.statistics.figures import Bin, Figure, missing
from polyclinic.core.statistics.metrics import JUDGED
from polyclinic.server.report import svg
from polyclinic.server.report.charts import rounds
from polyclinic.server.report.charts.forest import Row, forest
from polyclinic.server.report.charts.reliability import reliability
from polyclinic.server.report.charts.rounds import Track
from polyclinic.server.report.charts.shift import Place, shift_map
from polyclinic.server.report.charts.traffic import Load, traffic

SVG = "{http://www.w3.org/2000/svg}"
AUROC = JUDGED["outcome"].metrics[0]
GAP = Figure(0.1, 0.05, 0.2)


def parsed(picture: str) -> ElementTree.Element:
    return ElementTree.fromstring(picture)  # our own output: nothing to defend against


def test_ticks_are_round_and_within() -> None:
    assert svg.Scale(0.13, 0.97, 0, 100).ticks() == pytest.approx((0.5,))
    assert svg.Scale(0.0, 1.0, 0, 100).ticks() == pytest.approx((0.0, 0.5, 1.0))
    assert svg.Scale(0.0, 465.0, 0, 100).ticks(3) == (0.0, 200.0, 400.0)
    assert svg.whole_ticks(1) == (0.0, 1.0)
    assert len(svg.whole_ticks(200)) <= 7


def test_what_lies_beyond_a_scale_is_drawn_at_its_edge() -> None:
    assert svg.Scale(0.0, 1.0, 100.0, 0.0)(1.7) == 0.0


def test_a_line_breaks_where_a_round_is_missing() -> None:
    assert list(svg.runs([(0, 1.0), (1, None), (2, 2.0), (3, 3.0), (5, 4.0)])) == [
        [(0, 1.0)],
        [(2, 2.0), (3, 3.0)],
        [(5, 4.0)],
    ]


def test_labels_are_moved_apart_and_stay_in_order() -> None:
    placed = svg.spread([50.0, 51.0, 52.0, 99.0], 12.0, 0.0, 100.0)
    assert placed == sorted(placed)
    assert min(b - a for a, b in pairwise(placed)) >= 12.0
    assert max(placed) <= 100.0


def test_text_and_attributes_are_escaped() -> None:
    drawn = svg.picture("<b>&", "\"'", 10, 10, svg.text(0, 0, "</text><script>"), svg.mark("up", 1, 1, 1, 'a"b', "<i>"))
    root = parsed(drawn)
    assert root.findtext(f"{SVG}title") == "<b>&"
    assert root.findtext(f"{SVG}text") == "</text><script>"
    assert root.find(f".//{SVG}script") is None


def test_names_on_the_map_do_not_overlap_and_marks_keep_their_distances() -> None:
    places = [Place(f"site-{i}", i % 7 * 0.1, i // 7 * 0.1, "some") for i in range(49)]
    root = parsed(shift_map(places))
    spots = [(float(m.get("points", "").split(",")[0]), m) for m in root.iter(f"{SVG}polygon")]
    assert len(spots) == 49
    names = [t for t in root.iter(f"{SVG}text") if (t.text or "").startswith("site")]
    boxes = [(float(t.get("x", 0)), float(t.get("y", 0)), t.get("text-anchor"), len(t.text or "") * 6.0) for t in names]
    edges = [(x - {"start": 0, "middle": w / 2, "end": w}[str(a)], y, w) for x, y, a, w in boxes]
    for i, (x, y, w) in enumerate(edges):
        assert not any(abs(y - v) < 8 and x < u + t and u < x + w for u, v, t in edges[i + 1 :])


def test_a_map_of_sites_in_one_place_and_of_none() -> None:
    parsed(shift_map([Place("a", 0.0, 0.0, ""), Place("b", 0.0, 0.0, "little"), Place("c", 0.0, 0.0, "marked")]))
    assert shift_map([]) == ""


def test_charts_without_figures_are_empty() -> None:
    nothing = Track("a", ((0, missing("fewer than 10 patients")),))
    assert rounds.overview(AUROC, nothing, [nothing]) == ""
    assert rounds.panel(AUROC, nothing, nothing, (0.0, 1.0)) == ""
    assert reliability("a", []) == ""
    assert forest("x", [Row("a", missing("no"), "unknown")], Row("mean", missing("no"), "unknown"), ("l", "r")) == ""
    assert traffic([Load("1", 0, 0)]) == ""


def test_verdicts_differ_in_shape_not_only_in_colour() -> None:
    rows = [Row("a", GAP, "better"), Row("b", Figure(-0.1, -0.2, -0.05), "worse"), Row("c", Figure(0, -1, 1), "open")]
    root = parsed(forest("x", rows, Row("mean", GAP, "better"), ("alone better", "federated better")))
    up, down = (mark.get("points", "") for mark in root.iter(f"{SVG}polygon"))
    assert up.split(" ")[0].split(",")[1] < up.split(" ")[1].split(",")[1]
    assert down.split(" ")[0].split(",")[1] > down.split(" ")[1].split(",")[1]
    assert len(list(root.iter(f"{SVG}circle"))) == 1


def test_a_forest_tells_its_figures_in_words_too() -> None:
    root = parsed(forest("x", [Row("a", GAP, "better")], Row("mean", GAP, "better"), ("l", "r")))
    assert root.findtext(f"{SVG}desc") == "a: +0.100 (+0.050 to +0.200); mean: +0.100 (+0.050 to +0.200)"


def test_fuller_bins_have_larger_dots_and_all_are_told() -> None:
    bins = [Bin(0.0, 0.1, 5, 0.05, 0.0), Bin(1.0, 1.0, 500, 1.0, 0.9)]
    root = parsed(reliability("a", bins, witnesses=0.5))
    small, large = (float(circle.get("r", 0)) for circle in root.iter(f"{SVG}circle"))
    assert small < large
    assert root.findtext(f"{SVG}desc") == "0.05 sure, 0.00 right (5); 1.00 sure, 0.90 right (500)"
    assert all(float(bar.get("width", 0)) > 0 for bar in root.iter(f"{SVG}rect"))


def test_two_hundred_rounds_have_few_labels_and_no_crowd_of_marks() -> None:
    long = Track("a", tuple((i, Figure(0.5 + i / 1000, 0.4, 0.9)) for i in range(201)))
    assert not list(parsed(rounds.overview(AUROC, long, [long])).iter(f"{SVG}circle"))
    loads = parsed(traffic([Load(str(i), 10**6, 10**6) for i in range(200)]))
    assert sum(text.text is not None and text.text.isdigit() for text in loads.iter(f"{SVG}text")) < 25
