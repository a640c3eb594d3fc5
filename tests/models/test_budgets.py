"""Samplers, label budgets and active selection against counting by hand, brute force and the authors' algorithms."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn

from polyclinic.core import study as studies
from polyclinic.core.errors import StudyError
from polyclinic.models.adaptation import Memory, Start, Trained
from polyclinic.models.adaptations.data_active import Active, k_centre, typical, typicality, uncertain
from polyclinic.models.adaptations.data_budget import LabelBudget
from polyclinic.models.adaptations.data_sampling import ByPatient, Rebalance
from polyclinic.models.chain import chain
from polyclinic.models.tasks.classification import Classification
from tests.models.begun import begun

FOUR = Classification(kind="multiclass", classes=("a", "b", "c", "d"))
LABELS = Classification(kind="multilabel", classes=("a", "b", "c"))


def names(start: Start, chosen: Tensor) -> set[str]:
    return {start.pool.patients[i] for i in chosen.tolist()}


def select(method: Any, start: Start, seed: int = 0) -> Tensor:
    found: Tensor = method.build().select(start, torch.Generator().manual_seed(seed))
    assert found.tolist() == sorted(set(found.tolist()))
    assert set(found.tolist()) <= set(start.labelled.tolist())
    return found


def weights(method: Any, start: Start) -> np.ndarray:
    found: np.ndarray = method.build().weigh(start).numpy()
    assert found.mean() == pytest.approx(1.0)
    return found


@pytest.mark.parametrize("power", [0.5, 1.0, 1.5])
def test_classes_are_drawn_in_proportion_to_their_count_to_one_less_power(power: float) -> None:
    targets = torch.tensor([0] * 50 + [1] * 10 + [2] * 2)  # none of d
    found = weights(Rebalance(power=power), begun(FOUR, targets))
    share = np.array([found[targets.numpy() == c].sum() for c in range(3)]) / found.sum()
    expected = np.array([50.0, 10.0, 2.0]) ** (1 - power)
    np.testing.assert_allclose(share, expected / expected.sum())


def test_a_picture_of_several_classes_counts_by_its_rarest_and_one_of_none_by_itself() -> None:
    targets = torch.tensor([[1, 0, 0], [1, 0, 0], [1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0]])
    found = weights(Rebalance(), begun(LABELS, targets))
    np.testing.assert_allclose(found / found[0], np.array([1 / 4, 1 / 4, 1, 1 / 4, 1 / 2, 1 / 2]) * 4)


def test_only_what_is_labelled_is_counted() -> None:
    start = replace(begun(FOUR, torch.tensor([0, 0, 0, 1, 1, 1])), labelled=torch.tensor([0, 3, 4]))
    np.testing.assert_allclose(weights(Rebalance(), start), np.array([1, 0.5, 0.5]) * 1.5)


def test_every_patient_is_drawn_equally_often_and_samplers_multiply() -> None:
    whose = ("a", "a", "a", "b", "c", "c")
    start = begun(FOUR, torch.tensor([0, 0, 0, 0, 1, 1]), patients=whose)
    found = weights(ByPatient(), start)
    assert {p: found[np.array(whose) == p].sum() for p in "abc"} == pytest.approx(dict.fromkeys("abc", 2.0))
    both = chain(ByPatient().build(), Rebalance().build()).weigh
    assert both is not None
    np.testing.assert_allclose(both(start), found * weights(Rebalance(), start))


def several(count: int = 40, each: int = 2, seed: int = 0) -> Start:
    """Patients with two pictures each, of classes that are unequally frequent."""
    whose = tuple(f"p{i // each}" for i in range(count * each))
    classes = np.random.default_rng(1).choice(4, count, p=[0.7, 0.2, 0.05, 0.05]).repeat(each)
    return begun(FOUR, torch.from_numpy(classes), patients=whose, seed=seed)


@pytest.mark.parametrize("stratified", [False, True])
def test_budgets_are_nested_whole_patients_and_the_same_in_every_round(stratified: bool) -> None:
    start, before = several(), set[str]()
    for count in (1, 3, 10, 25, 40, 99):
        found = select(LabelBudget(patients=count, stratified=stratified), start)
        again = replace(start, round=7, generator=torch.Generator().manual_seed(9))
        assert torch.equal(found, select(LabelBudget(patients=count, stratified=stratified), again, seed=5))
        assert before < names(start, found) or count == 99
        before = names(start, found)
        assert len(before) == min(count, 40)
        assert len(found) == 2 * len(before)
    other = several(seed=1)
    ten = LabelBudget(patients=10, stratified=stratified)
    assert names(start, select(ten, start)) != names(other, select(ten, other))


@pytest.mark.parametrize(("share", "expected"), [(0.05, 2), (0.1, 4), (0.25, 10), (1.0, 40), (0.01, 1), (0.11, 5)])
def test_a_share_of_patients_is_rounded_up(share: float, expected: int) -> None:
    start = several()
    assert len(names(start, select(LabelBudget(share=share), start))) == expected


def test_who_joins_or_leaves_moves_nobody() -> None:
    start = several()
    ten = names(start, select(LabelBudget(patients=10), start))
    fewer = replace(start, labelled=start.labelled[start.labelled >= 20])  # the first ten patients have left
    gone = {f"p{i}" for i in range(10)}
    assert names(start, select(LabelBudget(patients=10), fewer)) >= ten - gone


def test_a_stratified_budget_has_every_class_as_early_as_it_can() -> None:
    start = several()
    targets = start.pool.targets.numpy()
    assert np.bincount(targets)[3] > 0
    found = select(LabelBudget(patients=4, stratified=True), start)
    assert set(targets[found.numpy()].tolist()) == {0, 1, 2, 3}
    counts = np.bincount(targets[select(LabelBudget(patients=12, stratified=True), start).numpy()], minlength=4) // 2
    whole = np.bincount(targets, minlength=4) // 2
    assert counts[3] == whole[3] or counts[3] >= 3


def test_a_stratified_budget_of_several_labels_takes_those_with_none_too() -> None:
    rng = np.random.default_rng(0)
    targets = torch.from_numpy((rng.random((60, 3)) < [0.6, 0.1, 0.05]).astype(np.int64))
    start = begun(LABELS, targets)
    found = targets[select(LabelBudget(patients=4, stratified=True), start)]
    assert (found.sum(dim=0) > 0).all()
    assert (found.sum(dim=1) == 0).any()


def test_who_is_labelled_is_nothing_that_the_labels_of_others_change() -> None:
    start = several()
    scrambled = replace(start, pool=replace(start.pool, targets=(start.pool.targets + 1) % 4))
    found = select(LabelBudget(patients=10), start)
    assert torch.equal(found, select(LabelBudget(patients=10), scrambled))


# active selection


def blobs(count: int = 60, seed: int = 3) -> Start:
    """Patients of one picture each in four clouds; what is frozen sees the picture itself."""
    rng = np.random.default_rng(0)
    clouds = 0.2 + 0.6 * np.eye(4)
    group = np.arange(count) % 4
    places = clouds[group] + rng.normal(0, 0.04, (count, 4))
    pixels = torch.from_numpy((places.clip(0, 1) * 255).astype(np.uint8)).view(count, 1, 2, 2)
    weight = torch.tensor([[3.0, -1.0, 0.5, 0.0], [-2.0, 1.0, 0.0, 1.0], [0.0, 0.0, 1.0, 2.0], [1.0, 1.0, -1.0, 0.0]])
    return begun(
        FOUR, torch.from_numpy(group), pixels=pixels, seed=seed, forward=lambda seen: seen.flatten(1) @ weight.T,
        patients=tuple(f"p{i}" for i in range(count)),
    )  # fmt: skip


CRITERIA = ["entropy", "core_set", "typicality"]


def rounds(method: Active, start: Start, count: int) -> list[set[str]]:
    """Who counts as labelled in each round; what settles is the next round's memory."""
    adaptation, memory, found = method.build(), dict[str, Tensor](), list[set[str]]()
    for number in range(1, count + 1):
        now = replace(start, memory=memory, round=number)
        now = replace(now, labelled=select(method, now, seed=number))
        found.append(names(now, now.labelled))
        kept: Memory = adaptation.settle(nn.Identity(), now, Trained(0.1, 1))
        assert all(name.startswith("active.") for name in kept)
        memory = dict(kept)
    return found


