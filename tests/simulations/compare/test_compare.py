"""A comparison from study to page: what it refuses, what it does not do twice, and what it writes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from polyclinic.core import study as studies
from polyclinic.core.errors import RunError, StudyError
from polyclinic.core.study import Study
from polyclinic.simulations.centres import Centre, Scanner, write_centres
from polyclinic.simulations.compare import cells, compare, cost, plan
from polyclinic.simulations.compare.compare import Settings, Step
from tests.conftest import study_text
from tests.simulations.compare.budget import budget

__all__ = ["budget"]
QUICK = ("depth", "audit", "burden")
COST = {
    "step_mb": 3.0, "step_seconds": 0.01, "step_flops": 2e6, "inference_flops": 1e6, "frozen_flops": 1e6,
    "inference_seconds": 0.002, "frozen_seconds": 0.002, "latency": 1.0, "device": "CPU",
}  # fmt: skip


@pytest.fixture(scope="module")
def study(tiny_vit: Path) -> Study:
    task = '[task]\nmethod = "classification"\nclasses = ["normal", "lesion"]\n[[adaptation]]'
    return studies.loads(study_text(tiny_vit).replace("[[adaptation]]", task, 1).replace("count = 2", "count = 1"))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("centres")
    centres = [Centre("north", 40), Centre("south", 40, scanner=Scanner(gamma=1.5))]
    return write_centres(folder, centres, seed=1, size=32)


@pytest.mark.usefixtures("budget")
def test_all_axes_of_two_methods_and_two_seeds(
    study: Study, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "measure", lambda study, cohort: dict(COST))  # measured for itself elsewhere
    folder, steps = tmp_path / "all", list[Step]()
    variants = plan.named("lora,probe")
    found = compare.compare(study, manifest, variants, folder, Settings(seeds=2), steps.append)
    schema = json.loads(files("polyclinic.simulations.compare").joinpath("compare.schema.json").read_text("utf-8"))
    Draft202012Validator.check_schema(schema)
    Draft202012Validator(schema).validate(found)
    assert found == json.loads((folder / "compare.json").read_text())
    assert len(found["cells"]) == 2 * 2 * (1 + 3 + 2) == len(steps) - 1
    assert found["seeds"] == [3, 4]
    by_name = {row["name"]: row for row in found["variants"]}
    assert by_name["probe"]["depth"]["change"]["value"] == pytest.approx(0.0, abs=1e-9)
    assert by_name["lora"]["depth"]["change"]["value"] > 1e-7
    assert by_name["probe"]["audit"]["bytes"] == 4 * 65
    _check_merits(found, folder)
    page = (folder / "compare.html").read_text()
    assert page.count("<svg") > 15
    assert "://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert all(name in page for name in ("lora", "probe", "north", "Scanner shifts", "Impact assessment"))


def _check_merits(found: dict[str, Any], folder: Path) -> None:
    """The figures are those of the runs' summaries, averaged by hand."""
    for row in found["variants"]:
        by_seed = []
        for cell in found["cells"]:
            if cell["variant"] == row["name"] and cell["share"] == 1.0 and not cell["without"]:
                sites = json.loads((folder / cell["folder"] / "summary.json").read_text())["sites"]
                each = [sites[site]["metrics"]["test"]["auroc"]["value"] for site in found["sites"]]
                by_seed.append(sum(each) / len(each))
        assert len(by_seed) == 2
        assert row["merit"]["value"] == pytest.approx(sum(by_seed) / 2)
    for cell in found["cells"]:
        if cell["without"]:
            sites = json.loads((folder / cell["folder"] / "summary.json").read_text())["sites"]
            assert cell["without"] not in sites


