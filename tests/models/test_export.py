"""What leaves a run loads with peft and transformers alone and gives the same outputs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from polyclinic.core import study as studies
from polyclinic.core.errors import RunError, StudyError
from polyclinic.core.runs import Run
from polyclinic.core.study import Study
from polyclinic.core.update import Tensors, Update
from polyclinic.models import export
from polyclinic.models.adaptations.parameter import RESIDUAL, factorise, lora_layers
from polyclinic.models.backbones import quiet
from polyclinic.models.network import build, plain
from polyclinic.simulations.export import export as export_run
from polyclinic.strategies.exact import ExactStrategy
from tests.models.conftest import Save

RANK, ALPHA = 2, 6.0
FAMILIES = ["ViTModel", "Dinov2Model", "Dinov2WithRegistersModel"]


def study_on(folder: Path, pooling: str = "cls+mean") -> Study:
    return studies.loads(
        f'[study]\nname = "x"\n[data]\nimage_size = 32\n[backbone]\nreference = "hf:{folder}"\npooling = "{pooling}"\n'
        f'[[adaptation]]\nmethod = "lora"\nrank = {RANK}\nalpha = {ALPHA}\ntargets = "all"\n'
        '[strategy]\nmethod = "exact"'
    )


def averaged(study: Study) -> tuple[Tensors, dict[str, np.ndarray]]:
    """(global state after a round of two sites under ``exact``, averaged product by layer in float64)."""
    adapted, strategy, rng = build(study), ExactStrategy(), np.random.default_rng(3)
    start = adapted.read()
    fold, weights, sent = strategy.init(start), (3, 5), []
    for i, weight in enumerate(weights):
        state = {name: rng.normal(0, 0.1, array.shape).astype(np.float32) for name, array in start.items()}
        sent.append(state)
        fold = strategy.add(fold, Update(f"site{i}", weight, state))
    products = {}
    for layer, _ in lora_layers(adapted.network):
        a, b = f"{layer}.lora_A.default.weight", f"{layer}.lora_B.default.weight"
        each = [weight * s[b].astype(np.float64) @ s[a] for weight, s in zip(weights, sent, strict=True)]
        products[layer] = sum(each) / sum(weights)
    return strategy.finish(fold), products


def pixels() -> Tensor:
    return torch.rand((3, 3, 32, 32), generator=torch.Generator().manual_seed(1))


def outputs(model: torch.nn.Module) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(pixels())
    return result


@pytest.mark.parametrize("name", FAMILIES)
def test_after_a_round_of_exact_the_weights_are_frozen_plus_averaged_products(name: str, save: Save) -> None:
    study = study_on(save(name))
    state, products = averaged(study)
    adapted, frozen = build(study), plain(study)
    adapted.write(state)
    for layer, module in lora_layers(adapted.network):
        effective = module.base_layer.weight.double() + module.get_delta_weight("default").double()
        expected = frozen.get_submodule(layer).weight.double() + ALPHA / RANK * torch.from_numpy(products[layer])
        torch.testing.assert_close(effective, expected, rtol=0, atol=1e-6)
    with torch.no_grad():
        for layer, product in products.items():
            frozen.get_submodule(layer).weight += torch.from_numpy(ALPHA / RANK * product).float()
        frozen.head.load_state_dict({key: torch.from_numpy(state[f"head.{key}"]) for key in ("weight", "bias")})
    torch.testing.assert_close(outputs(adapted.network), outputs(frozen), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_peft_alone_loads_the_adapter_of_an_exact_state(name: str, save: Save, tmp_path: Path) -> None:
    from peft import PeftModel

    study = study_on(save(name))
    state, _ = averaged(study)
    export.write_adapter(study, state, tmp_path, plain(study).backbone.sha256)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert config["r"] == RANK
    assert set(config["rank_pattern"]) == {name.removesuffix(RESIDUAL) for name in state if name.endswith(RESIDUAL)}
    assert min(config["rank_pattern"].values()) > RANK
    scales = [config["alpha_pattern"][layer] / rank for layer, rank in config["rank_pattern"].items()]
    np.testing.assert_allclose(scales, ALPHA / RANK)
    adapted = build(study)
    adapted.write(state)
    loaded = PeftModel.from_pretrained(plain(study), str(tmp_path)).eval()
    torch.testing.assert_close(outputs(loaded), outputs(adapted.network), rtol=0, atol=1e-5)
    assert (outputs(loaded) - outputs(plain(study))).abs().max() > 0.01


def readme_code(folder: Path) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    return str(code)


@pytest.fixture
def exported(tmp_path: Path, save: Save) -> Callable[[str, bool], tuple[Path, Tensor]]:
    """``exported(family, merged)`` → (folder that was exported, the outputs of the model that it came from)."""

    def carry_out(name: str, merged: bool) -> tuple[Path, Tensor]:
        study = study_on(save(name), "mean" if "Registers" in name else "cls+mean")
        state, _ = averaged(study)
        sha256 = export.write_adapter(study, state, tmp_path / "run" / "adapter", plain(study).backbone.sha256)
        (tmp_path / "run" / "summary.json").write_text(json.dumps({"adapter_sha256": sha256}))
        (tmp_path / "run" / "study.toml").write_text(study.toml())
        run = Run(tmp_path / "run")
        export_run(run, tmp_path / "out", merged=merged)
        adapted = build(study)
        adapted.write(state)
        return tmp_path / "out", outputs(adapted.network)

    return carry_out


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the README's json.load(open(…))
@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("merged", [True, False])
def test_the_readme_taken_literally_gives_the_same_logits(
    name: str, merged: bool, exported: Callable[[str, bool], tuple[Path, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, expected = exported(name, merged)
    assert not any(path.suffix in {".bin", ".pt", ".pkl"} for path in folder.iterdir())
    monkeypatch.chdir(folder)
    seen = {"pixels": pixels()}
    with torch.no_grad(), quiet():
        exec(compile(readme_code(folder), "README.md", "exec"), seen)
    torch.testing.assert_close(seen["logits"], expected, rtol=0, atol=1e-5)


def test_factors_are_split_without_loss_and_as_thin_as_can_be() -> None:
    rng = np.random.default_rng(0)
    product = rng.normal(size=(20, 5)) @ rng.normal(size=(5, 30))
    b, a = factorise(product)
    assert (b.shape, a.shape, b.dtype) == ((20, 5), (5, 30), np.float32)
    np.testing.assert_allclose(b.astype(np.float64) @ a, product, atol=1e-5)
    b, a = factorise(np.zeros((4, 6)))
    assert (b.shape, a.shape) == ((4, 1), (1, 6))
    assert not (b @ a).any()


def text(name: str, content: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / name).write_text(content)

    return write


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda folder: (folder / "polyclinic.json").unlink(), "holds no adapter"),
        (lambda folder: (folder / "adapter_config.json").unlink(), "holds no adapter"),
        (lambda folder: (folder / "adapter_model.safetensors").unlink(), "holds no adapter"),
        (text("polyclinic.json", "{}"), "holds no adapter"),
        (text("polyclinic.json", "[]"), "holds no adapter"),
        (text("polyclinic.json", "{"), "holds no adapter"),
        (text("adapter_config.json", "{"), "holds no adapter"),
        (text("adapter_model.safetensors", "weights"), "changed or damaged"),
    ],
)
def test_a_damaged_adapter_is_refused(damage: Callable[[Path], None], reason: str, save: Save, tmp_path: Path) -> None:
    study = study_on(save("ViTModel"))
    export.write_adapter(study, build(study).read(), tmp_path, plain(study).backbone.sha256)
    export.load_adapted(study, tmp_path)
    with pytest.raises(RunError, match="another study"):
        export.load_adapted(study.with_seed(9), tmp_path)
    damage(tmp_path)
    with pytest.raises(RunError, match=reason):
        export.load_adapted(study, tmp_path)


def test_another_backbone_than_the_runs_is_refused(save: Save, tmp_path: Path) -> None:
    study = studies.loads(
        f'[study]\nname = "x"\n[data]\nimage_size = 32\n[backbone]\nreference = "hf:{save("ViTModel")}"\n'
        '[[adaptation]]\nmethod = "lora"'
    )
    export.write_adapter(study, build(study).read(), tmp_path, "0" * 64)
    with pytest.raises(RunError, match="another backbone than the study now finds"):
        export.load_adapted(study, tmp_path)


def test_a_chain_that_makes_no_adapter_is_refused_when_the_study_is_read() -> None:
    with pytest.raises(StudyError, match="nothing in the chain makes an adapter"):
        studies.loads('[study]\nname = "x"\n[[adaptation]]\nmethod = "augment"')