@pytest.mark.parametrize("criterion", CRITERIA)
def test_selection_grows_by_the_round_up_to_the_budget_and_repeats_itself(criterion: Any) -> None:
    method = Active(criterion=criterion, first=8, per_round=6, budget=19)
    found = rounds(method, blobs(), 5)
    assert [len(each) for each in found] == [8, 14, 19, 19, 19]
    assert all(a <= b for a, b in itertools.pairwise(found))
    assert found == rounds(method, blobs(), 5)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_targets_of_patients_who_were_not_chosen_are_never_looked_at(criterion: Any) -> None:
    method, start = Active(criterion=criterion, first=8, per_round=6, budget=30), blobs()
    found = rounds(method, start, 4)
    spared = torch.tensor([name in found[-1] for name in start.pool.patients])
    scrambled = torch.where(spared, start.pool.targets, (start.pool.targets + 1) % 4)
    assert not torch.equal(scrambled, start.pool.targets)
    assert rounds(method, replace(start, pool=replace(start.pool, targets=scrambled)), 4) == found


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_site_smaller_than_the_budget_is_labelled_in_full(criterion: Any) -> None:
    found = rounds(Active(criterion=criterion, first=10, per_round=50, budget=500), blobs(20), 3)
    assert [len(each) for each in found] == [10, 20, 20]
    assert len(rounds(Active(criterion=criterion, first=30, budget=500), blobs(20), 1)[0]) == 20


