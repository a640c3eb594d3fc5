"""Segmentation and volumes, federated: pictures and phantoms of known truth, from files to figures and report."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from jsonschema import Draft202012Validator
from monai.metrics import compute_dice
from PIL import Image

from polyclinic.client.data.dataset import SiteData
from polyclinic.client.data.manifest import read_manifest, sites
from polyclinic.client.policy import Policy
from polyclinic.client.respond import Site, Workbench, respond
from polyclinic.core import study as studies
from polyclinic.core.messages import Instruction
from polyclinic.core.statistics.segmented import Segmented
from polyclinic.core.statistics.segmented_figures import figures
from polyclinic.core.study import Study
from polyclinic.core.update import Tensors, Update, digest
from polyclinic.core.version import VERSION
from polyclinic.models import backbones, network
from polyclinic.server import rounds
from polyclinic.simulations.explain import explain
from polyclinic.simulations.simulate import Options, simulate
from polyclinic.strategies.mean import MeanStrategy
from tests.models.deep import deep
from tests.server.test_schemas import schema

COLUMNS = ("path", "site", "label", "split", "patient_id", "mask")
SPACING = np.array([3.0, 1.5, 1.5])
"""mm between the voxels of a phantom along D, H, W."""


def manifest(folder: Path, names: dict[str, int], write) -> Path:
    """``names[site]`` patients a site; ``write(stem, i)`` → (image, mask)."""
    with (folder / "manifest.csv").open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(COLUMNS)
        for site, patients in names.items():
            for i in range(patients):
                split = "train" if i < patients * 0.5 else "val" if i < patients * 0.75 else "test"
                image, mask = write(f"{site}-{i}", i)
                writer.writerow([image, site, i % 2, split, f"p{i}", mask])
    return folder / "manifest.csv"


def discs(folder: Path, names: dict[str, int]) -> Path:
    """A bright disc on noise; its mask is 0 and 255."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.mgrid[:40, :32], axis=-1)

    def write(stem: str, i: int) -> tuple[str, str]:
        disc = np.linalg.norm(grid - rng.uniform((12, 10), (28, 22)), axis=-1) < rng.uniform(5, 9)
        picture = (60 + 120 * disc + rng.normal(0, 15, disc.shape)).clip(0, 255)
        Image.fromarray(picture.astype(np.uint8)).save(folder / f"{stem}.png")
        Image.fromarray(disc.astype(np.uint8) * 255).save(folder / f"{stem}-m.png")
        return f"{stem}.png", f"{stem}-m.png"

    return manifest(folder, names, write)


def balls(folder: Path, names: dict[str, int]) -> Path:
    """A bright ball of known radius in mm, in a volume of 8 × 16 × 16 voxels; large where the label is 1."""
    rng = np.random.default_rng(1)
    grid = np.stack(np.mgrid[:8, :16, :16], axis=-1) * SPACING

    def write(stem: str, i: int) -> tuple[str, str]:
        ball = np.linalg.norm(grid - rng.uniform((10, 9, 9), (13, 14, 14)), axis=-1) < radius(i)
        scan = (100 + 600 * ball + rng.normal(0, 60, ball.shape)).astype(np.int16)
        affine = np.diag([-SPACING[2], -SPACING[1], SPACING[0], 1.0])
        for values, name in ((scan, f"{stem}.nii"), (ball.astype(np.uint8), f"{stem}-m.nii")):
            nibabel.Nifti1Image(values.T, affine).to_filename(folder / name)
        return f"{stem}.nii", f"{stem}-m.nii"

    return manifest(folder, names, write)


def radius(i: int) -> float:
    return 5.0 + 3.0 * (i % 2)


