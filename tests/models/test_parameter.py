"""Each parameter-efficient layer against its own equation in NumPy, and peft alone against what we save."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from polyclinic.core import study as studies
from polyclinic.core.errors import StudyError, UpdateError
from polyclinic.core.study import Study
from polyclinic.core.update import Tensors, Update
from polyclinic.models.adaptations.injected import exact_draw, wrapped
from polyclinic.models.adaptations.parameter import RESIDUAL
from polyclinic.models.adaptations.pissa import principal
from polyclinic.models.export import load_adapted, write_adapter
from polyclinic.models.network import build, plain
from polyclinic.strategies.exact import ExactStrategy

RANK, ALPHA = 3, 6.0
LAYER = "backbone.encoder.layers.1.attention.v_proj"
Get = Callable[[str], np.ndarray]


def study_of(vit: Path, *tables: str, more: str = "") -> Study:
    chain = "".join(f"[[adaptation]]\n{table}\n" for table in tables)
    return studies.loads(
        f'[study]\nname = "tiny"\nseed = 3\n[data]\nimage_size = 32\n[backbone]\nreference = "file:{vit}"\n'
        f"{chain}{more}"
    )


def drawn(start: Tensors, constant: Callable[[str], bool] = lambda name: False, seed: int = 2) -> dict[str, np.ndarray]:
    """A global state in which nothing is where it started."""
    rng = np.random.default_rng(seed)
    return {
        name: array if constant(name) else (array + rng.normal(0, 0.1, array.shape)).astype(np.float32)
        for name, array in start.items()
    }


def pixels() -> Tensor:
    return torch.rand((2, 3, 32, 32), generator=torch.Generator().manual_seed(1))


def outputs(model: nn.Module) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(pixels())
    return result


def dora(w: np.ndarray, get: Get) -> np.ndarray:
    moved = w + ALPHA / RANK * get("lora_B.default.weight") @ get("lora_A.default.weight")
    length = np.sqrt((moved**2).sum(axis=1, keepdims=True))
    return np.asarray(get("lora_magnitude_vector.default.weight")[:, None] * moved / length)


def loha(w: np.ndarray, get: Get) -> np.ndarray:
    one, other = (get(f"hada_w{i}_a.default") @ get(f"hada_w{i}_b.default") for i in (1, 2))
    return np.asarray(w + ALPHA / RANK * one * other)


def lokr(w: np.ndarray, get: Get) -> np.ndarray:
    second = get("lokr_w2_a.default") @ get("lokr_w2_b.default")
    return np.asarray(w + ALPHA / RANK * np.kron(get("lokr_w1.default"), second))


def oft(w: np.ndarray, get: Get) -> np.ndarray:
    """W·R with R = (I + Q)(I − Q)⁻¹ by blocks of 4, Q skew from its upper triangle."""
    blocks = get("oft_R.default.weight")
    turned = np.zeros((len(blocks) * 4,) * 2)
    for i, numbers in enumerate(blocks):
        q = np.zeros((4, 4))
        q[np.triu_indices(4, 1)] = numbers
        q -= q.T
        turned[4 * i : 4 * i + 4, 4 * i : 4 * i + 4] = (np.eye(4) + q) @ np.linalg.inv(np.eye(4) - q)
    np.testing.assert_allclose(turned @ turned.T, np.eye(len(turned)), atol=1e-9)
    return np.asarray(w @ turned)


EQUATIONS: dict[str, tuple[str, Callable[[np.ndarray, Get], np.ndarray]]] = {
    "lora": (
        f"rank = {RANK}\nalpha = {ALPHA}",
        lambda w, get: w + ALPHA / RANK * get("lora_B.default.weight") @ get("lora_A.default.weight"),
    ),
    "rslora": (
        f"rank = {RANK}\nalpha = {ALPHA}",
        lambda w, get: w + ALPHA / math.sqrt(RANK) * get("lora_B.default.weight") @ get("lora_A.default.weight"),
    ),
    "dora": (f"rank = {RANK}\nalpha = {ALPHA}", dora),
    "loha": (f"rank = {RANK}\nalpha = {ALPHA}", loha),
    "lokr": (f"rank = {RANK}\nalpha = {ALPHA}", lokr),
    "oft": ("block_size = 4", oft),
    "ia3": ("", lambda w, get: get("ia3_l.default").reshape(-1, 1) * w),
}


@pytest.mark.parametrize("method", EQUATIONS)
def test_the_layer_is_its_equation(method: str, tiny_vit: Path) -> None:
    knobs, equation = EQUATIONS[method]
    adapted = build(study_of(tiny_vit, f'method = "{method}"\n{knobs}'))
    state = drawn(adapted.read())
    adapted.write(state)
    layer = adapted.network.get_submodule(LAYER)
    start, bias = (tensor.detach().double().numpy() for tensor in (layer.base_layer.weight, layer.base_layer.bias))
    weight = equation(start, lambda name: state[f"{LAYER}.{name}"].astype(np.float64))
    if method == "ia3":
        bias = bias * state[f"{LAYER}.ia3_l.default"].ravel()
    seen = np.random.default_rng(0).normal(size=(5, 32)).astype(np.float32)
    with torch.no_grad():
        found = layer(torch.from_numpy(seen)).numpy()
    np.testing.assert_allclose(found, seen @ weight.T + bias, rtol=1e-4, atol=2e-5)


def test_vera_is_its_equation_and_every_layer_shares_the_projections(tiny_vit: Path) -> None:
    adapted = build(study_of(tiny_vit, 'method = "vera"\nrank = 6\ntargets = "all"'))
    state = drawn(adapted.read())
    adapted.write(state)
    layers = dict(wrapped(adapted.network))
    assert len({id(layer.vera_A) for layer in layers.values()}) == 1
    assert not any("vera_A" in name for name in adapted.travelling)
    layer = adapted.network.get_submodule("backbone.encoder.layers.0.mlp.fc1")
    a, b = (getattr(layer, f"vera_{name}")["default"].double().numpy() for name in "AB")
    assert (a.shape, b.shape) == ((6, 64), (64, 6))
    assert np.abs(a).max() <= math.sqrt(6 / 64)
    assert np.abs(b).max() <= 1.0
    outer, inner = (
        state[f"backbone.encoder.layers.0.mlp.fc1.vera_lambda_{name}.default"].astype(np.float64) for name in "bd"
    )
    weight = layer.base_layer.weight.detach().double().numpy()
    weight = weight + np.diag(outer) @ b[:64] @ np.diag(inner) @ a[:, :32]
    seen = np.random.default_rng(0).normal(size=(5, 32)).astype(np.float32)
    expected = seen @ weight.T + layer.base_layer.bias.detach().numpy()
    with torch.no_grad():
        np.testing.assert_allclose(layer(torch.from_numpy(seen)).numpy(), expected, rtol=1e-4, atol=2e-5)


def test_draws_for_all_sites_are_whole_numbers_scaled_once() -> None:
    found = exact_draw((50, 40), 0.3, torch.Generator().manual_seed(5))
    whole = torch.randint(-(2**24), 2**24 + 1, (50, 40), generator=torch.Generator().manual_seed(5)).numpy()
    assert np.array_equal(found.numpy(), (whole.astype(np.float64) * (0.3 / 2**24)).astype(np.float32))
    assert 0.29 < found.abs().max() <= 0.3


def test_layernorm_tuning_is_the_norm_with_other_numbers(tiny_vit: Path) -> None:
    study = study_of(tiny_vit, 'method = "layernorm"')
    adapted, by_hand = build(study), plain(study)
    state = drawn(adapted.read())
    adapted.write(state)
    named = {name.replace("ln_tuning_layers.default.", ""): torch.from_numpy(array) for name, array in state.items()}
    missing = by_hand.load_state_dict(named, strict=False)
    assert not missing.unexpected_keys
    torch.testing.assert_close(outputs(adapted.network), outputs(by_hand), rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", ["bitfit", "last_blocks", "full", "probe"])
def test_weights_of_the_backbone_itself_are_set_in_place(method: str, tiny_vit: Path) -> None:
    study = study_of(tiny_vit, f'method = "{method}"')
    adapted, by_hand = build(study), plain(study)
    state = drawn(adapted.read())
    adapted.write(state)
    by_hand.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()}, strict=False)
    assert torch.equal(outputs(adapted.network), outputs(by_hand))


def test_pissa_splits_a_layer_into_its_principal_part_and_the_rest(tiny_vit: Path) -> None:
    study = study_of(tiny_vit, f'method = "pissa"\nrank = {RANK}\nalpha = {ALPHA}')
    adapted, frozen = build(study), plain(study)
    for name, layer in wrapped(adapted.network):
        weight = frozen.get_submodule(name).weight.detach().double().numpy()
        rest = layer.base_layer.weight.detach().double().numpy()
        b, a = (layer.get_submodule(f"lora_{f}.default").weight.detach().double().numpy() for f in "BA")
        product = ALPHA / RANK * b @ a
        np.testing.assert_allclose(rest + product, weight, atol=1e-7)
        values = np.linalg.svd(weight, compute_uv=False)
        assert np.linalg.norm(rest, 2) == pytest.approx(values[RANK], rel=0.01)
        assert np.linalg.norm(product, 2) == pytest.approx(values[0], rel=0.01)


def test_the_principal_part_is_the_best_there_is_and_its_product_is_exact() -> None:
    weight = np.random.default_rng(0).normal(size=(30, 20))
    b, a = principal(weight, 5)
    u, s, vt = np.linalg.svd(weight)
    np.testing.assert_allclose(b @ a, u[:, :5] * s[:5] @ vt[:5], atol=1e-2 * s[0])
    forwards = sum(np.outer(b[:, i], a[i]) for i in range(5))
    backwards = sum(np.outer(b[:, i], a[i]) for i in reversed(range(5)))
    assert np.array_equal(forwards, backwards)
    assert np.array_equal(forwards, b @ a)
    nudged = principal(weight + 1e-13 * np.random.default_rng(1).normal(size=weight.shape), 5)  # another processor
    assert np.array_equal(nudged[0], b)
    assert np.array_equal(nudged[1], a)
    assert all(np.array_equal(factor.astype(np.float32), factor) for factor in (a, b))


def test_a_site_that_starts_pissa_from_other_numbers_refuses(tiny_vit: Path) -> None:
    study = study_of(tiny_vit, f'method = "pissa"\nrank = {RANK}')
    adapted = build(study)
    state = dict(adapted.read())
    assert "backbone.pissa_start" in state
    assert len(adapted.parameters()) == len(adapted.travelling) - 1
    other = state["backbone.pissa_start"].copy()
    other[0] = (other[0] + 1) % 256
    with pytest.raises(UpdateError, match=r"pissa_start: this machine works out other numbers"):
        adapted.write(state | {"backbone.pissa_start": other})
    with pytest.raises(StudyError, match=r"adaptation\.rank: .*32 singular directions, not 40"):
        build(study_of(tiny_vit, 'method = "pissa"\nrank = 40'))


@pytest.mark.parametrize("method", ["lora", "rslora", "pissa"])
def test_after_a_round_of_exact_peft_alone_loads_the_averaged_products(
    method: str, tiny_vit: Path, tmp_path: Path
) -> None:
    from peft import PeftModel

    more = '[strategy]\nmethod = "exact"\n'
    study = study_of(tiny_vit, f'method = "{method}"\nrank = {RANK}\nalpha = {ALPHA}', more=more)
    adapted, strategy = build(study), ExactStrategy()
    start = adapted.read()
    fold = strategy.init(start)
    sent = [drawn(start, adapted.chain.constant, seed) for seed in (1, 2)]
    for i, tensors in enumerate(sent):
        fold = strategy.add(fold, Update(f"s{i}", i + 1, tensors))
    state = strategy.finish(fold)
    assert any(name.endswith(RESIDUAL) for name in state)
    adapted.write(state)
    layer = adapted.network.get_submodule(LAYER)
    fresh = build(study).network.get_submodule(LAYER)
    a, b = f"{LAYER}.lora_A.default.weight", f"{LAYER}.lora_B.default.weight"
    product = sum((i + 1) / 3 * t[b].astype(np.float64) @ t[a] for i, t in enumerate(sent))
    expected = fresh.base_layer.weight.detach().double().numpy() + fresh.scaling["default"] * product
    found = layer.base_layer.weight + layer.get_delta_weight("default")
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=2e-6)
    write_adapter(study, state, tmp_path, plain(study).backbone.sha256)
    loaded = PeftModel.from_pretrained(plain(study), str(tmp_path)).eval()
    torch.testing.assert_close(outputs(loaded), outputs(adapted.network), rtol=0, atol=2e-5)


def test_two_adaptations_together_are_saved_in_our_own_form_and_load_back(tiny_vit: Path, tmp_path: Path) -> None:
    study = study_of(tiny_vit, 'method = "layernorm"', 'method = "lora"\ntargets = "all"')
    adapted = build(study)
    state = drawn(adapted.read())
    adapted.write(state)
    write_adapter(study, state, tmp_path, plain(study).backbone.sha256)
    assert json.loads((tmp_path / "polyclinic.json").read_text())["form"] == "polyclinic"
    assert not (tmp_path / "adapter_config.json").exists()
    assert torch.equal(outputs(load_adapted(study, tmp_path)), outputs(adapted.network))


@pytest.mark.parametrize(
    ("tables", "more", "reason"),
    [
        (('method = "lora"', 'method = "dora"'), "", "'lora' and 'dora' both change the backbone's linear layers"),
        (('method = "full"', 'method = "bitfit"'), "", "'full' and 'bitfit' both change the backbone's biases"),
        (('method = "layernorm"', 'method = "bitfit"'), "", "both change the backbone's norms"),
        (('method = "probe"', 'method = "lora"'), "", "'lora' trains more"),
        (('method = "dora"',), '[strategy]\nmethod = "exact"', "'exact' averages products of low-rank factors"),
        (('method = "loha"',), '[strategy]\nmethod = "exact"', "'exact' averages products of low-rank factors"),
    ],
)
def test_chains_that_make_no_sense_are_refused_when_the_study_is_read(
    tables: tuple[str, ...], more: str, reason: str, tiny_vit: Path
) -> None:
    with pytest.raises(StudyError, match=reason):
        study_of(tiny_vit, *tables, more=more)


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ('method = "oft"\nblock_size = 5', "no multiple of block_size 5"),
        ('method = "last_blocks"\ncount = 3', "has 2 blocks, not 3"),
    ],
)
def test_what_the_backbone_does_not_fit_is_refused_with_the_reason(table: str, reason: str, tiny_vit: Path) -> None:
    with pytest.raises(StudyError, match=reason):
        build(study_of(tiny_vit, table))


def test_a_damaged_state_of_our_own_form_is_refused(tiny_vit: Path, tmp_path: Path) -> None:
    from polyclinic.core.errors import RunError
    from polyclinic.core.update import encode

    study = study_of(tiny_vit, 'method = "bitfit"')
    write_adapter(study, {"head.bias": np.zeros(1, np.float32)}, tmp_path, plain(study).backbone.sha256)
    with pytest.raises(RunError, match=r"holds no adapter of this study: .*absent"):
        load_adapted(study, tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(encode({}))
    with pytest.raises(RunError, match="changed or damaged"):
        load_adapted(study, tmp_path)
