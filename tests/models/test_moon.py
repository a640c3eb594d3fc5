"""MOON against its equation in NumPy, and its previous model against what the site had at the end of its last round."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from polyclinic.client.keep import Keep
from polyclinic.client.respond import Workbench, respond
from polyclinic.core import study as studies
from polyclinic.core.errors import StudyError
from polyclinic.core.messages import Instruction
from polyclinic.core.study import Study
from polyclinic.core.update import Tensors, digest
from polyclinic.core.version import VERSION
from polyclinic.models.adaptations.representation_moon import PREVIOUS, Moon, contrast
from polyclinic.models.contracts import Batch
from polyclinic.models.network import build
from tests.conftest import study_text
from tests.models.begun import begun
from tests.models.convolutional import adapted as convolutional
from tests.models.pooled import members


@pytest.fixture(scope="module")
def study(tiny_vit: Path) -> Study:
    return studies.loads(study_text(tiny_vit, '[[adaptation]]\nmethod = "moon"\nmu = 2.0\n'))


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))


def test_the_contrast_is_the_papers_equation_3() -> None:
    z, g, p = np.random.default_rng(0).normal(size=(3, 5, 7))
    near, far = np.exp(cosine(z, g) / 0.5), np.exp(cosine(z, p) / 0.5)
    given = (torch.tensor(each).float() for each in (z, g, p))
    assert contrast(*given, 0.5).item() == pytest.approx(float(-np.log(near / (near + far)).mean()), rel=1e-5)


def test_value_and_gradient_through_the_model_are_those_of_three_models(study: Study) -> None:
    """The global and the previous model built apart, each with weights of its own."""
    rng = np.random.default_rng(1)

    def moved(state: Tensors) -> Tensors:
        return {name: (array + rng.normal(0, 0.1, array.shape)).astype(np.float32) for name, array in state.items()}

    own, federation, before = (build(study) for _ in range(3))
    anchor = federation.write(moved(federation.read()))
    before.write(moved(before.read()))
    own.write(moved(own.read()))
    pixels = torch.rand((4, 1, 32, 32), generator=torch.Generator().manual_seed(0))
    memory = Moon().settle(before.network, begun(), None)  # type: ignore[arg-type]
    with torch.no_grad():
        features = {name: model.network(pixels, features=True) for name, model in (("g", federation), ("p", before))}
    started = begun(anchor=anchor, memory=memory, features=lambda pixels: features["g"])
    objective = Moon(mu=2.0).build().objective(lambda m, b: b.output.sum(), started)
    z = own.network(pixels, features=True)
    loss = objective(own.network, Batch(pixels, z, torch.ones(3), torch.zeros(4)))
    expected = 3.0 + 2.0 * contrast(z, features["g"], features["p"], 0.5)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert loss.item() > 3.1
    loss.backward()
    found = {name: w.grad.clone() for name, w in own.network.named_parameters() if w.grad is not None}
    own.network.zero_grad()
    expected = 2.0 * contrast(own.network(pixels, features=True), features["g"], features["p"], 0.5)
    expected.backward()
    assert found
    for name, weight in own.network.named_parameters():
        if weight.grad is not None:
            torch.testing.assert_close(found[name], weight.grad)


def test_without_a_previous_model_nothing_is_added(study: Study) -> None:
    def plain(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        return batch.output.sum()

    assert Moon().build().objective(plain, begun(memory={"other/x": torch.ones(1)})) is plain


def test_a_site_keeps_what_it_had_trained_and_the_next_round_differs_for_it(
    study: Study, tiny_manifest: Path, tmp_path: Path
) -> None:
    bench, keep = Workbench(study, torch.device("cpu")), Keep(tmp_path / "own")
    site = replace(members(study, tiny_manifest)["north"], keep=keep)
    state = bench.adapted.read()

    def asked(number: int) -> Instruction:
        return Instruction(study.digest, "r", number, "n", digest(state), True, (), False, VERSION, state)

    first = respond(bench, site, asked(1)).update
    kept = keep.before("r", 2)
    assert first is not None
    assert kept is not None
    names = {name.removeprefix(f"memory/{PREVIOUS}") for name in kept}
    assert names == {name for name in first.tensors if not name.startswith("head.")}
    for name in names:
        np.testing.assert_array_equal(kept[f"memory/{PREVIOUS}{name}"].numpy(), first.tensors[name])
    second = respond(bench, site, asked(2)).update
    fresh = respond(bench, replace(site, keep=Keep()), asked(2)).update
    assert second is not None
    assert fresh is not None
    assert digest(second.tensors) != digest(fresh.tensors)
    assert first.tensors.keys() == second.tensors.keys()


def test_running_statistics_belong_to_the_previous_model_and_are_not_gathered_by_it() -> None:
    from polyclinic.models.adaptations.representation_norms import FedBN

    model = convolutional(FedBN(), Moon())
    anchor, name = model.write(model.read()), "backbone.encoder.1.running_mean"
    memory = dict(Moon().settle(model.network, begun(), None))  # type: ignore[arg-type]
    assert f"{PREVIOUS}{name}" in memory
    memory[f"{PREVIOUS}{name}"] += 1.0
    pixels = torch.rand((4, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    started = begun(anchor=anchor, memory=memory, features=lambda given: model.network(given, features=True).detach())
    objective = Moon().build().objective(lambda m, b: b.output.sum(), started)
    with model.training():
        z = model.network(pixels, features=True)
        own = model.read_personal()
        given = Batch(pixels, z, torch.ones(3), torch.zeros(4))
        loss = objective(model.network, given)
        gathered = model.read_personal()
    assert loss.item() != 3.0
    # the stand-in for the global model gathers once more here; the previous one must not
    expected = 0.9 * own[name] + 0.1 * model.network.backbone.encoder[0](  # type: ignore[index,operator]
        model.network.backbone.normalised(pixels)
    ).mean(dim=(0, 2, 3))
    torch.testing.assert_close(gathered[name], expected)


def test_a_neck_that_changes_is_refused(tiny_vit: Path) -> None:
    with pytest.raises(StudyError, match="'moon' needs as it is"):
        studies.loads(study_text(tiny_vit, '[[adaptation]]\nmethod = "moon"\n[[adaptation]]\nmethod = "whiten"\n'))