def flat_study(vit: Path, extra: str = "") -> Study:
    return studies.loads(
        f'[study]\nname = "discs"\nseed = 3\n[data]\nimage_size = 32\ncolour = "grey"\n[backbone]\nreference = '
        f'"file:{vit}"\n[task]\nmethod = "segmentation"\nclasses = ["disc"]\nvalues = "any"\n{extra}'
        '[[adaptation]]\nmethod = "lora"\nrank = 2\n[[adaptation]]\nmethod = "augment"\nflip = true\n'
        "[training]\nlearning_rate = 1e-2\nbatch_size = 4\nepochs = 2\n[rounds]\ncount = 2\n"
    )


def deep_study(task: str) -> Study:
    return studies.loads(
        '[study]\nname = "balls"\nseed = 3\n[data]\nimage_size = 16\nvolume = "whole"\ndepth = 8\n'
        'intensity = {low = 0.0, high = 800.0}\n[backbone]\nreference = "test:deep"\npooling = "mean"\n'
        f'[task]\n{task}\n[[adaptation]]\nmethod = "probe"\n[[adaptation]]\nmethod = "augment"\n'
        "[training]\nlearning_rate = 1e-2\nbatch_size = 4\nepochs = 5\n[rounds]\ncount = 2\n"
    )


def federated(study: Study, path: Path) -> tuple[Workbench, list[Site], Tensors, list[Tensors]]:
    """(workbench, sites, last state, all states) of the study's rounds at two sites, by ``respond`` alone."""
    bench, strategy, task = Workbench(study, torch.device("cpu")), MeanStrategy(), network.task(study)
    groups = sites(read_manifest(path, study.data, task, study.study.seed))
    members = [
        Site(name, SiteData(name, rows, study.data, task), Policy(minimum_patients=2)) for name, rows in groups.items()
    ]
    state = bench.adapted.read()
    states = [state]
    for number in range(1, study.rounds.count + 1):
        fold = strategy.init(state)
        for site in members:
            reply = respond(bench, site, asked(study, state, number, fit=True))
            assert reply.update is not None
            strategy.expects(state).check(reply.update.tensors)
            fold = strategy.add(fold, Update(site.name, reply.update.weight, reply.update.tensors))
        state = strategy.finish(fold)
        states.append(state)
    return bench, members, state, states


def asked(study: Study, state: Tensors, number: int, *, fit: bool) -> Instruction:
    splits = ("val",) if fit else ("val", "test")
    return Instruction(study.digest, "run", number, f"{number}", digest(state), fit, splits, True, VERSION, state)


def judged(bench: Workbench, members: list[Site], state: Tensors) -> tuple[Segmented, dict[str, float]]:
    """(pooled outcome on validation images, Dice of each site by the model itself, one image at a time)."""
    blanks, truth = rounds.blanks(bench.study), {}
    total = blanks["incoming/val"]
    for site in members:
        reply = respond(bench, site, asked(bench.study, state, 9, fit=False))
        for name, told in reply.statistics.items():
            assert (blanks[name] + told).patients == told.patients  # what the server merges with
        total = total + reply.statistics["incoming/val"]
        images = site.data.images("val")
        bench.adapted.write(state)
        values = []
        for pixels, mask in zip(images.pixels, images.targets, strict=True):
            with torch.no_grad():
                guess = bench.adapted.network(torch.from_numpy(pixels[None]).float() / 255).argmax(dim=1)
            kept = torch.from_numpy(mask != 255)
            one, two = (guess[0] == 1) & kept, torch.from_numpy(mask == 1)
            values.append(float(compute_dice(one[None, None], two[None, None])))
        truth[site.name] = float(np.mean(values))
    return total, truth


def test_two_rounds_on_pictures(tiny_vit: Path, tmp_path: Path) -> None:
    study = flat_study(tiny_vit)
    bench, members, state, states = federated(study, discs(tmp_path, {"north": 16, "south": 16}))
    assert any(name.startswith("head.join") for name in state)
    assert any("lora" in name for name in state)
    assert all(not np.array_equal(state[name], states[0][name]) for name in state)
    outcome, truth = judged(bench, members, state)
    found = figures(outcome, None)
    assert found["dice"].value == pytest.approx(np.mean(list(truth.values())), abs=1e-5)
    assert found["dice"].value > 0.5
    again = federated(study, tmp_path / "manifest.csv")[2]
    assert digest(again) == digest(state)


