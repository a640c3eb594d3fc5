"""Prototypes against their equations in NumPy, and the federation's against those of all images in one place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestCentroid

from polyclinic.core import study as studies
from polyclinic.core.errors import StudyError
from polyclinic.core.study import Study
from polyclinic.core.update import encode
from polyclinic.models.adaptations.representation_prototypes import FedProto, Nearest, Prototypes
from polyclinic.models.contracts import Batch
from polyclinic.models.export import load_adapted, write_adapter
from polyclinic.models.network import build, plain
from polyclinic.models.tasks.classification import Classification
from tests.conftest import study_text, write_images
from tests.models.begun import begun
from tests.models.pooled import members, rounds, together

THREE = Classification(kind="multiclass", classes=("a", "b", "c"))
PROTO = '[[adaptation]]\nmethod = "fedproto"\n'
NEAR = '[[adaptation]]\nmethod = "prototypes"\n'
LORA = '[[adaptation]]\nmethod = "lora"\nrank = 2\nalpha = 4\n'


def text(weights: Path, more: str, adapts: str = LORA) -> str:
    return study_text(weights, more).replace(LORA, adapts)


def drawn(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(features [7, 4], mass [3, 4], share [3]), the class in the middle without prototype."""
    rng = np.random.default_rng(seed)
    share = np.array([0.5, 0.0, 0.3])
    return rng.normal(size=(7, 4)), rng.normal(size=(3, 4)) * (share > 0)[:, None], share


def test_the_pull_is_the_mean_squared_distance_to_the_prototype_of_the_class_where_there_is_one() -> None:
    features, mass, share = drawn()
    targets = np.array([0, 1, 2, 0, 1, 2, 0])
    anchor = {"prototypes.mass": torch.tensor(mass).float(), "prototypes.share": torch.tensor(share).float()}
    method, given = FedProto(weight=0.7), torch.tensor(features, dtype=torch.float32, requires_grad=True)
    objective = method.build().objective(
        lambda m, b: b.output.sum(), begun(THREE, torch.tensor(targets), anchor=anchor)
    )
    loss = objective(torch.nn.Identity(), Batch(given, given, torch.ones(3), torch.tensor(targets)))
    expected, gradient = 0.0, np.zeros_like(features)
    for i, c in enumerate(targets):
        if share[c] > 0:
            apart = features[i] - mass[c] / share[c]
            expected += float((apart**2).mean()) / 7
            gradient[i] = 2 * apart / 4 / 7
    assert loss.item() == pytest.approx(3.0 + 0.7 * expected, rel=1e-5)
    loss.backward()
    assert given.grad is not None
    np.testing.assert_allclose(given.grad.numpy(), 0.7 * gradient, rtol=1e-4, atol=1e-6)


def test_without_prototypes_nothing_pulls() -> None:
    anchor = {"prototypes.mass": torch.zeros(3, 4), "prototypes.share": torch.zeros(3)}
    given = torch.ones((2, 4), requires_grad=True)
    objective = FedProto().build().objective(lambda m, b: b.features.sum() * 0 + 2.0, begun(THREE, anchor=anchor))
    loss = objective(torch.nn.Identity(), Batch(given, given, given, torch.tensor([0, 1])))
    loss.backward()
    assert loss.item() == 2.0
    assert given.grad is not None
    assert not given.grad.any()


def nearest(mass: np.ndarray, share: np.ndarray, temperature: float) -> Nearest:
    head = Nearest(*mass.shape, temperature)
    with torch.no_grad():
        head.mass.copy_(torch.tensor(mass))
        head.share.copy_(torch.tensor(share))
    return head


