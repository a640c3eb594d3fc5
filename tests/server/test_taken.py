"""How far a site's images were taken otherwise than the others', from what was told to the table of the report."""

from __future__ import annotations

from dataclasses import replace

import pytest

from polyclinic.core.statistics.acquisition import Acquisition
from polyclinic.server.report import tables
from polyclinic.server.report.data import Evidence, Shift, Site, shift
from polyclinic.server.shift import compared


def told(**counts: int) -> Acquisition:
    taken = [{"maker": maker, "modality": "MR"} for maker, count in counts.items() for _ in range(count)]
    return Acquisition.of(taken, range(len(taken)))


def test_a_site_is_compared_with_all_the_others() -> None:
    north, south, west = told(GE=20), told(GE=10, Siemens=10), told(Siemens=30)
    total = north + south + west
    row = compared("acquisition", north, total)
    assert row["acquisition_field"] == "maker"
    # 1 against (10 GE, 40 Siemens): the divergence of (1, 0) and (0.2, 0.8) is 0.6100 bits
    assert row["acquisition_js"] == pytest.approx(0.6100**0.5, abs=1e-4)
    silent = Acquisition.of([{}] * 12, range(12))
    assert compared("acquisition", silent, silent + silent) == {"acquisition_js": None, "acquisition_field": None}


def evidence(*shifts: Shift) -> Evidence:
    sites = tuple(Site(f"site-{i}", shift=found) for i, found in enumerate(shifts))
    return Evidence({}, "", {}, sites, (), {}, {}, {})


def test_the_report_shows_it_only_where_some_file_says_something() -> None:
    found = shift({"acquisition_js": 0.5, "acquisition_field": "kVp"})
    table = tables.shifts(evidence(found, Shift()))
    place = table.head.index("How taken, JS")
    assert [row[place].text for row in table.rows] == ["0.500", "–"]
    assert table.rows[0][place].note == "kVp"
    assert "How taken, JS" not in tables.shifts(evidence(replace(found, taken=None), Shift())).head