def test_what_is_finished_is_not_done_again_and_more_may_be_asked_for(
    study: Study, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "again"
    compare.compare(study, manifest, plan.named("probe"), folder, Settings(seeds=1, axes=QUICK))
    before = {path: path.stat().st_mtime_ns for path in (folder / "cells").rglob("*")}
    with pytest.raises(RunError, match="holds a comparison already"):
        compare.compare(study, manifest, plan.named("probe"), folder, Settings(seeds=1, axes=QUICK))
    more = compare.compare(study, manifest, plan.named("probe,lora"), folder, Settings(1, axes=QUICK, resume=True))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    monkeypatch.setattr(cells, "simulate", None)  # would be called for whatever is not finished
    once_more = compare.compare(study, manifest, plan.named("probe,lora"), folder, Settings(1, axes=QUICK, resume=True))
    assert once_more == more
    assert "One seed cannot tell" in more["findings"][0]["text"]
    assert more["variants"][0]["merit"]["low"] is None


KILLED = """
import sys
from pathlib import Path
from polyclinic.core import study
from polyclinic.simulations.compare import plan
from polyclinic.simulations.compare.compare import Settings, compare
compare(study.load(sys.argv[1]), Path(sys.argv[2]), plan.named("probe,lora"), Path(sys.argv[3]),
        Settings(seeds=1, axes=("burden",), resume=Path(sys.argv[3]).exists()))
"""


def test_a_killed_comparison_goes_on_and_ends_alike(study: Study, manifest: Path, tmp_path: Path) -> None:
    text = tmp_path / "study.toml"
    text.write_text(study.toml().replace("count = 1", "count = 4"))
    folder, command = tmp_path / "killed", [sys.executable, "-c", KILLED, str(text), str(manifest)]
    process = subprocess.Popen([*command, str(folder)], stdout=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while not list(folder.glob("cells/*/rounds.jsonl")) and time.monotonic() < end:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (folder / "compare.json").exists()
    variants, quiet = plan.named("probe,lora"), Settings(seeds=1, axes=("burden",), resume=True)
    found = compare.compare(studies.load(text), manifest, variants, folder, quiet)
    whole = compare.compare(studies.load(text), manifest, variants, tmp_path / "whole", Settings(1, ("burden",)))
    assert found == whole


def test_refusals_come_before_anything_is_written(study: Study, manifest: Path, tmp_path: Path) -> None:
    folder = tmp_path / "none"

    def refused(variants: str, settings: Settings) -> str:
        with pytest.raises(StudyError) as caught:
            compare.compare(study, manifest, plan.named(variants), folder, settings)
        assert not folder.exists()
        return str(caught.value)

    many = refused("lora,probe", Settings(seeds=3, axes=("robustness",), most=10))
    assert "18 trainings, at most 10" in many
    assert "6 for 2 methods × 3 seeds" in many
    assert "12 for the axis 'robustness'" in many
    assert "--most 18" in many
    assert "did you mean 'lora'" in refused("lorra", Settings())
    assert "'probe' means that nothing but the head trains" in refused("probe+lora", Settings())
    assert "makes an adapter" in refused("fedprox", Settings(axes=()))
    assert "stands twice" in refused("lora,lora", Settings(axes=()))
    assert "nothing to compare" in refused(" , ", Settings(axes=()))
    assert "there is no axis 'deep'" in refused("lora", Settings(axes=("deep",)))
    shutil.copytree(manifest.parent, tmp_path / "other")
    with pytest.raises(RunError, match="something else than a comparison"):
        compare.compare(study, manifest, plan.named("lora"), tmp_path / "other", Settings(axes=()))
    with pytest.raises(RunError, match="no such comparison"):
        compare.compare(study, manifest, plan.named("lora"), folder, Settings(axes=(), resume=True))


def test_a_variant_replaces_what_adapts_and_keeps_the_rest(tiny_vit: Path) -> None:
    more = '[[adaptation]]\nmethod = "fedprox"\nmu = 0.5\n[[adaptation]]\nmethod = "augment"\n'
    text = study_text(tiny_vit) + more
    chained = studies.loads(text)
    changed = plan.applied(chained, plan.named("layernorm+fedprox")[0])
    assert [method.method for method in changed.adaptation] == ["layernorm", "fedprox", "augment"]
    assert changed.adaptation[1] != chained.adaptation[1]  # the variant's own settings, not the study's
    kept = plan.applied(chained, plan.named("probe")[0])
    assert kept.adaptation[1:] == chained.adaptation[1:]


@pytest.mark.usefixtures("budget")
def test_a_smaller_budget_takes_as_many_steps(study: Study) -> None:
    few = plan.budgeted(study, 0.05)
    assert few.training.epochs == 20
    assert few.adaptation[-1].model_dump() == {"method": "label_budget", "share": 0.05} | {
        key: value for key, value in few.adaptation[-1].model_dump().items() if key not in ("method", "share")
    }


def test_variants_from_a_file(tmp_path: Path, study: Study) -> None:
    path = tmp_path / "variants.toml"
    path.write_text('[[variant]]\nname = "lora 2"\n[[variant.adaptation]]\nmethod = "lora"\nrank = 2\n')
    (variant,) = plan.in_file(path)
    assert plan.applied(study, variant).adaptation[0].rank == 2  # type: ignore[attr-defined]
    for text, said in (
        ("[[variant]]\n", "'variant.0.name' is missing"),
        ('[[variants]]\nname = "a"', "did you mean 'variant'"),
        ("variant = 3", "variant"),
        ("not toml", "cannot be read"),
    ):
        path.write_text(text)
        with pytest.raises(StudyError, match=said):
            plan.in_file(path)
