"""Every command on the tiny study, as a stranger would call it."""

from __future__ import annotations

import json
import re
import shutil
from importlib.metadata import version
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save

from polyclinic.core import runs
from polyclinic.core import study as studies
from polyclinic.models.network import build
from tests.cli.conftest import Call, Said
from tests.conftest import write_images


def sha(folder: Path) -> str:
    return str(runs.read(folder).summary["adapter_sha256"])


def test_a_simulation_warns_tells_its_rounds_and_says_how_it_went(told: tuple[Said, runs.Run]) -> None:
    said, run = told
    lines = said.out.splitlines()
    assert not said.err
    assert "warning: site 'small': has 3 training images where a batch has 4 " in said.out
    assert "warning: site 'one_class': trains on one class only" in said.out
    assert lines.index(next(line for line in lines if line.startswith("round 1/2"))) > 1, "warnings come first"
    assert re.search(
        r"round 1/2: began from AUROC 0\.\d{3} pooled, 0\.\d{3} at worst \(\w+\); 5 sites, 0\.\d MB, ", said.out
    )
    assert "training 6 models for comparison\n" in said.out
    assert "  alone/north done" in said.out
    figure = run.summary["pooled"]["test"]["auroc"]
    assert f"Pooled AUROC on test images: {figure['value']:.3f} ({figure['low']:.3f}–{figure['high']:.3f})" in said.out
    worst = run.summary["worst_site"]
    assert f"Worst site: {worst['site']} with {worst['value']:.3f} (" in said.out
    means = [
        np.mean([run.summary["sites"][site][kind]["test"]["auroc"]["value"] for site in ("north", "south", "west")])
        for kind in ("metrics", "alone", "central")
    ]
    assert "federated {:.3f}, each site alone {:.3f}, all images in one place {:.3f}".format(*means) in said.out
    assert lines[-1] == f"Report:     {run.report.resolve()}"


def test_workers_change_nothing_and_a_seed_everything(
    polyclinic: Call, finished: runs.Run, study_file: Path, manifest: Path, tmp_path: Path
) -> None:
    two = polyclinic("simulate", study_file, "--data", manifest, "--run", tmp_path / "two", "--workers", 2)
    other = polyclinic("simulate", study_file, "--data", manifest, "--run", tmp_path / "other", "--seed", 4)
    assert two.code == other.code == 0
    assert sha(tmp_path / "two") == sha(finished.folder) != sha(tmp_path / "other")
    assert runs.read(tmp_path / "other").study.digest != finished.study.digest
    assert runs.read(tmp_path / "other").study.study.seed == 4


