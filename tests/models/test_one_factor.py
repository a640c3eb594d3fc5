"""FFA-LoRA, RoLoRA and FedSVD against products worked out by hand: what rests, what is common, and what noise does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyclinic.client.data.dataset import SiteData
from polyclinic.client.data.manifest import read_manifest, sites
from polyclinic.client.policy import Policy
from polyclinic.client.private.answer import Vault
from polyclinic.client.respond import Site, Workbench, respond
from polyclinic.core import study as studies
from polyclinic.core.errors import StudyError, UpdateError
from polyclinic.core.messages import Instruction
from polyclinic.core.study import Study
from polyclinic.core.update import Tensors, Update, digest
from polyclinic.core.version import VERSION
from polyclinic.models import network
from polyclinic.models.adaptations.injected import exact_draw
from polyclinic.models.adaptations.parameter import lora_layers
from polyclinic.models.export import form, write_adapter
from polyclinic.models.network import build, plain
from polyclinic.strategies.fedsvd import refactored

METHODS = ["ffa_lora", "rolora", "fedsvd"]
STRATEGY = {"fedsvd": '[strategy]\nmethod = "fedsvd"\n'}
PRIVATE = (
    '[privacy]\nnoise = 1.0\ndelta = 1e-3\nexpected = 6\ngenerator = "simulated"\npictures = 1\n'
    '[rounds]\nweight = "patients"\n'
)
LAYER = "backbone.encoder.layers.1.attention.v_proj"
A, B = ".lora_A.default.weight", ".lora_B.default.weight"
RANK, ALPHA = 3, 6.0


def study_of(vit: Path, method: str, *tables: str, more: str | None = None) -> Study:
    chain = "".join(
        f"[[adaptation]]\n{table}\n" for table in (f'method = "{method}"\nrank = {RANK}\nalpha = {ALPHA}', *tables)
    )
    return studies.loads(
        f'[study]\nname = "tiny"\nseed = 3\n[data]\nimage_size = 32\ncolour = "grey"\n'
        f'[backbone]\nreference = "file:{vit}"\n{chain}'
        "[training]\nlearning_rate = 5e-3\nbatch_size = 8\nsteps = 2\nweight_decay = 0.5\n"
        f"{STRATEGY.get(method, '') if more is None else more}"
    )


def members(study: Study, manifest: Path, folder: Path) -> list[Site]:
    task = network.task(study)
    groups = sites(read_manifest(manifest, study.data, task, study.study.seed))
    return [
        Site(name, SiteData(name, groups[name], study.data, task), Policy(), vault=Vault(folder / name))
        for name in ("north", "south", "west")
    ]


def sent(bench: Workbench, site: Site, state: Tensors, number: int) -> Update:
    """What a site makes of a global state in a round."""
    asked = Instruction(bench.study.digest, "run", number, site.name, digest(state), True, (), False, VERSION, state)
    try:
        update = respond(bench, site, asked).update
    finally:
        for account in bench._accounts.values():
            account.ledger.close()
        bench._accounts.clear()
    assert update is not None
    return update


def merged(bench: Workbench, state: Tensors, updates: list[Update]) -> Tensors:
    strategy: Any = bench.study.strategy.build()  # type: ignore[attr-defined]
    fold = strategy.init(state)
    for update in updates:
        strategy.expects(state).check(update.tensors)
        fold = strategy.add(fold, update)
    found: Tensors = strategy.finish(fold)
    return found


def product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray(b.astype(np.float64) @ a.astype(np.float64))


def factors(bench: Workbench, tensors: Tensors, state: Tensors) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Layer → (A, B) as a site has them that holds ``tensors``, given ``state``."""
    drawn = {f"{name}{A}": layer.lora_A["default"].weight for name, layer in lora_layers(bench.adapted.network)}
    whole = {name: weight.detach().numpy() for name, weight in drawn.items()} | dict(state) | dict(tensors)
    return {name.removesuffix(B): (whole[name.replace(B, A)], whole[name]) for name in whole if name.endswith(B)}