def test_windows_train_and_judge_whole_pictures(tiny_vit: Path, tmp_path: Path) -> None:
    text = flat_study(tiny_vit, "window = 32\n").toml().replace("image_size = 32", "image_size = 48")
    study = studies.loads(text)
    bench, members, state, _ = federated(study, discs(tmp_path, {"north": 8, "south": 8}))
    assert bench.adapted.network.backbone.encoder.config.image_size == 32
    images = members[0].data.images("val")
    assert images.targets.shape[1:] == (48, 48)
    reply = respond(bench, members[0], asked(study, state, 3, fit=False))
    told = reply.statistics["incoming/val"]
    assert told.pixels[0][[0, 2]].sum() == (images.targets == 1).sum()  # type: ignore[union-attr]


def test_two_rounds_on_volumes_of_known_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones, "load", deep)
    study = deep_study('method = "segmentation"\nclasses = ["ball"]\nunit = "mm"\ntolerance = 2.0')
    bench, members, state, _ = federated(study, balls(tmp_path, {"north": 16, "south": 16}))
    outcome, truth = judged(bench, members, state)
    found = figures(outcome, None)
    assert found["dice"].value == pytest.approx(np.mean(list(truth.values())), abs=1e-5)
    assert found["dice"].value > 0.6
    # 4 balls of either radius; a third of the depth of a ball's voxels is coarse
    expected = sum(4 / 3 * np.pi * radius(i) ** 3 for i in range(8))
    assert outcome.volume[0] / 2**28 == pytest.approx(expected, rel=0.1)
    rows = members[0].data.images("val")
    np.testing.assert_allclose(rows.spacing, np.tile(SPACING, (4, 1)))
    guesses = [
        bench.adapted.network(torch.from_numpy(site.data.images("val").pixels).float() / 255).argmax(dim=1) == 1
        for site in members
    ]
    voxels = float(sum(guess.sum() for guess in guesses)) * SPACING.prod()
    assert (outcome.volume[0] + outcome.excess[0]) / 2**28 == pytest.approx(voxels, rel=1e-6)
    bias = (voxels - outcome.volume[0] / 2**28) / (outcome.volume[0] / 2**28)
    assert found["volume_bias"].value == pytest.approx(bias, abs=1e-6)
    assert found["hd95"].value < 12.0


def test_volumes_are_classified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backbones, "load", deep)
    study = deep_study('method = "classification"')
    bench, members, state, _ = federated(study, balls(tmp_path, {"north": 16, "south": 16}))
    reply = respond(bench, members[0], asked(study, state, 3, fit=False))
    assert reply.statistics["incoming/val"].images == 4  # type: ignore[union-attr]
    assert reply.statistics["describe/features"].patients == 8  # type: ignore[union-attr]


def test_a_whole_run_leaves_figures_and_a_report(tiny_vit: Path, tmp_path: Path) -> None:
    study = flat_study(tiny_vit)
    path = discs(tmp_path, {"north": 16, "south": 16})
    run = simulate(study, path, tmp_path / "run", Options(baselines=True, policy=Policy(minimum_patients=2)))
    Draft202012Validator(schema("summary")).validate(run.summary)
    for record in run.rounds:
        Draft202012Validator(schema("round")).validate(record)
    assert run.summary["worst_site"]["metric"] == "dice"
    told = run.summary["sites"]["north"]
    assert told["metrics"]["test"]["dice"]["value"] > 0.3
    assert told["alone"]["test"]["hd95"]["value"] > 0
    assert told["shift"]["prevalence"] == [1.0]
    page = (tmp_path / "run" / "report.html").read_text()
    for said in ("Dice", "Surface Dice", "HD95", "Volume bias", "Lower limit of agreement", "disc: 100"):
        assert said in page
    words = "\n".join(line for lines in explain(study).values() for line in lines)
    assert "A light decoder trains" in words
    assert "surface Dice" in words
