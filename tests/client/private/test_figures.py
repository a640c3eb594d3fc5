"""Figures under privacy: what one patient can change of them, and the noise that is claimed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import chi2

from polyclinic.client.private.figures import noised
from polyclinic.core.privacy.events import Event
from polyclinic.core.privacy.noise import Keyed
from polyclinic.core.statistics.noised import NoisedKernel, NoisedLabels
from polyclinic.core.statistics.noised_outcome import rows as noised_rows

BLANK = NoisedKernel.blank(5, 1)
KEY = bytes(range(32))


@given(
    rows=arrays(np.float64, (9, 5), elements=st.floats(-50, 50)),
    whose=st.lists(st.sampled_from("abcd"), min_size=9, max_size=9),
    gone=st.sampled_from("abcd"),
    unit=st.sampled_from(["patient", "image"]),
)
def test_a_unit_changes_the_sum_by_at_most_one_whatever_its_vectors_are(
    rows: np.ndarray, whose: list[str], gone: str, unit: str
) -> None:
    event = Event("gaussian", 1.0, unit=unit)  # type: ignore[arg-type]
    left = [i for i, name in enumerate(whose) if (name != gone if unit == "patient" else i != whose.index(whose[0]))]
    both = noised(BLANK, rows, whose, event, Keyed(KEY))
    less = noised(BLANK, rows[left], [whose[i] for i in left], event, Keyed(KEY))
    assert np.linalg.norm(both.sums() - less.sums()) <= 1.0 + 1e-4  # the grid of what is released
    assert both.units - less.units == (gone in whose if unit == "patient" else 1)


def test_noise_has_the_deviation_that_is_claimed_and_is_told_with_the_figure() -> None:
    event, count = Event("gaussian", 2.5), 4000
    blank = NoisedLabels.blank(count, exclusive=True)
    found = noised(blank, np.zeros((3, count)), ["a", "b", "c"], event, Keyed(KEY))
    square = float((found.sums() ** 2).sum()) / 2.5**2
    assert chi2.ppf(1e-4, count) < square < chi2.ppf(1 - 1e-4, count)
    assert found.noise == pytest.approx(2.5, rel=1e-5)


def test_a_patient_with_many_images_counts_as_one() -> None:
    quiet = Event("gaussian", 1e-3)
    rows = np.eye(5)[[0, 0, 0, 0, 1]]
    found = noised(BLANK, rows, ["a", "a", "a", "a", "b"], quiet, Keyed(KEY))
    assert (found.patients, found.units) == (2, 2)
    assert found.sums() == pytest.approx([1, 1, 0, 0, 0], abs=0.01)
    by_image = noised(BLANK, rows, ["a", "a", "a", "a", "b"], Event("gaussian", 1e-3, unit="image"), Keyed(KEY))
    assert (by_image.patients, by_image.units) == (2, 5)
    assert by_image.sums() == pytest.approx([4, 1, 0, 0, 0], abs=0.01)


def test_another_key_gives_other_noise_and_the_same_one_the_same_bits() -> None:
    rows, event = np.eye(5), Event("gaussian", 1.0)
    one, two, other = (noised(BLANK, rows, [*"abcde"], event, Keyed(key)) for key in (KEY, KEY, bytes(32)))
    assert one == two != other


def test_a_patient_of_whom_the_model_gives_no_numbers_adds_nothing() -> None:
    event, rows = Event("gaussian", 1.0), np.eye(5)
    spoilt = rows.copy()
    spoilt[1] = np.nan, np.inf, 0, 0, 0
    rows[1] = 0.0
    names = ["a", "b", "c", "d", "d"]
    assert noised(BLANK, spoilt, names, event, Keyed(KEY)) == noised(BLANK, rows, names, event, Keyed(KEY))
    vectors = noised_rows("binary", np.array([0.3, np.nan]), np.array([0, 1]))
    assert np.isnan(vectors[1]).any()
    assert not np.isnan(vectors[0]).any()