def away(state: Tensors) -> Tensors:
    """A global state with no B of zero."""
    rng = np.random.default_rng(2)
    return {
        name: array if name.endswith(A) else (array + rng.normal(0, 0.05, array.shape)).astype(np.float32)
        for name, array in state.items()
    }


@pytest.mark.parametrize("privacy", ["", PRIVATE], ids=["plain", "private"])
@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_the_merged_product_is_the_mean_of_the_sites_products(
    method: str, number: int, privacy: str, tiny_vit: Path, tiny_manifest: Path, tmp_path: Path
) -> None:
    study = study_of(tiny_vit, method, more=STRATEGY.get(method, "") + privacy)
    bench = Workbench(study, torch.device("cpu"))
    state = away(bench.adapted.read())
    updates = [sent(bench, site, state, number) for site in members(study, tiny_manifest, tmp_path)]
    after, weights = merged(bench, state, updates), np.array([update.weight for update in updates], np.float64)
    found = factors(bench, after, state)
    assert len(found) == 8
    for layer, (a, b) in found.items():
        each = np.stack([product(*factors(bench, update.tensors, state)[layer]) for update in updates])
        assert np.abs(each[0] - each[1]).max() > 1e-4  # sites differ
        expected = np.tensordot(weights / weights.sum(), each, axes=1)
        np.testing.assert_allclose(product(a, b), expected, rtol=0, atol=1e-6)


def test_lora_itself_is_wrong_about_the_mean_of_products(tiny_vit: Path, tiny_manifest: Path, tmp_path: Path) -> None:
    study = study_of(tiny_vit, "lora", more=PRIVATE)
    bench = Workbench(study, torch.device("cpu"))
    state = away(bench.adapted.read())
    updates = [sent(bench, site, state, 1) for site in members(study, tiny_manifest, tmp_path)]
    weights = np.array([update.weight for update in updates], np.float64)
    a, b = factors(bench, merged(bench, state, updates), state)[LAYER]
    each = np.stack([product(*factors(bench, update.tensors, state)[LAYER]) for update in updates])
    assert np.abs(product(a, b) - np.tensordot(weights / weights.sum(), each, axes=1)).max() > 1e-5


OPACUS = PRIVATE.replace("pictures", 'step = "opacus"\npictures')


@pytest.mark.parametrize("privacy", ["", PRIVATE, OPACUS], ids=["plain", "private", "opacus"])
@pytest.mark.parametrize(("number", "rests", "trains"), [(1, A, B), (2, B, A), (3, A, B)])
def test_the_factor_that_rests_keeps_its_bits_under_adamw_with_decay_and_so_does_its_mean(
    number: int, rests: str, trains: str, privacy: str, tiny_vit: Path, tiny_manifest: Path, tmp_path: Path
) -> None:
    study = study_of(tiny_vit, "rolora", more=privacy)
    bench = Workbench(study, torch.device("cpu"))
    state = away(bench.adapted.read())
    updates = [sent(bench, site, state, number) for site in members(study, tiny_manifest, tmp_path)]
    after = merged(bench, state, updates)
    for tensors in (*(update.tensors for update in updates), after):
        assert tensors.keys() == state.keys()
        for name, array in tensors.items():
            assert np.array_equal(array, state[name]) == name.endswith(rests), name
            assert name.endswith((rests, trains)) or name.startswith("head.")
    assert len(bench.adapted.parameters()) == len(state)  # all train again


@pytest.mark.parametrize("privacy", ["", PRIVATE], ids=["plain", "private"])
def test_an_error_within_a_round_leaves_nothing_at_rest(
    privacy: str, tiny_vit: Path, tiny_manifest: Path, tmp_path: Path
) -> None:
    study = study_of(tiny_vit, "rolora", more=privacy)
    bench = Workbench(study, torch.device("cpu"))
    trained = len(bench.adapted.parameters())

    def fails(*given: object, **more: object) -> None:
        raise UpdateError("a fault")

    bench.adapted.network.decide = fails  # type: ignore[assignment, method-assign]
    with pytest.raises(UpdateError, match="a fault"):
        sent(bench, members(study, tiny_manifest, tmp_path)[0], bench.adapted.read(), 1)
    assert len(bench.adapted.parameters()) == trained


