"""Normalisation kept at home, on a convolutional network: what stays, what travels, what is gathered."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from polyclinic.client.data.dataset import Images
from polyclinic.client.fit import fit, start
from polyclinic.core import study as studies
from polyclinic.core.errors import StudyError
from polyclinic.core.study import Study
from polyclinic.models.adaptations.own_weights import Full, Probe
from polyclinic.models.adaptations.representation_norms import FedBN, SiloBN
from polyclinic.models.network import Adapted, build
from polyclinic.models.tasks.classification import Classification
from tests.conftest import study_text
from tests.models.convolutional import WIDTH, adapted

AFFINE = {"backbone.encoder.1.weight", "backbone.encoder.1.bias"}
RUNNING = {"backbone.encoder.1.running_mean", "backbone.encoder.1.running_var"}
HEAD = {"head.weight", "head.bias"}
CONVOLUTIONS = {f"backbone.encoder.{i}.{name}" for i in (0, 3) for name in ("weight", "bias")}
COUNT, BATCH = 12, 4


def images() -> Images:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (COUNT, 1, 8, 8), dtype=np.uint8)
    return Images(pixels, rng.integers(0, 2, COUNT), tuple(f"p{i}" for i in range(COUNT)))


@pytest.fixture(scope="module")
def study(tiny_vit: Path) -> Study:
    """Of which only what training needs is looked at."""
    text = study_text(tiny_vit).replace("batch_size = 4", f"batch_size = {BATCH}\nepochs = 2")
    return studies.loads(text)


def trained(model: Adapted, study: Study, round_number: int = 1) -> Adapted:
    anchor = model.write(model.read(), model.read_personal())
    fit(model, Classification(), images(), study, "north", round_number, anchor)
    return model


@pytest.mark.parametrize(
    ("methods", "travels", "stays"),
    [
        ((FedBN(),), HEAD, AFFINE | RUNNING),
        ((SiloBN(),), HEAD | AFFINE, RUNNING),
        ((Full(), FedBN()), HEAD | CONVOLUTIONS, AFFINE | RUNNING),
        ((Full(), SiloBN()), HEAD | CONVOLUTIONS | AFFINE, RUNNING),
        ((Probe(),), HEAD, set()),
    ],
)
def test_what_travels_trains_and_stays(
    methods: tuple[object, ...], travels: set[str], stays: set[str], study: Study
) -> None:
    model = adapted(*methods)
    before = {name: value.clone() for name, value in model.network.state_dict().items()}
    assert set(model.travelling) == travels
    assert set(model.personal) == stays
    trained(model, study)
    after = model.network.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved - {"backbone.encoder.1.num_batches_tracked"} == travels | stays
    assert set(model.read()) == travels
    assert not any(module.training for module in model.network.backbone.encoder.modules())


def test_running_statistics_are_the_exponential_means_of_the_batches(study: Study) -> None:
    """m ← 0.9·m + 0.1·batch's, in NumPy; the convolution before the norm is frozen, so all follow from the pixels."""
    model = adapted(FedBN())
    seen: list[np.ndarray] = []
    model.network.backbone.encoder[1].register_forward_pre_hook(  # type: ignore[operator,index]
        lambda module, given: seen.append(given[0].detach().double().numpy()) if module.training else None
    )
    trained(model, study)
    mean, variance = np.zeros(WIDTH), np.ones(WIDTH)
    assert len(seen) == 2 * COUNT / BATCH
    for batch in seen:
        mean = 0.9 * mean + 0.1 * batch.mean(axis=(0, 2, 3))
        variance = 0.9 * variance + 0.1 * batch.var(axis=(0, 2, 3), ddof=1)
    own = model.read_personal()
    np.testing.assert_allclose(own["backbone.encoder.1.running_mean"], mean, rtol=1e-5)
    np.testing.assert_allclose(own["backbone.encoder.1.running_var"], variance, rtol=1e-5)


def test_the_global_models_outputs_neither_gather_nor_move_while_a_site_trains(study: Study) -> None:
    model = adapted(FedBN())
    anchor = model.write(model.read())
    begun = start(model, Classification(), images(), study.training, anchor, {}, None, torch.Generator())
    pixels = torch.rand((5, 1, 8, 8), generator=torch.Generator().manual_seed(1))
    expected = model.network.eval()(pixels)
    with model.training():
        own = model.read_personal()
        torch.testing.assert_close(begun.forward(pixels), expected, rtol=0, atol=0)
        assert all(torch.equal(value, own[name]) for name, value in model.read_personal().items())
        assert model.network.backbone.encoder[1].training  # type: ignore[index]
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(1.0)
        torch.testing.assert_close(begun.forward(pixels), expected, rtol=0, atol=0)
        torch.testing.assert_close(begun.forward(pixels[:1]), expected[:1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "norm",
    [nn.GroupNorm(2, WIDTH), nn.LayerNorm((WIDTH, 6, 6)), nn.RMSNorm((WIDTH, 6, 6)),
     nn.InstanceNorm2d(WIDTH, affine=True), nn.InstanceNorm2d(WIDTH, affine=True, track_running_stats=True)],
)  # fmt: skip
def test_normalisations_of_every_kind_stay_at_home(norm: nn.Module, study: Study) -> None:
    model = adapted(FedBN(), norm=norm)
    floating = {name for name, tensor in norm.state_dict().items() if tensor.is_floating_point()}
    assert set(model.personal) == {f"backbone.encoder.1.{name}" for name in floating}
    before = model.read_personal()
    after = trained(model, study).read_personal()
    assert not [name for name in before if torch.equal(before[name], after[name])]


@pytest.mark.parametrize("method", [SiloBN(), FedBN()])
def test_a_backbone_that_has_none_is_refused(method: object) -> None:
    with pytest.raises(StudyError, match=r"has no .*normalisation to keep at home"):
        adapted(method, norm=nn.Identity())


def test_a_vit_has_no_batch_normalisation(tiny_vit: Path) -> None:
    with pytest.raises(StudyError, match="no batch normalisation to keep"):
        build(studies.loads(study_text(tiny_vit, '[[adaptation]]\nmethod = "silobn"\n')))


@pytest.mark.parametrize(("one", "other", "why"), [
    ("fedbn", "layernorm", "'fedbn' keeps the backbone's norms at each site, and 'layernorm'"),
    ("layernorm", "fedbn", "'fedbn' keeps the backbone's norms at each site, and 'layernorm'"),
    ("fedbn", "silobn", "running statistics"),
])  # fmt: skip
def test_combinations_of_which_nothing_would_travel_are_refused(one: str, other: str, why: str, tiny_vit: Path) -> None:
    chained = "".join(f'[[adaptation]]\nmethod = "{name}"\n' for name in (one, other))
    with pytest.raises(StudyError, match=re.escape(why)):
        studies.loads(study_text(tiny_vit, chained))


@pytest.mark.parametrize("other", ["bitfit", "last_blocks", "full"])
def test_beside_methods_that_train_more_the_norms_stay(other: str, tiny_vit: Path) -> None:
    lora = '[[adaptation]]\nmethod = "lora"\nrank = 2\nalpha = 4\n'
    text = study_text(tiny_vit, f'[[adaptation]]\nmethod = "fedbn"\n[[adaptation]]\nmethod = "{other}"\n')
    model = build(studies.loads(text.replace(lora, "")))
    assert not [name for name in model.travelling if "layernorm" in name]
    assert len([name for name in model.personal if "layernorm" in name]) == 10  # of two blocks, and the last
