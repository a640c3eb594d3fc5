"""LoRA against W + s·B·A computed by hand, on every family of backbones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from polyclinic.core import study as studies
from polyclinic.core.errors import StudyError, UpdateError
from polyclinic.core.study import Study
from polyclinic.models.adaptations.parameter import Lora, lora_layers
from polyclinic.models.network import Adapted, build, plain
from tests.models.conftest import Save

FAMILIES = ["ViTModel", "Dinov2Model", "Dinov2WithRegistersModel"]
RANK, ALPHA = 3, 12.0
ROLES = {
    "attention": {"attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj"},
    "mlp": {"mlp.fc1", "mlp.fc2"},
}
ROLES["all"] = ROLES["attention"] | ROLES["mlp"]


def study_on(folder: Path, targets: str = "attention", seed: int = 0) -> Study:
    return studies.loads(
        f'[study]\nname = "x"\nseed = {seed}\n[data]\nimage_size = 32\n[backbone]\nreference = "hf:{folder}"\n'
        f'[[adaptation]]\nmethod = "lora"\nrank = {RANK}\nalpha = {ALPHA}\ntargets = "{targets}"'
    )


@pytest.fixture
def study(save: Save) -> Study:
    return study_on(save("ViTModel"))


def pixels() -> Tensor:
    return torch.rand((2, 3, 32, 32), generator=torch.Generator().manual_seed(1))


def drawn(adapted: Adapted, seed: int = 2) -> dict[str, np.ndarray]:
    """A global state in which nothing is zero."""
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0, 0.1, array.shape).astype(np.float32) for name, array in adapted.read().items()}


def outputs(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(pixels())
    return result


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("targets", ["attention", "mlp", "all"])
def test_targets_are_layers_by_their_role(name: str, targets: str, save: Save) -> None:
    adapted = build(study_on(save(name), targets))
    found = {layer for layer, _ in lora_layers(adapted.network)}
    stem = "backbone.encoder.layers" if name == "ViTModel" else "backbone.encoder.encoder.layer"
    assert found == {f"{stem}.{i}.{role}" for i in (0, 1) for role in ROLES[targets]}
    factors = {f"{layer}.lora_{factor}.default.weight" for layer in found for factor in "AB"}
    assert set(adapted.travelling) == factors | {"head.weight", "head.bias"}
    trains = {name for name, weight in adapted.network.named_parameters() if weight.requires_grad}
    assert trains == set(adapted.travelling)


@pytest.mark.parametrize("name", FAMILIES)
def test_it_starts_as_the_frozen_model_to_the_bit(name: str, save: Save) -> None:
    study = study_on(save(name), "all")
    assert torch.equal(outputs(build(study).network), outputs(plain(study)))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_output_is_that_of_w_plus_s_b_a(name: str, save: Save) -> None:
    study = study_on(save(name), "all")
    adapted, by_hand = build(study), plain(study)
    state = drawn(adapted)
    adapted.write(state)
    with torch.no_grad():
        for layer, _ in lora_layers(adapted.network):
            a, b = (state[f"{layer}.lora_{factor}.default.weight"].astype(np.float64) for factor in "AB")
            by_hand.get_submodule(layer).weight += torch.from_numpy(ALPHA / RANK * b @ a).float()
        by_hand.head.load_state_dict({key: torch.from_numpy(state[f"head.{key}"]) for key in ("weight", "bias")})
    torch.testing.assert_close(outputs(adapted.network), outputs(by_hand), rtol=1e-4, atol=1e-5)
    assert (outputs(by_hand) - outputs(plain(study))).abs().max() > 0.01


def test_only_the_product_of_the_factors_matters(study: Study) -> None:
    adapted = build(study)
    state = drawn(adapted)
    adapted.write(state)
    before = outputs(adapted.network)
    mix = np.linalg.qr(np.random.default_rng(0).normal(size=(RANK, RANK)))[0]  # B·A = (B·Q)·(Qᵀ·A)
    other = {
        name: (mix.T @ array if ".lora_A." in name else array @ mix if ".lora_B." in name else array).astype(np.float32)
        for name, array in state.items()
    }
    adapted.write(other)
    torch.testing.assert_close(outputs(adapted.network), before, rtol=1e-4, atol=1e-5)
    adapted.write({name: array * (".lora_A." not in name) for name, array in state.items()})
    without = outputs(adapted.network)
    adapted.write({name: array * (".lora_B." not in name) for name, array in state.items()})
    torch.testing.assert_close(outputs(adapted.network), without, rtol=0, atol=0)


def test_what_is_drawn_depends_on_the_study_seed_alone_and_leaves_the_global_generator_alone(save: Save) -> None:
    folder = save("ViTModel")
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = build(study_on(folder, seed=5)).read()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = build(study_on(folder, seed=5)).read(), build(study_on(folder, seed=6)).read()
    assert all(np.array_equal(one[name], again[name]) for name in one)
    differing = {name for name in one if not np.array_equal(one[name], other[name])}
    assert differing == {name for name in one if ".lora_A." in name or name == "head.weight"}
    a = np.concatenate([array.ravel() for name, array in one.items() if ".lora_A." in name])
    bound = 1 / np.sqrt(32)  # Kaiming's uniform with a = √5: ±√(6 / (1 + 5) / fan_in)
    assert np.abs(a).max() <= bound
    assert a.std() == pytest.approx(bound / np.sqrt(3), rel=0.1)


def test_a_backbone_without_such_layers_is_refused(study: Study) -> None:
    network = plain(study)
    for layer in network.backbone.encoder.layers:
        layer.mlp = torch.nn.Identity()
    with pytest.raises(StudyError, match=r"adaptation\.targets: .*no mlp layer.*choose other targets"):
        Lora(targets="mlp").build().fit_in(network, torch.Generator())
    assert Lora(targets="attention").layers(network)


def residuals(adapted: Adapted, scale: float = 0.05) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    return {
        f"{name}.residual": rng.normal(0, scale, tuple(layer.base_layer.weight.shape)).astype(np.float32)
        for name, layer in lora_layers(adapted.network)
    }


def frozen(adapted: Adapted) -> dict[str, Tensor]:
    return {name: layer.base_layer.weight.detach().clone() for name, layer in lora_layers(adapted.network)}


def test_residuals_are_added_scaled_and_taken_back_to_the_bit(study: Study) -> None:
    adapted = build(study)
    state, start = drawn(adapted), frozen(adapted)
    everything = {name: weight.clone() for name, weight in adapted.network.state_dict().items()}
    extra = residuals(adapted)
    adapted.write(state | extra)
    for name, weight in frozen(adapted).items():
        expected = start[name].double() + ALPHA / RANK * torch.from_numpy(extra[f"{name}.residual"]).double()
        torch.testing.assert_close(weight.double(), expected, rtol=0, atol=1e-6)
    once = frozen(adapted)
    adapted.write(state | extra)  # they do not accumulate
    assert all(torch.equal(weight, once[name]) for name, weight in frozen(adapted).items())
    first = next(iter(extra))
    adapted.write(state | {first: extra[first]})  # those that are gone are gone
    moved = {name for name, weight in frozen(adapted).items() if not torch.equal(weight, start[name])}
    assert moved == {first.removesuffix(".residual")}
    adapted.write(state)
    assert all(torch.equal(weight, start[name]) for name, weight in frozen(adapted).items())
    left = {name for name, weight in adapted.network.state_dict().items() if not torch.equal(weight, everything[name])}
    assert left <= set(adapted.travelling)


def test_residuals_never_travel_back_and_are_not_trained(study: Study) -> None:
    adapted = build(study)
    state = drawn(adapted)
    anchor = adapted.write(state | residuals(adapted))
    assert anchor.keys() == state.keys() == adapted.read().keys()


@pytest.mark.parametrize("shape", [(1,), (1, 1), (32, 1), (32, 33)])
def test_misshapen_residuals_are_refused_even_where_they_would_broadcast(study: Study, shape: tuple[int, ...]) -> None:
    adapted = build(study)
    name = next(iter(residuals(adapted)))
    with pytest.raises(UpdateError, match=r"q_proj\.residual: is misshapen"):
        adapted.write(drawn(adapted) | {name: np.ones(shape, np.float32)})


def test_a_state_that_is_not_the_studys_is_refused(study: Study) -> None:
    adapted = build(study)
    state = drawn(adapted)
    unknown = {"backbone.encoder.layernorm.weight": np.ones(32, np.float32)}
    with pytest.raises(UpdateError, match=r"layernorm\.weight: no adaptation of this study knows"):
        adapted.write(state | unknown)
    with pytest.raises(UpdateError, match=r"no adaptation.*knows"):
        adapted.write(state | {"backbone.nowhere.residual": np.ones((32, 32), np.float32)})
    with pytest.raises(UpdateError, match=r"head\.bias: is absent .*or misshapen"):
        adapted.write({name: array for name, array in state.items() if name != "head.bias"})
    with pytest.raises(UpdateError, match=r"head\.bias: .*misshapen"):
        adapted.write(state | {"head.bias": np.ones(2, np.float32)})


def test_explain_says_what_trains() -> None:
    assert Lora(rank=4, targets="all").explain().startswith("Low-rank factors of rank 4 train in every attention and M")