def test_ffa_draws_a_from_the_seed_as_whole_numbers_within_kaimings_bound_and_sends_b_alone(tiny_vit: Path) -> None:
    study = study_of(tiny_vit, "ffa_lora")
    adapted = build(study)
    assert {name for name in adapted.read() if "lora" in name} == {f"{n}{B}" for n, _ in lora_layers(adapted.network)}
    again, other = build(study).network, build(study.with_seed(4)).network
    for name, layer in lora_layers(adapted.network):
        a = layer.lora_A["default"].weight
        assert not a.requires_grad
        whole = a.double() * 32**0.5 * 2**24
        torch.testing.assert_close(whole, whole.round(), rtol=0, atol=2.0)  # float32 keeps 24 bits of up to 25
        assert a.abs().max() <= 32**-0.5
        assert a.double().std() == pytest.approx((32 * 3) ** -0.5, rel=0.2)
        assert torch.equal(a, again.get_submodule(name).lora_A["default"].weight)
        assert not torch.equal(a, other.get_submodule(name).lora_A["default"].weight)
    first = next(lora_layers(adapted.network))[1].lora_A["default"].weight
    from polyclinic.core.seeds import derive

    generator = torch.Generator().manual_seed(derive(3, "adaptation"))
    assert torch.equal(first, exact_draw((RANK, 32), 32**-0.5, generator))


def test_fedsvd_starts_with_orthonormal_rows_that_no_site_sends_back(
    tiny_vit: Path, tiny_manifest: Path, tmp_path: Path
) -> None:
    study = study_of(tiny_vit, "fedsvd")
    bench = Workbench(study, torch.device("cpu"))
    state = bench.adapted.read()
    firsts = [array for name, array in state.items() if name.endswith(A)]
    for a in firsts:
        np.testing.assert_allclose(product(a.T, a), np.eye(RANK), atol=1e-6)
    assert not np.array_equal(firsts[0], firsts[1])
    site = members(study, tiny_manifest, tmp_path)[0]
    update = sent(bench, site, state, 1)
    assert update.tensors.keys() == {name for name in state if not name.endswith(A)}
    turned = {name: array[::-1].copy() if name.endswith(A) else array for name, array in state.items()}
    other = sent(bench, site, turned, 1)  # another machine's start: what the server says counts
    assert digest(other.tensors) != digest(update.tensors)
    after = merged(bench, state, [update])
    for name, array in after.items():
        if name.endswith(A):
            np.testing.assert_allclose(product(array.T, array), np.eye(RANK), atol=1e-6)
            assert not np.array_equal(array, state[name])


@given(
    shape=st.tuples(st.integers(1, 6), st.integers(0, 9), st.integers(0, 9)),
    seed=st.integers(0, 2**20),
    scale=st.sampled_from([1e-6, 1.0, 100.0]),
    deficient=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_factoring_anew_keeps_the_product_and_gives_its_singular_vectors(
    shape: tuple[int, int, int], seed: int, scale: float, deficient: bool
) -> None:
    rank, rng = shape[0], np.random.default_rng(seed)
    b, a = rng.normal(size=(rank + shape[1], rank)) * scale, rng.normal(size=(rank, rank + shape[2]))
    if deficient:
        b[:, 0] = b[:, -1]
    b, a = b.astype(np.float32), a.astype(np.float32)
    before = product(a, b)
    new_b, new_a = refactored(b, a)
    assert (new_b.shape, new_a.shape, new_b.dtype, new_a.dtype) == (b.shape, a.shape, np.float32, np.float32)
    size = float(np.linalg.norm(before, 2))
    np.testing.assert_allclose(product(new_a, new_b), before, rtol=0, atol=1e-6 * size)
    np.testing.assert_allclose(product(new_a.T, new_a), np.eye(rank), atol=1e-6)
    values = np.linalg.svd(before, compute_uv=False)[:rank]  # of the dense product, which ours never makes
    np.testing.assert_allclose(np.linalg.norm(new_b.astype(np.float64), axis=0), values, rtol=0, atol=1e-6 * size)
    assert (new_a[np.arange(rank), np.abs(new_a).argmax(axis=1)] > 0).all()
    again = refactored(b.copy(), a.copy())
    assert np.array_equal(again[0], new_b)
    assert np.array_equal(again[1], new_a)


def test_a_product_of_zero_keeps_its_factors() -> None:
    a, b = np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32), np.zeros((4, 2), np.float32)
    kept = refactored(b, a)
    assert kept[0] is b
    assert kept[1] is a