def test_entropy_takes_those_of_whom_the_global_model_is_least_certain() -> None:
    start = blobs()
    first, second, *_ = rounds(Active(first=8, per_round=6, budget=30), start, 2)
    logits = start.forward(start.pool.pixels.float() / 255).double().numpy()
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    entropy = dict(zip(start.pool.patients, -(p * np.log(p)).sum(axis=1), strict=True))
    left = sorted((name for name in entropy if name not in first), key=lambda name: -entropy[name])
    assert second - first == set(left[:6])


@pytest.mark.parametrize("task", [Classification(), LABELS], ids=lambda task: task.kind)
def test_the_entropy_of_yes_or_no_is_that_of_each_question(task: Classification) -> None:
    logits = torch.linspace(-3, 3, 4 * task.outputs).view(4, task.outputs)
    targets = torch.zeros((4, 3) if task.kind == "multilabel" else 4, dtype=torch.int64)
    p = torch.sigmoid(logits.double())
    expected = -(p * p.log() + (1 - p) * (1 - p).log()).mean(dim=1)
    found = uncertain(begun(task, targets, forward=lambda pixels: logits), torch.zeros(4, 1, 2, 2))
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-6)


def radius(rows: np.ndarray, centres: Any) -> float:
    return float(np.linalg.norm(rows[:, None] - rows[list(centres)][None], axis=2).min(axis=1).max())


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 3))
def test_greedy_k_centre_is_within_twice_the_best_radius(seed: int, labelled: int, more: int) -> None:
    """Sener & Savarese's guarantee, against every choice there is."""
    rows = np.random.default_rng(seed).normal(size=(10, 2))
    before = list(range(labelled))
    found = k_centre(rows, before, more, 0)
    assert len({*before, *found}) == labelled + more
    others = range(labelled, 10)
    best = min(radius(rows, [*before, *some]) for some in itertools.combinations(others, more))
    assert radius(rows, [*before, *found]) <= 2 * best + 1e-9
    # each is the furthest from all before it
    for i, one in enumerate(found):
        centres = rows[[*before, *found[:i]]]
        apart = [np.linalg.norm(row - centres, axis=1).min() for row in rows]
        assert apart[one] == pytest.approx(max(apart))