def test_a_run_is_not_overwritten_and_a_finished_one_resumes_to_itself(
    polyclinic: Call, finished: runs.Run, study_file: Path, manifest: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    call = ("simulate", study_file, "--data", manifest, "--run", folder)
    assert "--resume" in polyclinic(*call).complaint
    again = polyclinic(*call, "--resume", "--baselines")
    assert again.code == 0
    assert runs.read(folder).summary["sites"] == finished.summary["sites"]
    assert sha(folder) == sha(finished.folder)


def test_the_policy_says_what_is_withheld(
    polyclinic: Call, finished: runs.Run, study_file: Path, manifest: Path, tmp_path: Path
) -> None:
    rules = tmp_path / "policy.toml"
    rules.write_text("minimum_patients = 1\n")
    folder = tmp_path / "run"
    call = ("simulate", study_file, "--data", manifest, "--run", folder, "--policy", rules)
    assert polyclinic(*call).code == 0
    nll = [run.summary["sites"]["small"]["metrics"]["test"]["nll"]["value"] for run in (finished, runs.read(folder))]
    assert nll[0] is None
    assert nll[1] > 0
    rules.write_text("minimum_patient = 1\n")
    wrong = polyclinic("simulate", study_file, "--data", manifest, "--run", tmp_path / "no", "--policy", rules)
    assert "did you mean 'minimum_patients'" in wrong.complaint
    assert not (tmp_path / "no").exists()


def test_evaluate_judges_sites_that_took_no_part(polyclinic: Call, finished: runs.Run, tmp_path: Path) -> None:
    others = write_images(tmp_path, {"east": 60, "tiny": 6}, seed=9)
    call = ("evaluate", finished.folder, "--data", others)
    found = json.loads(polyclinic(*call, "--json").out)
    assert found["split"] == "test"
    assert found["sites"]["east"]["n"] == {"images": 15, "patients": 15}
    everything = json.loads(polyclinic(*call, "--json", "--split", "all").out)
    assert everything["sites"]["east"]["n"] == {"images": 60, "patients": 60}
    table = polyclinic(*call, "--split", "all").out
    auroc = everything["sites"]["east"]["metrics"]["auroc"]
    assert f"{auroc['value']:.3f} ({auroc['low']:.3f}–{auroc['high']:.3f})" in table
    assert "– tiny: fewer than 10 patients" in table
    assert "pooled" in table


def test_report_is_written_anew(polyclinic: Call, finished: runs.Run, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    (folder / "report.html").unlink()
    said = polyclinic("report", folder)
    assert said.out.strip() == str((folder / "report.html").resolve())
    assert (folder / "report.html").read_text().lower().startswith("<!doctype html>")


def test_export_writes_both_forms_and_never_over_something(
    polyclinic: Call, finished: runs.Run, tmp_path: Path
) -> None:
    for name, more in (("adapter", ()), ("model", ("--merged",))):
        said = polyclinic("export", finished.folder, tmp_path / name, *more)
        assert said.code == 0
        assert str(tmp_path / name) in said.out
        assert (tmp_path / name / "README.md").is_file()
        assert "exists already" in polyclinic("export", finished.folder, tmp_path / name, *more).complaint
    assert {path.name for path in tmp_path.iterdir()} == {"adapter", "model"}, "nothing half-written is left"


def test_a_new_private_study_is_sound_and_says_what_is_told_with_noise(polyclinic: Call, tmp_path: Path) -> None:
    path = tmp_path / "private.toml"
    assert polyclinic("study", "new", "--private", path).code == 0
    assert studies.load(path).privacy is not None
    said = polyclinic("study", "explain", path).out
    for name in ("incoming/val, in rounds 3, 6, 9 and at the end", "describe/kernel, once a run", "Counts of patients"):
        assert name in said
    assert "confusion counts" not in said
    path.write_text(path.read_text().replace("statistics_share = 1.0", "statistics_share = 0.0"))
    assert "No figure of the model" in polyclinic("study", "explain", path).out


def test_a_new_study_is_sound_and_explains_itself(polyclinic: Call, tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    assert "polyclinic study check" in polyclinic("study", "new", path).out
    assert "exists already" in polyclinic("study", "new", path).complaint
    digest = studies.load(path).digest
    assert digest in polyclinic("study", "check", path).out
    assert digest in polyclinic("study", "explain", path).out
    path.write_text(path.read_text().replace("learning_rate = 1e-3", "learning_rat = 1e-3"))
    assert "did you mean 'learning_rate'" in polyclinic("study", "check", path).complaint


def test_explain_counts_what_really_travels(polyclinic: Call, finished: runs.Run, study_file: Path) -> None:
    said = polyclinic("study", "explain", study_file).out
    written = load_file(finished.adapter / "adapter_model.safetensors")
    trained = sum(array.size for array in written.values())
    head = sum(array.size for name, array in written.items() if ".head." in name)
    assert f"Together {trained:,} of " in said
    assert f"{trained - head:,} in the backbone's adapters, {head:,} in the head" in said
    ours = {
        re.sub(r"(lora_[AB])\.", r"\1.default.", name.removeprefix("base_model.model.")): array
        for name, array in written.items()
    }  # peft's names are not ours: but for the header that they stand in, the bytes are the same
    assert f"What travels, as said above: {len(save(ours)):,} bytes a round." in said


def test_explain_says_what_is_personal_and_what_no_gradient_trains(
    polyclinic: Call, study_file: Path, tmp_path: Path
) -> None:
    path = tmp_path / "own.toml"
    more = "".join(f'[[adaptation]]\nmethod = "{name}"\n' for name in ("fedbn", "fedproto"))
    path.write_text(study_file.read_text().replace("[training]", f"{more}[training]"))
    said = polyclinic("study", "explain", path).out
    adapted = build(studies.load(path))
    own = sum(tensor.numel() for tensor in adapted.read_personal().values())
    assert f", {own:,} that stay at each site." in said
    assert f"travel {2 * 64 + 2:,} numbers that no gradient trains" in said  # two classes, width 64
    leaves, stays = said.split("What leaves a site")[1].split("What does not leave a site")
    assert "because of 'fedproto': of each class the mean features" in leaves
    assert "('fedbn'): scale and shift of every normalisation" in stays
    assert "fedbn" not in leaves


def test_explain_says_how_often_a_drawn_site_tells(polyclinic: Call, study_file: Path, tmp_path: Path) -> None:
    drawn = tmp_path / "drawn.toml"
    drawn.write_text(study_file.read_text().replace("count = 2", "count = 2\nsites_per_round = 2"))
    assert (
        "Once (anew while a site's has not arrived), how the training data are spread"
        in polyclinic("study", "explain", study_file).out
    )
    said = polyclinic("study", "explain", drawn).out
    assert "rounds with 2 drawn sites" in said
    assert "In every round with a site that has not told it, how the training data are spread" in said


def test_data_check_counts_and_names_problems(
    polyclinic: Call, study_file: Path, manifest: Path, tmp_path: Path
) -> None:
    good = polyclinic("data", "check", manifest, "--study", study_file)
    assert good.code == 0
    assert "north train: 24 images, 24 patients (0: 12, 1: 12)" in good.out
    bad = write_images(tmp_path, {"north": 24, "south": 24})
    bad.write_text(bad.read_text().replace("north-3.png,north,1", "north-3.png,north,maybe"))
    said = polyclinic("data", "check", bad, "--study", study_file)
    assert said.code == 1
    assert re.search(r"error: line 5, label: .*maybe", said.out)


def test_version(polyclinic: Call) -> None:
    assert polyclinic("--version").out == f"polyclinic {version('polyclinic')}\n"