@pytest.mark.parametrize("method", METHODS)
def test_the_layer_is_its_equation_and_peft_alone_loads_it(method: str, tiny_vit: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    study = study_of(tiny_vit, method)
    bench = Workbench(study, torch.device("cpu"))
    state = away(bench.adapted.read())
    bench.adapted.write(state)
    layer: Any = bench.adapted.network.get_submodule(LAYER)
    weight, bias = (tensor.detach().double().numpy() for tensor in (layer.base_layer.weight, layer.base_layer.bias))
    seen = np.random.default_rng(0).normal(size=(5, 32)).astype(np.float32)
    expected = seen @ (weight + ALPHA / RANK * product(*factors(bench, state, state)[LAYER])).T + bias
    with torch.no_grad():
        np.testing.assert_allclose(layer(torch.from_numpy(seen)).numpy(), expected, rtol=1e-4, atol=2e-5)
    write_adapter(study, state, tmp_path, plain(study).backbone.sha256)
    assert form(tmp_path) == "peft"
    loaded = PeftModel.from_pretrained(plain(study), str(tmp_path)).eval()
    pixels = torch.rand((2, 1, 32, 32), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixels), bench.adapted.network(pixels), rtol=0, atol=1e-5)


def test_what_moon_remembers_stands_on_the_a_that_it_was_trained_beside(
    tiny_vit: Path, tiny_manifest: Path, tmp_path: Path
) -> None:
    study = study_of(tiny_vit, "fedsvd", 'method = "moon"')
    bench, site = Workbench(study, torch.device("cpu")), members(study, tiny_manifest, tmp_path)[0]
    state = bench.adapted.read()
    update = sent(bench, site, state, 1)
    kept = site.keep.before("run", 2)
    assert kept is not None
    for name in (name for name in state if not name.startswith("head.")):
        expected = state[name] if name.endswith(A) else update.tensors[name]
        assert np.array_equal(kept[f"memory/moon/previous/{name}"].numpy(), expected)


MEMORY = '[server_step]\nmethod = "momentum"\n'
SCAFFOLD = "[training]\nsteps = 2\noptimiser = 'sgd'\nmomentum = 0.0\nweight_decay = 0.0\nclip_norm = 'none'\n"


@pytest.mark.parametrize(
    ("chain", "more", "reason"),
    [
        (["rolora"], MEMORY, "'rolora' needs the plain mean over sites, and 'momentum'"),
        (["fedsvd"], STRATEGY["fedsvd"] + MEMORY, "server must take it as it is"),
        (["fedsvd"], "", "'mean' makes none"),
        (["fedsvd"], '[strategy]\nmethod = "exact"\n', "nothing in the chain trains both|'exact' makes none"),
        (["lora"], STRATEGY["fedsvd"], "an A that sites leave as it is, and nothing in the chain does"),
        (["ffa_lora"], STRATEGY["fedsvd"], "an A that sites leave as it is, and nothing in the chain does"),
        (["ffa_lora"], '[strategy]\nmethod = "exact"\n', "nothing in the chain trains both at once"),
        (["rolora"], '[strategy]\nmethod = "exact"\n', "nothing in the chain trains both at once"),
        (["ffa_lora", "lora"], "", "'ffa_lora' says which of LoRA's factors train, and 'lora' has factors, too"),
        (["conv_lora", "rolora"], "", "'rolora' says which of LoRA's factors train, and 'conv_lora' has"),
        (["rolora", "scaffold"], SCAFFOLD, "leave out 'rolora', under which weights rest in turn"),
        (["fedsvd", "scaffold"], STRATEGY["fedsvd"] + SCAFFOLD, "'fedsvd' makes something else of it"),
        (["fedsvd", "standardise"], STRATEGY["fedsvd"], "'fedsvd' makes something else of it"),
    ],
)
def test_what_would_not_hold_is_refused_when_the_study_is_read(chain: list[str], more: str, reason: str) -> None:
    tables = "".join(f'[[adaptation]]\nmethod = "{name}"\n' for name in chain)
    with pytest.raises(StudyError, match=reason):
        studies.loads(f'[study]\nname = "x"\n{tables}{more}')