def test_typicality_is_the_inverse_mean_distance_to_the_nearest_neighbours() -> None:
    rows = np.random.default_rng(0).normal(size=(50, 3))
    distances, _ = NearestNeighbors(n_neighbors=21).fit(rows).kneighbors(rows)
    np.testing.assert_allclose(typicality(rows), 1 / (distances[:, 1:].mean(axis=1) + 1e-5))
    distances, _ = NearestNeighbors(n_neighbors=5).fit(rows[:8]).kneighbors(rows[:8])
    np.testing.assert_allclose(typicality(rows[:8]), 1 / (distances[:, 1:].mean(axis=1) + 1e-5))
    assert typicality(rows[:1]).tolist() == [1.0]


def as_the_authors_do(unit: np.ndarray, before: list[int], more: int, seed: int) -> list[int]:
    """Their ``TypiClust.select_samples``, in their order of steps, without pandas and faiss."""
    labels = KMeans(len(before) + more, n_init=10, random_state=seed).fit(unit).labels_.copy()
    ids, sizes = np.unique(labels, return_counts=True)
    existing = np.bincount(labels[before], minlength=len(ids))
    table = [(existing[c], -size, c) for c, size in zip(ids, sizes, strict=True) if size > 5]
    table.sort()
    labels[before] = -1
    selected: list[int] = []
    for i in range(more):
        indices = (labels == table[i % len(table)][2]).nonzero()[0]
        k = min(20, len(indices) // 2)
        distances, _ = NearestNeighbors(n_neighbors=k + 1).fit(unit[indices]).kneighbors(unit[indices])
        selected.append(int(indices[(1 / (distances[:, 1:].mean(axis=1) + 1e-5)).argmax()]))
        labels[selected[-1]] = -1
    return selected


@pytest.mark.parametrize("before", [[], [3, 50, 77]])
def test_typiclust_selects_as_its_authors_code(before: list[int]) -> None:
    rng = np.random.default_rng(1)
    rows = rng.normal(size=(8, 6))[rng.integers(0, 8, 200)] + rng.normal(0, 0.2, (200, 6))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    found = typical(rows, before, 6, 11)
    assert found == as_the_authors_do(unit, before, 6, 11)
    assert not set(found) & set(before)


def test_typiclust_stands_for_every_cloud_first_and_takes_more_than_the_large_clusters_hold() -> None:
    start = blobs()
    first = rounds(Active(criterion="typicality", first=4, budget=30), start, 1)[0]
    assert Counter(int(name[1:]) % 4 for name in first) == dict.fromkeys(range(4), 1)
    rows = np.random.default_rng(0).normal(size=(12, 2))
    assert sorted(typical(rows, [0], 11, 0)) == list(range(1, 12))
    assert sorted(typical(np.ones((5, 3)), [], 5, 0)) == list(range(5))


def test_a_patient_is_chosen_whole_and_budgets_combine() -> None:
    start = several()
    bounded = chain(LabelBudget(patients=12).build(), Active(first=5, budget=9, per_round=9).build())
    assert bounded.select is not None
    found = bounded.select(start, torch.Generator())
    assert len(names(start, found)) == 5
    assert len(found) == 10
    assert names(start, found) <= names(start, select(LabelBudget(patients=12), start))


def test_bad_budgets_are_refused() -> None:
    def study(lines: str) -> None:
        studies.loads(f'[study]\nname = "x"\n[[adaptation]]\nmethod = "probe"\n[[adaptation]]\n{lines}')

    for lines, reason in [
        ('method = "label_budget"\nshare = 0.0', "share"),
        ('method = "label_budget"\npatients = -1', "patients"),
        ('method = "active"\nfirst = 60', "first must not exceed the budget"),
        ('method = "active"\ncriterion = "magic"', "criterion"),
        ('method = "rebalance"\npower = 3.0', "power"),
        ('method = "fixmatch"', "here all are"),
    ]:
        with pytest.raises(StudyError, match=reason):
            study(lines)
