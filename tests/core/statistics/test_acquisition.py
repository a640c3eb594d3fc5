"""How images were taken: counted by hand, small cells never told, distances as the definition has them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyclinic.client.data.readers.acquisition import FIELDS, MAKERS, MODALITIES
from polyclinic.core.errors import DataError
from polyclinic.core.statistics.acquisition import EDGES, HIDDEN, NAMES, VALUES, Acquisition, difference, value
from polyclinic.core.statistics.monoid import Withheld, release


def cells(statistic: Acquisition, field: str) -> dict[str, int]:
    counts = statistic.by_field()[field].tolist()
    return {name: count for name, count in zip(VALUES[field], counts, strict=True) if count}


def test_the_lists_are_those_of_the_readers_and_a_model_is_not_among_them() -> None:
    assert set(NAMES["maker"]) == set(MAKERS.values()) - {"other"}
    assert set(NAMES["modality"]) < MODALITIES
    assert set(VALUES) == set(FIELDS) - {"model"}
    assert all(len(set(known)) == len(known) for known in VALUES.values())


@pytest.mark.parametrize(
    ("field", "said", "told"),
    [
        ("maker", "Siemens", "Siemens"), ("maker", "Dr. Roe's own", "other"), ("maker", "", "not said"),
        ("modality", "CT", "CT"), ("modality", "RTPLAN", "other"), ("kVp", "120", "110 to 130"),
        ("kVp", "130", "130 to 150"), ("kVp", "45", "below 50"), ("kVp", "150", "150 and more"),
        ("kVp", "other", "other"),
        ("field strength", "1.5 T", "1.2 to 1.8"), ("field strength", "3.0 T", "2.5 to 3.5"),
        ("slice thickness", "5.0 mm", "5 to 8"), ("slice thickness", "0.6 mm", "below 1"),
        ("pixel spacing", "0.70 mm", "0.5 to 0.75"), ("pixel spacing", "19700101", "2 and more"),
        ("kVp", "nan", "other"), ("kVp", " ", "other"), ("maker", "withheld", "other"),
    ],
)  # fmt: skip
def test_a_value_is_one_of_a_closed_list(field: str, said: str, told: str) -> None:
    assert value(field, said) == told or (said == "withheld" and value(field, said) == "other")
    assert value(field, said) in VALUES[field]


@given(st.sampled_from(list(VALUES)), st.text())
def test_whatever_a_file_says_nothing_else_is_told(field: str, said: str) -> None:
    assert value(field, said) in VALUES[field][:-1]


def test_patients_are_counted_by_their_first_image() -> None:
    taken = [{"maker": "GE", "kVp": "120"}, {"maker": "Philips"}, {"maker": "GE", "model": "CANARY"}, {}]
    found = Acquisition.of(taken, ["p", "p", "q", "r"])
    assert found.patients == 3
    assert cells(found, "maker") == {"GE": 2, "not said": 1}
    assert cells(found, "kVp") == {"110 to 130": 1, "not said": 2}
    assert cells(found, "modality") == {"not said": 3}
    assert "CANARY" not in str(found.fields())
    with pytest.raises(DataError, match="every image"):
        Acquisition.of(taken, ["p"])


def of_makers(**counts: int) -> Acquisition:
    taken = [{"maker": maker} for maker, count in counts.items() for _ in range(count)]
    return Acquisition.of(taken, range(len(taken)))


def test_small_cells_are_withheld_together_and_never_few() -> None:
    assert cells(of_makers(GE=20, Siemens=12).released(10), "maker") == {"GE": 20, "Siemens": 12}
    assert cells(of_makers(GE=20, Siemens=6, Philips=5).released(10), "maker") == {"GE": 20, HIDDEN: 11}
    # 3 alone would be told as 3 withheld: the next smallest joins them
    assert cells(of_makers(GE=20, Siemens=12, Philips=3).released(10), "maker") == {"GE": 20, HIDDEN: 15}
    assert cells(of_makers(GE=20, Philips=3).released(10), "maker") == {HIDDEN: 23}


@given(st.lists(st.integers(0, 30), min_size=len(NAMES["maker"]), max_size=len(NAMES["maker"])), st.integers(1, 15))
def test_no_cell_that_leaves_is_smaller_than_the_policy_says(counts: list[int], minimum: int) -> None:
    whole = of_makers(**dict(zip(NAMES["maker"], counts, strict=True)))
    found = release(whole, minimum)
    if whole.patients < minimum:
        assert isinstance(found, Withheld)
        return
    assert isinstance(found, Acquisition)
    assert found.patients == whole.patients
    assert all(count >= minimum for field in VALUES for count in cells(found, field).values())
    kept = {name: count for name, count in cells(found, "maker").items() if name != HIDDEN}
    assert kept.items() <= cells(whole, "maker").items()
    assert release(whole, 1) == whole


def test_the_distance_is_that_of_jensen_and_shannon() -> None:
    one, other = of_makers(GE=30, Siemens=10), of_makers(GE=10, Philips=30)
    p, q = np.array([0.75, 0.25, 0.0]), np.array([0.25, 0.0, 0.75])
    m = (p + q) / 2
    bits = sum(0.5 * x * np.log2(x / y) for part in (p, q) for x, y in zip(part, m, strict=True) if x)
    found, field = difference(one, other)
    assert found == pytest.approx(np.sqrt(bits))
    assert field == "maker"
    assert difference(one, one)[0] == 0.0
    assert difference(of_makers(GE=4), of_makers(Siemens=9))[0] == pytest.approx(1.0)
    silent = Acquisition.of([{}] * 5, range(5))
    assert difference(silent, silent) == (None, "")
    assert difference(silent, one) == (pytest.approx(1.0), "maker")
    hidden = of_makers(GE=5, Siemens=6).released(10)
    assert difference(hidden, one) == (None, "")


def test_the_field_that_differs_most_is_named() -> None:
    def taken(volts: int) -> Acquisition:
        return Acquisition.of([{"maker": "GE", "kVp": f"{volts}"}] * 12, range(12))

    assert difference(taken(120), taken(80))[1] == "kVp"
    assert sorted(EDGES) == sorted(set(VALUES) - set(NAMES))
