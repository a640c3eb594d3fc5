"""A detector's figures against every prediction in one list: COCO's accumulation, FROC and D-ECE written out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyclinic.core.errors import DataError, UpdateError
from polyclinic.core.statistics.detected import IOUS, Detected, tally
from polyclinic.core.statistics.detected_figures import RATES, average_precision, figures, reliability
from polyclinic.core.statistics.intervals import wilson

K = 3
Found = dict[str, Any]


def found(images: int, seed: int, most: int = 20, distinct: int = 0) -> Found:
    """Random detections of which some hit; ``distinct``: every score lies in a bin of its own among so many."""
    rng = np.random.default_rng(seed)
    kinds = np.where(rng.random((images, most)) < 0.6, rng.integers(0, K, (images, most)), -1)
    if distinct:
        scores = (rng.permutation(distinct)[: images * most].reshape(images, most) + 0.5) / distinct
    else:
        scores = np.where(
            rng.random((images, most)) < 0.3, rng.integers(0, 9, (images, most)) / 8, rng.random(kinds.shape)
        )
    truths = rng.integers(0, 6, (images, K)) * (rng.random((images, K)) < 0.7)
    hits = np.zeros((images, most, 10), bool)
    for i in range(images):
        for k in range(K):
            own = np.flatnonzero(kinds[i] == k)
            own = own[rng.random(len(own)) < 0.4 + 0.5 * scores[i, own]][: truths[i, k]]
            for t in range(10):
                hits[i, own[rng.random(len(own)) < 1 - t / 12], t] = True
    patients = [f"{seed}-{i // 2}" for i in range(images)]
    return {"kinds": kinds, "scores": scores, "hits": hits, "truths": truths, "patients": patients}


def together(*parts: Found) -> Found:
    arrays = {key: np.concatenate([part[key] for part in parts]) for key in parts[0] if key != "patients"}
    return {**arrays, "patients": [patient for part in parts for patient in part["patients"]]}


def coco_ap(scores: np.ndarray, hits: np.ndarray, truths: int) -> float:
    """``COCOeval.accumulate`` for one class and overlap, line by line."""
    order = np.argsort(-scores, kind="mergesort")
    right, wrong = np.cumsum(hits[order]).astype(float), np.cumsum(~hits[order]).astype(float)
    recall, precision = right / truths, (right / (wrong + right + np.spacing(1))).tolist()
    for i in range(len(precision) - 1, 0, -1):
        precision[i - 1] = max(precision[i - 1], precision[i])
    levels = np.linspace(0.0, 1.0, 101)
    q = np.zeros(101)
    for r, place in enumerate(np.searchsorted(recall, levels, side="left")):
        if place < len(precision):
            q[r] = precision[place]
    return float(q.mean())


def mean_ap(given: Found, overlaps: int) -> float:
    values = []
    for k in range(K):
        own = given["kinds"] == k
        if truths := int(given["truths"][:, k].sum()):
            values += [coco_ap(given["scores"][own], given["hits"][own][:, t], truths) for t in range(overlaps)]
    return float(np.mean(values))


def froc(given: Found, rate: float) -> float:
    """The highest sensitivity of any score threshold with at most ``rate`` false positives an image."""
    real = given["kinds"] >= 0
    scores, hits = given["scores"][real], given["hits"][real][:, 0]
    best = 0
    for threshold in np.unique(scores):
        if (~hits[scores >= threshold]).sum() <= rate * len(given["kinds"]):
            best = max(best, int(hits[scores >= threshold].sum()))
    return best / int(given["truths"].sum())


@settings(max_examples=25, deadline=None)
@given(images=st.integers(2, 25), seed=st.integers(0, 10**6), score_bins=st.sampled_from([16, 64, 256]))
def test_pooled_figures_lie_within_the_bound(images: int, seed: int, score_bins: int) -> None:
    parts = [found(images, seed), found(3, seed + 1)]
    outcome = tally(**parts[0], score_bins=score_bins) + tally(**parts[1], score_bins=score_bins)
    everything = together(*parts)
    assert outcome == tally(**everything, score_bins=score_bins)
    if not everything["truths"].any():
        return
    told = figures(outcome, None)
    assert told["map50"].value == pytest.approx(mean_ap(everything, 1), abs=told["map50"].bound + 1e-9)
    assert told["map"].value == pytest.approx(mean_ap(everything, 10), abs=told["map"].bound + 1e-9)
    one, all_rates = froc(everything, 1.0), np.mean([froc(everything, rate) for rate in RATES])
    assert told["sensitivity"].value == pytest.approx(one, abs=told["sensitivity"].bound + 1e-9)
    assert told["froc"].value == pytest.approx(all_rates, abs=told["froc"].bound + 1e-9)


@pytest.mark.parametrize("seed", range(5))
def test_scores_in_bins_of_their_own_lose_nothing(seed: int) -> None:
    given = found(12, seed, distinct=4096)
    told = figures(tally(**given, score_bins=4096), None)
    assert [told[key].bound for key in ("map50", "map", "sensitivity", "froc")] == [0.0] * 4
    assert told["map50"].value == pytest.approx(mean_ap(given, 1), abs=1e-9)
    assert told["map"].value == pytest.approx(mean_ap(given, 10), abs=1e-9)
    assert told["sensitivity"].value == froc(given, 1.0)
    assert told["froc"].value == pytest.approx(np.mean([froc(given, rate) for rate in RATES]), abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=5), st.integers(0, 6))
def test_the_bound_is_what_orders_within_a_bin_can_do_and_no_more(bins: list[tuple[int, int]], missed: int) -> None:
    right, wrong = np.array(bins).T
    truths = int(right.sum()) + missed
    if not truths:
        return
    told = average_precision(right + wrong, right[None], truths)
    for first, limit in ((True, told.most), (False, told.least)):
        groups = [[first] * (n if first else m) + [not first] * (m if first else n) for n, m in bins[::-1]]
        hits = np.array([hit for group in groups for hit in group], dtype=bool)
        scores = -np.arange(len(hits), dtype=float)
        assert limit[0] == pytest.approx(coco_ap(scores, hits, truths) if len(hits) else 0.0, abs=1e-12)


def test_recalls_are_compared_as_coco_compares_floats() -> None:
    for truths in range(1, 300):
        hits = np.arange(truths + 1) / truths
        told = average_precision(np.ones(truths, int), np.ones((1, truths), int), truths)
        assert told.least[0] == told.most[0] == 1.0
        missed = average_precision(np.ones(truths, int), np.ones((1, truths), int), truths + 1)
        reached = (np.linspace(0.0, 1.0, 101) <= truths / (truths + 1)).mean()
        assert missed.least[0] == pytest.approx(reached), hits


def test_the_calibration_error_is_the_papers() -> None:
    given = found(30, 4)
    outcome = tally(**given, bins=10)
    real = given["kinds"] >= 0
    scores, hits = given["scores"][real], given["hits"][real][:, 0]
    expected = 0.0
    places = np.floor(scores * 10)  # a score of exactly 1 has a bin to itself
    for place in np.unique(places):
        own = places == place
        expected += own.mean() * abs(hits[own].mean() - scores[own].mean())
    told = figures(outcome, np.random.default_rng(0))["ece"]
    assert told.value == pytest.approx(expected, abs=told.bound)
    assert told.bound < 2e-6
    assert told.low is not None
    assert told.high is not None
    assert told.low <= told.value <= told.high
    drawn = reliability(outcome)
    assert [b.size for b in drawn] == [int((places == place).sum()) for place in range(11)]
    assert drawn[3].frequency == pytest.approx(hits[places == 3].mean())


def test_intervals_count_patients() -> None:
    given = found(40, 7)
    told = figures(tally(**given), None)
    carriers = len({p for p, boxes in zip(given["patients"], given["truths"], strict=True) if boxes.any()})
    assert (told["sensitivity"].low, told["sensitivity"].high) == wilson(told["sensitivity"].value, carriers)
    one = tally(
        **{**given, "truths": given["truths"] * [1, 0, 0], "hits": given["hits"] & (given["kinds"] == 0)[..., None]}
    )
    told = figures(one, None)
    assert (told["map50"].low, told["map50"].high) == wilson(told["map50"].value, int(one.class_patients[0]))
    many = figures(tally(**{**given, "patients": range(40)}), None)["map"]
    few = figures(tally(**given), None)["map"]
    assert many.high - many.low < few.high - few.low


def test_the_interval_holds_where_patients_differ() -> None:
    """In 95 % or more of samples of 24 patients the interval holds the average precision of the whole population."""
    rng, held = np.random.default_rng(3), 0

    def drawn(patients: int) -> Found:
        ease = rng.beta(2, 2, patients)[:, None]
        hit = rng.random((patients, 8)) < ease
        scores = np.clip(rng.normal(0.35 + 0.3 * hit, 0.2), 0, 1)
        hits = np.repeat(hit[..., None], 10, axis=2)
        truths = np.full((patients, 1), 8)
        return {
            "kinds": np.zeros((patients, 8), int),
            "scores": scores,
            "hits": hits,
            "truths": truths,
            "patients": range(patients),
        }

    truth = figures(tally(**drawn(20_000)), None)["map50"].value
    for _ in range(200):
        told = figures(tally(**drawn(24)), None)["map50"]
        held += told.low <= truth <= told.high
    assert held >= 190


def test_what_cannot_be_had_says_why() -> None:
    nothing = tally(**found(0, 1))
    assert {figure.why for figure in figures(nothing, None).values()} == {"no images"}
    given = found(5, 1)
    empty = tally(**{**given, "kinds": np.full_like(given["kinds"], -1), "hits": given["hits"] & False})
    told = figures(empty, None)
    assert told["map50"].value == told["froc"].value == 0.0
    assert told["ece"].why == "nothing was detected"
    healthy = tally(**{**given, "truths": given["truths"] * 0, "hits": given["hits"] & False})
    assert figures(healthy, None)["map"].why == figures(healthy, None)["sensitivity"].why == "no true boxes"
    assert figures(healthy, None)["ece"].value is not None


def test_what_is_no_outcome_is_not_counted() -> None:
    given = found(4, 1)
    for wrong, said in (
        ({"scores": np.where(given["kinds"] >= 0, np.nan, 0.0)}, "no numbers"),
        ({"scores": given["scores"] + 1}, "no numbers"),
        ({"kinds": given["kinds"] + K}, "no class"),
        ({"patients": "abc"}, "one length"),
        ({"hits": given["hits"][..., :9]}, "one length"),
    ):
        with pytest.raises(DataError, match=said):
            tally(**{**given, **wrong})


def test_counts_that_contradict_each_other_are_refused() -> None:
    good = tally(**found(12, 5), bins=5, score_bins=16)
    fields = good.fields()
    first = int(np.argmax(good.found[0] > 0))
    more: dict[str, Any] = {key: np.array(value).tolist() for key, value in fields.items()}

    def changed(field: str, place: tuple[int, ...], by: int) -> dict[str, Any]:
        array = np.array(more[field])
        array[place] += by
        return more | {field: array.tolist()}

    for document, field in (
        (changed("found", (0, first), 1), "reliability"),
        (changed("hits", (0, 0, first), 10**6), "hits"),
        (changed("truths", (0,), -(10**3)), "truths"),
        (changed("truths", (0,), 10**9), "truths"),
        (changed("class_images", (0,), 100), "class_images"),
        (changed("class_patients", (0,), 100), "class_patients"),
        (changed("reliability", (1, 0), 2**40), "reliability"),
        (changed("reliability", (2, 0), 10**6), "reliability"),
        (more | {"carriers": 100}, "carriers"),
        (more | {"images": 1}, "patients"),
        (more | {"found": (np.array(more["found"]) + 2**50).tolist()}, "found"),
    ):
        with pytest.raises(UpdateError) as refusal:
            Detected.from_fields(document)
        assert refusal.value.where == field


def test_other_configurations_do_not_merge() -> None:
    one = tally(**found(4, 1))
    with pytest.raises(UpdateError):
        one + tally(**found(4, 1), score_bins=64)
    with pytest.raises(UpdateError):
        one + tally(**found(4, 1), bins=5)
    fewer = found(4, 1)
    fewer["kinds"], fewer["truths"] = np.minimum(fewer["kinds"], 0), fewer["truths"][:, :1]
    fewer["hits"] = fewer["hits"] & False
    with pytest.raises(UpdateError, match="classes"):
        one + tally(**fewer)


def test_the_overlaps_are_cocos() -> None:
    from pycocotools.cocoeval import Params

    assert np.array_equal(IOUS, Params(iouType="bbox").iouThrs)
