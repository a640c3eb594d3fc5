"""What is exported loads as its own README says, and gives the outputs of the run's model."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from polyclinic.core import study as studies
from polyclinic.core.errors import RunError
from polyclinic.core.runs import Run
from polyclinic.models.export import load_adapted
from polyclinic.simulations.export import export
from polyclinic.simulations.simulate import Options, simulate
from tests.conftest import study_text

POOLINGS = ("cls", "mean", "cls+mean")
BITFIT = "cls+mean, bitfit"


@pytest.fixture(scope="module", params=(*POOLINGS, BITFIT))
def run(
    request: pytest.FixtureRequest, tiny_vit: Path, tiny_manifest: Path, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    pooling, _, own = request.param.partition(", ")
    text = study_text(tiny_vit).replace("[[adaptation]]", f'pooling = "{pooling}"\n[[adaptation]]', 1)
    if own:
        text = text.replace('method = "lora"\nrank = 2\nalpha = 4\n', f'method = "{own}"\n')
    text = text.replace("count = 2", "count = 1")
    return simulate(studies.loads(text), tiny_manifest, tmp_path_factory.mktemp("export") / "run", Options())


def readme_says(folder: Path, pixels: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """``logits`` after the README's code was run, as it stands, in the folder."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {"pixels": pixels}
    with torch.no_grad():
        exec(code, names)
    logits: torch.Tensor = names["logits"]
    return logits


@pytest.mark.parametrize("merged", [False, True], ids=["adapter", "merged"])
def test_the_readme_gives_the_run_s_outputs(
    merged: bool,
    run: Run,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "new" / "place"
    export(run, folder, merged=merged)
    pixels = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = load_adapted(run.study, run.adapter)(pixels)
    found = readme_says(folder, pixels, monkeypatch)
    assert "MISSING" not in capsys.readouterr().err, "transformers makes up weights that the model never had"
    assert found.shape == expected.shape == (5, 1)
    assert (found - expected).abs().max() < 1e-5
    assert run.study.digest in (folder / "README.md").read_text()
    assert studies.load(folder / "study.toml") == run.study
    assert not [path for path in folder.rglob("*") if path.suffix in (".bin", ".pt", ".pkl")], "safetensors only"


def test_a_half_written_export_leaves_nothing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("polyclinic.simulations.export.write_merged", full)
    with pytest.raises(RunError, match="No space left"):
        export(run, tmp_path / "out", merged=True)
    assert list(tmp_path.iterdir()) == []