def test_a_rank_beyond_a_layers_is_refused(tiny_vit: Path) -> None:
    study = studies.loads(
        f'[study]\nname = "x"\n[data]\nimage_size = 32\n[backbone]\nreference = "file:{tiny_vit}"\n'
        f'[[adaptation]]\nmethod = "fedsvd"\nrank = 40\n{STRATEGY["fedsvd"]}'
    )
    with pytest.raises(StudyError, match=r"adaptation\.rank: .*32 singular directions, not 40"):
        build(study)


OUT, INTO, INNER, ROUNDS, DRAWS = 12, 10, 4, 6, 1500
Draw = Callable[[int, int], np.ndarray]


def noised(method: str, a: np.ndarray, draw: Draw) -> np.ndarray:
    """B·A after rounds that add noise and nothing else, from B = 0."""
    b = np.zeros((OUT, INNER))
    for number in range(1, ROUNDS + 1):
        if method == "lora":
            b, a = b + draw(OUT, INNER), a + draw(INNER, INTO)
        elif method == "rolora" and number % 2 == 0:
            a = a + draw(INNER, INTO)
        else:
            b = b + draw(OUT, INNER)
        if method == "fedsvd":
            b, a = refactored(b, a)
    return b @ a


@pytest.mark.parametrize("noise", [0.02, 0.3])
@pytest.mark.parametrize("method", ["lora", *METHODS])
def test_what_noise_alone_makes_of_a_product_is_the_closed_form(method: str, noise: float) -> None:
    rng = np.random.default_rng(1)
    a = rng.uniform(-(INTO**-0.5), INTO**-0.5, (INNER, INTO))
    if method == "fedsvd":
        a = np.linalg.qr(a.T)[0].T
    errors = [(noised(method, a, lambda *shape: rng.normal(0, noise, shape)) ** 2).sum() for _ in range(DRAWS)]
    linear, crossed = ROUNDS * noise**2 * OUT * (a**2).sum(), ROUNDS**2 * noise**4 * OUT * INTO * INNER
    expected = {
        "lora": linear + crossed,
        "rolora": linear / 2 + crossed / 4,
        "ffa_lora": linear,
        "fedsvd": ROUNDS * noise**2 * OUT * INNER,
    }
    assert abs(np.mean(errors) - expected[method]) < 5 * np.std(errors) / DRAWS**0.5
    assert expected["ffa_lora"] < expected["lora"]
    assert expected["rolora"] < expected["lora"]


def test_noise_on_both_factors_of_a_product_that_was_learnt_multiplies() -> None:
    rng, noise, draws = np.random.default_rng(1), 0.3, 20_000
    a, b = rng.normal(0, 0.3, (INNER, INTO)), rng.normal(0, 0.3, (OUT, INNER))
    e, f = rng.normal(0, noise, (draws, OUT, INNER)), rng.normal(0, noise, (draws, INNER, INTO))
    both = (((b + e) @ (a + f) - b @ a) ** 2).sum(axis=(1, 2))
    alone = (((b + e) @ a - b @ a) ** 2).sum(axis=(1, 2))
    on_b, on_a = noise**2 * OUT * (a**2).sum(), noise**2 * INTO * (b**2).sum()
    crossed = noise**4 * OUT * INTO * INNER
    for found, expected in ((alone, on_b), (both, on_b + on_a + crossed)):
        assert abs(found.mean() - expected) < 5 * found.std() / draws**0.5
