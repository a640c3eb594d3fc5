"""What a site answers: checked against scikit-learn on its own predictions, and held to its own rules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import metrics

from polyclinic.client.data.dataset import Images, SiteData
from polyclinic.client.data.manifest import read_manifest, sites
from polyclinic.client.evaluate import describe, predict
from polyclinic.client.fit import fit
from polyclinic.client.policy import Policy
from polyclinic.client.respond import Site, Workbench, respond, weight
from polyclinic.core.config import parse
from polyclinic.core.errors import DataError, PolicyError, UpdateError
from polyclinic.core.messages import Instruction, Reply
from polyclinic.core.statistics.monoid import Withheld
from polyclinic.core.statistics.outcome import UNIT
from polyclinic.core.study import Study
from polyclinic.core.update import Tensors, digest
from polyclinic.core.version import VERSION
from polyclinic.models.adaptations.parameter import lora_layers
from polyclinic.models.network import build, plain, task

DESCRIBED = {f"describe/{kind}" for kind in ("features", "kernel", "intensities", "labels", "acquisition")}


@pytest.fixture(scope="module")
def bench(tiny_study: Study) -> Workbench:
    return Workbench(tiny_study)


@pytest.fixture(scope="module")
def north(tiny_study: Study, tiny_manifest: Path) -> SiteData:
    rows = sites(read_manifest(tiny_manifest, tiny_study.data, task(tiny_study), 0))["north"]
    return SiteData("north", rows, tiny_study.data, task(tiny_study))


def ask(study: Study, state: Tensors, /, **keys: object) -> Instruction:
    asked = Instruction(study.digest, "run", 1, "nonce", digest(state), False, ("val", "test"), False, VERSION, state)
    return replace(asked, **keys)  # type: ignore[arg-type]


def start(study: Study) -> Tensors:
    """A state whose head is large enough to err in both directions."""
    state = dict(build(study).read())
    state["head.weight"] = state["head.weight"] * 30
    return state


def answer(bench: Workbench, data: SiteData, policy: Policy | None = None, **keys: object) -> Reply:
    return respond(bench, Site("north", data, policy or Policy()), ask(bench.study, start(bench.study), **keys))


def logits(study: Study, state: Tensors, images: Images) -> np.ndarray:
    """One picture at a time through a model of its own."""
    adapted = build(study)
    adapted.write(state)
    with torch.no_grad():
        each = [adapted.network(torch.from_numpy(pixels[None]).float() / 255)[0, 0] for pixels in images.pixels]
    return torch.stack(each).double().numpy()


def test_statistics_are_scikit_learns_on_the_sites_predictions(bench: Workbench, north: SiteData) -> None:
    reply = answer(bench, north)
    assert set(reply.statistics) == {"incoming/val", "incoming/test"}
    for split in ("val", "test"):
        images, told = north.images(split), reply.statistics[f"incoming/{split}"]
        scores = logits(bench.study, start(bench.study), images)
        p = 1 / (1 + np.exp(-scores))
        assert not isinstance(told, Withheld)
        assert (told.images, told.patients) == (len(images), len(set(images.patients)))  # type: ignore[attr-defined]
        assert told.nll / 2**UNIT / len(images) == pytest.approx(metrics.log_loss(images.targets, p), abs=1e-6)  # type: ignore[attr-defined]
        brier = metrics.brier_score_loss(images.targets, p)
        assert told.brier / 2**UNIT / len(images) == pytest.approx(brier, abs=1e-6)  # type: ignore[attr-defined]
        expected = metrics.confusion_matrix(images.targets, p > 0.5, labels=[0, 1])
        np.testing.assert_array_equal(told.confusion, expected)  # type: ignore[attr-defined]


def test_the_reply_repeats_what_it_answers_and_counts_the_site(bench: Workbench, north: SiteData) -> None:
    reply = answer(bench, north, round=7)
    state = start(bench.study)
    assert (reply.site, reply.study, reply.run, reply.round, reply.nonce, reply.base) == (
        "north", bench.study.digest, "run", 7, "nonce", digest(state),
    )  # fmt: skip
    assert reply.sizes == {"train": (24, 24), "val": (12, 12), "test": (12, 12)}
    assert reply.update is None
    assert reply.seconds >= 0


def test_the_update_is_what_the_loop_gives_and_is_judged(bench: Workbench, north: SiteData) -> None:
    reply = answer(bench, north, fit=True, evaluate=("val",), round=2)
    study, state = bench.study, start(bench.study)
    adapted = build(study)
    fit(adapted, task(study), north.images("train"), study, "north", 2, adapted.write(state))
    expected = adapted.read()
    assert reply.update is not None
    assert (reply.update.site, reply.update.weight) == ("north", 24)
    assert reply.update.tensors.keys() == expected.keys()
    assert all(np.array_equal(array, expected[name]) for name, array in reply.update.tensors.items())
    assert set(reply.statistics) == {"incoming/val", "fitted/val"}
    images = north.images("val")
    p = 1 / (1 + np.exp(-logits(study, expected, images)))
    told = reply.statistics["fitted/val"]
    assert told.nll / 2**UNIT / len(images) == pytest.approx(metrics.log_loss(images.targets, p), abs=1e-6)  # type: ignore[union-attr]


def test_what_a_site_answers_does_not_depend_on_what_was_asked_before(bench: Workbench, north: SiteData) -> None:
    one = answer(bench, north, fit=True, describe=True)
    layers = {f"{name}.residual": 0.1 for name, _ in lora_layers(bench.adapted.network)}
    state = start(bench.study) | {name: np.full((32, 32), value, np.float32) for name, value in layers.items()}
    respond(bench, Site("north", north, Policy()), ask(bench.study, state, fit=True, describe=True))
    again = answer(bench, north, fit=True, describe=True)
    assert one.statistics == again.statistics
    assert one.update is not None
    assert again.update is not None
    assert digest(one.update.tensors) == digest(again.update.tensors)


def test_it_refuses_another_study_an_unapproved_one_and_another_state(bench: Workbench, north: SiteData) -> None:
    with pytest.raises(PolicyError, match="another study"):
        answer(bench, north, study="0" * 64)
    with pytest.raises(PolicyError, match="not approved here"):
        answer(bench, north, Policy(studies=("0" * 64,)))
    assert answer(bench, north, Policy(studies=("0" * 64, bench.study.digest))).site == "north"
    with pytest.raises(UpdateError, match="north: the global state is not the one"):
        answer(bench, north, base="0" * 64)
    with pytest.raises(DataError, match="there is no split 'all'"):
        answer(bench, north, evaluate=("all",))


def test_refusals_come_before_the_model_is_touched(bench: Workbench, north: SiteData) -> None:
    answer(bench, north)
    before = digest(bench.adapted.read())
    state = {name: array + 1 for name, array in start(bench.study).items()}
    for keys, rules in (({"study": "0" * 64}, Policy()), ({}, Policy(studies=()))):
        with pytest.raises(PolicyError):
            respond(bench, Site("north", north, rules), ask(bench.study, state, fit=True, **keys))
    assert digest(bench.adapted.read()) == before


def test_figures_of_too_few_patients_are_withheld(bench: Workbench, north: SiteData) -> None:
    asked = {"fit": True, "describe": True}
    few = answer(bench, north, Policy(minimum_patients=13), **asked).statistics  # 12 in val and test, 24 in train
    kinds = {"incoming/val": "outcome", "incoming/test": "outcome", "fitted/val": "outcome"}
    assert {name: told.kind for name, told in few.items() if isinstance(told, Withheld)} == kinds
    none = answer(bench, north, Policy(minimum_patients=25), **asked).statistics
    assert {name: told for name, told in none.items() if not isinstance(told, Withheld)} == {}
    assert set(none) == set(kinds) | DESCRIBED
    every = answer(bench, north, Policy(minimum_patients=12), **asked).statistics
    assert not any(isinstance(told, Withheld) for told in every.values())


@pytest.mark.parametrize("tell", [(), ("outcome",), ("labels", "kernel")])
def test_kinds_that_are_not_to_be_told_are_not_mentioned(
    bench: Workbench, north: SiteData, tell: Sequence[str]
) -> None:
    reply = answer(bench, north, parse(Policy, {"tell": list(tell)}, "policy"), fit=True, describe=True)
    outcomes = {"incoming/val", "incoming/test", "fitted/val"} if "outcome" in tell else set()
    assert set(reply.statistics) == outcomes | {f"describe/{kind}" for kind in tell if kind != "outcome"}
    assert reply.update is not None


def test_the_weight_is_what_the_study_says(tiny_study: Study, north: SiteData) -> None:
    double = SiteData(
        "north", tuple(replace(row, patient=f"p{row.line // 2}") for row in north.rows), tiny_study.data, north.task
    )
    images, patients = double.sizes()["train"]
    assert patients < images

    def counted(way: str) -> int:
        document = tiny_study.model_dump(mode="json")
        document["rounds"]["weight"] = way
        return weight(parse(Study, document, "test"), Site("north", double, Policy()))

    assert [counted(way) for way in ("images", "patients", "equal")] == [images, patients, 1]


def test_splits_without_images_are_passed_over_but_not_training(bench: Workbench, north: SiteData) -> None:
    tests_only = SiteData(
        "north", tuple(row for row in north.rows if row.split == "test"), bench.study.data, north.task
    )
    assert set(answer(bench, tests_only, describe=True).statistics) == {"incoming/test"}
    with pytest.raises(DataError, match="north: has no training images"):
        answer(bench, tests_only, fit=True)


def test_features_and_kernel_count_one_image_a_patient_the_rest_counts_all(tiny_study: Study, north: SiteData) -> None:
    images, device = north.images("train"), torch.device("cpu")
    backbone = plain(tiny_study).backbone
    shared = tuple(f"p{i // 3}" for i in range(len(images)))
    told = describe(backbone, task(tiny_study), Images(images.pixels, images.targets, shared), tiny_study, device)
    firsts = Images(images.pixels[::3], images.targets[::3], shared[::3])
    alone = describe(backbone, task(tiny_study), firsts, tiny_study, device)
    assert {kind: statistic.patients for kind, statistic in told.items()} == dict.fromkeys(told, 8)
    for kind in ("features", "kernel"):
        assert told[kind].fields() == alone[kind].fields()
    assert told["intensities"].images == told["labels"].images == 24  # type: ignore[attr-defined]
    assert told["labels"].class_images.tolist() == np.bincount(images.targets, minlength=2).tolist()  # type: ignore[attr-defined]


def test_predictions_do_not_depend_on_the_batch(tiny_study: Study) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (130, 1, 32, 32), dtype=np.uint8)
    images = Images(pixels, np.zeros(130, np.int64), tuple(map(str, range(130))))
    model, device = plain(tiny_study), torch.device("cpu")
    result = predict(model, images, tiny_study, device)
    assert result.shape == (130, 1)
    assert result.dtype == np.float32
    with torch.no_grad():
        each = torch.cat([model(torch.from_numpy(pixels[i : i + 1]).float() / 255) for i in (0, 63, 64, 129)])
    np.testing.assert_allclose(result[[0, 63, 64, 129]], each.numpy(), atol=1e-5)


def test_what_only_describing_needs_is_let_go_of(bench: Workbench, north: SiteData) -> None:
    answer(bench, north, describe=True)
    assert bench.frozen() is bench.frozen()
    answer(bench, north)
    assert bench._frozen is None