@pytest.mark.parametrize("classes", [2, 3])
def test_logits_are_distances_and_a_class_without_prototype_never_wins(classes: int) -> None:
    features, mass, share = drawn()
    share = np.array([0.5, 0.2, 0.3])[:classes] if classes == 2 else share
    mass = np.random.default_rng(5).normal(size=(classes, 4))
    logits = nearest(mass, share, 0.25)(torch.tensor(features).float()).numpy()
    distance = np.stack([((features - mass[c] / max(share[c], 1e-9)) ** 2).sum(1) for c in range(classes)], 1)
    if classes == 2:
        np.testing.assert_allclose(logits[:, 0], (distance[:, 0] - distance[:, 1]) / (0.25 * 4), rtol=1e-4, atol=1e-4)
        return
    difference = (distance[:, 0] - distance[:, 2]) / (0.25 * 4)
    np.testing.assert_allclose(logits[:, 2] - logits[:, 0], difference, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(logits[:, 1], logits[:, [0, 2]].min(axis=1))
    assert not nearest(mass * 0, share * 0, 0.25)(torch.tensor(features).float()).numpy().any()


@pytest.mark.parametrize(("chain", "place"), [(PROTO, "prototypes"), (NEAR, "head")])
@pytest.mark.parametrize("strategy", ["mean", "exact"])
def test_the_federations_prototypes_are_those_of_all_images_in_one_place(
    chain: str, place: str, strategy: str, tiny_vit: Path, tiny_manifest: Path
) -> None:
    fedprox = '[[adaptation]]\nmethod = "fedprox"\nmu = 0.1\n'
    study = studies.loads(text(tiny_vit, f'{chain}{fedprox}[strategy]\nmethod = "{strategy}"\n'))
    cohort = members(study, tiny_manifest)
    before, updates, after = rounds(study, cohort, 2)
    residuals = {name: array for name, array in before.items() if name.endswith(".residual")}
    features, targets, counts = together(study, cohort, [{**update.tensors, **residuals} for update in updates])
    assert counts == [update.weight for update in updates] == [24, 20, 30]
    for c in (0, 1):
        assert after[f"{place}.share"][c] == pytest.approx((targets == c).mean(), abs=1e-6)
        prototype = after[f"{place}.mass"][c] / after[f"{place}.share"][c]
        np.testing.assert_allclose(prototype, features[targets == c].mean(axis=0), rtol=1e-4, atol=1e-5)


def test_beside_a_probe_it_is_scikit_learns_nearest_centroid_on_the_pooled_frozen_features(
    tiny_vit: Path, tiny_manifest: Path
) -> None:
    study = studies.loads(text(tiny_vit, NEAR, '[[adaptation]]\nmethod = "probe"\n'))
    cohort = members(study, tiny_manifest)
    _, updates, after = rounds(study, cohort, 1)
    features, targets, _ = together(study, cohort, [update.tensors for update in updates])
    model = build(study)
    model.write(after)
    expected = NearestCentroid().fit(features, targets).predict(features)
    found = model.network.head(torch.from_numpy(features).float())[:, 0] > 0
    assert 0 < expected.mean() < 1
    np.testing.assert_array_equal(found.numpy(), expected == 1)
    assert model.parameters() == []


def test_a_class_of_too_few_patients_is_not_told(tiny_vit: Path, tmp_path: Path) -> None:
    manifest = write_images(tmp_path, {"north": 40, "south": 20})  # 10 and 5 patients a class in training
    study = studies.loads(text(tiny_vit, PROTO))
    _, (north, south), after = rounds(study, members(study, manifest), 1)
    assert not south.tensors["prototypes.mass"].any()
    assert not south.tensors["prototypes.share"].any()
    np.testing.assert_allclose(north.tensors["prototypes.share"], [0.5, 0.5])
    ratio = after["prototypes.mass"] / after["prototypes.share"][:, None]
    alone = north.tensors["prototypes.mass"] / north.tensors["prototypes.share"][:, None]
    np.testing.assert_allclose(ratio, alone, rtol=1e-5)
    few = studies.loads(text(tiny_vit, PROTO.replace('"fedproto"', '"fedproto"\nminimum_patients = 5')))
    _, (_, told), _ = rounds(few, members(few, manifest), 1)
    assert told.tensors["prototypes.mass"].any()


def test_both_together_share_one_set_of_prototypes_in_either_order(tiny_vit: Path, tiny_manifest: Path) -> None:
    for chain in (NEAR + PROTO, PROTO + NEAR):
        study = studies.loads(text(tiny_vit, chain))
        _, updates, after = rounds(study, members(study, tiny_manifest), 2)
        held = [module for module in build(study).network.modules() if isinstance(module, Prototypes)]
        assert len(held) == 1 + (chain == PROTO + NEAR)
        if len(held) == 2:
            np.testing.assert_array_equal(after["prototypes.mass"], after["head.mass"])
        assert all(update.tensors["head.mass"].any() for update in updates)


def test_an_adapter_holds_no_prototypes_that_only_train_and_is_pefts(
    tiny_vit: Path, tiny_manifest: Path, tmp_path: Path
) -> None:
    from peft import PeftModel

    study = studies.loads(text(tiny_vit, PROTO))
    _, _, after = rounds(study, members(study, tiny_manifest), 2)
    write_adapter(study, after, tmp_path / "adapter", plain(study).backbone.sha256)
    model = build(study)
    model.write(after)
    pixels = torch.rand((3, 1, 32, 32), generator=torch.Generator().manual_seed(0))
    peft = PeftModel.from_pretrained(plain(study), str(tmp_path / "adapter")).eval()
    with torch.no_grad():
        torch.testing.assert_close(peft(pixels), model.network(pixels), rtol=0, atol=1e-5)
    body = (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes()
    assert after["prototypes.mass"].tobytes()[:32] not in body
    assert after["prototypes.mass"].tobytes()[:32] in encode(after)
    own = studies.loads(text(tiny_vit, PROTO, '[[adaptation]]\nmethod = "bitfit"\n'))
    _, _, after = rounds(own, members(own, tiny_manifest), 1)
    write_adapter(own, after, tmp_path / "own", plain(own).backbone.sha256)
    model = build(own)
    model.write(after)
    with torch.no_grad():
        torch.testing.assert_close(load_adapted(own, tmp_path / "own")(pixels), model.network(pixels))


@pytest.mark.parametrize("chain", [PROTO, NEAR])
@pytest.mark.parametrize(
    ("more", "why"),
    [
        ('[rounds]\nweight = "patients"\n', "rounds.weight: .*count by images"),
        ('[server_step]\nmethod = "adam"\n', "server_step: .*needs the plain mean over sites, and 'adam'"),
        ('[server_step]\nmethod = "sgd"\nlearning_rate = 0.5\n', "and 'sgd' makes something else"),
        ('[task]\nmethod = "classification"\nkind = "multilabel"\nclasses = ["a", "b"]\n', "one prototype a class"),
    ],
)
def test_studies_in_which_the_sums_would_not_be_the_federations_are_refused(
    chain: str, more: str, why: str, tiny_vit: Path
) -> None:
    with pytest.raises(StudyError, match=why):
        studies.loads(text(tiny_vit, chain + more).replace("[rounds]\ncount = 2\n", "") + "\n")


def test_what_needs_a_head_that_learns_is_refused_beside_prototypes(tiny_vit: Path) -> None:
    with pytest.raises(StudyError, match="'prototypes' puts something of its own at the model's head, which 'fedlc'"):
        studies.loads(text(tiny_vit, NEAR + '[[adaptation]]\nmethod = "fedlc"\n'))
    study: Study = studies.loads(text(tiny_vit, NEAR + '[[adaptation]]\nmethod = "focal"\n'))
    assert [method.method for method in study.adaptation] == ["lora", "prototypes", "focal"]
