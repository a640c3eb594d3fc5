"""A whole federation of detectors: it finds what there is to find, keeps every contract, and its report shows it."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from jsonschema import Draft202012Validator
from PIL import Image

from polyclinic.cli.result import sentences
from polyclinic.client.data.dataset import SiteData
from polyclinic.client.data.manifest import read_manifest, sites
from polyclinic.client.policy import Policy
from polyclinic.client.respond import Site, Workbench, respond
from polyclinic.core import study as studies
from polyclinic.core.messages import Instruction
from polyclinic.core.runs import Run
from polyclinic.core.statistics.detected import Detected
from polyclinic.core.statistics.monoid import Withheld
from polyclinic.core.study import Study
from polyclinic.core.update import Update, digest
from polyclinic.core.version import VERSION
from polyclinic.models import network
from polyclinic.models.export import load_adapted
from polyclinic.simulations.simulate import Options, simulate
from polyclinic.strategies.mean import MeanStrategy
from tests.models.coco import coco, mean_precision
from tests.models.discs import CLASSES, disc_study, write_discs

AUGMENTED = 'method = "full"\n[[adaptation]]\nmethod = "augment"\nflip = true\nrotate = 10'


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_discs(tmp_path_factory.mktemp("discs"), {"north": 110, "south": 140})


@pytest.fixture(scope="module")
def study(tiny_vit: Path) -> Study:
    return studies.loads(disc_study(tiny_vit, 3, "epochs = 15"))


@pytest.fixture(scope="module")
def finished(study: Study, manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    options = Options(baselines=True, policy=Policy(minimum_patients=5))
    return simulate(study, manifest, tmp_path_factory.mktemp("run") / "one", options)


def test_it_learns_to_find_discs(finished: Run) -> None:
    before = finished.rounds[0]["pooled"]["incoming"]["map50"]["value"]
    after = finished.summary["pooled"]["test"]
    assert before < 0.05
    assert after["map50"]["value"] > 0.85
    assert after["sensitivity"]["value"] > 0.85
    assert after["map50"]["low"] < after["map50"]["value"] < after["map50"]["high"]


def test_its_files_keep_the_contract(finished: Run) -> None:
    for name, documents in (("summary", [finished.summary]), ("round", finished.rounds)):
        schema = json.loads(files("polyclinic.server").joinpath(f"{name}.schema.json").read_text("utf-8"))
        for document in documents:
            Draft202012Validator(schema).validate(document)
    assert finished.summary["worst_site"]["metric"] == "map50"
    south = finished.summary["sites"]["south"]
    assert south["alone"]["test"].keys() == south["metrics"]["test"].keys()
    assert len(south["shift"]["prevalence"]) == len(CLASSES)


def test_the_figures_are_those_of_pycocotools_on_what_the_saved_model_finds(finished: Run, manifest: Path) -> None:
    study = finished.study
    model, task = load_adapted(study, finished.adapter), study.task
    truths, found, scores = [], [], []
    lines = [line.split(",") for line in (manifest.parent / "boxes.csv").read_text().splitlines()[1:]]
    for name, _, split, _ in (line.split(",") for line in manifest.read_text().splitlines()[1:]):
        if split == "test":
            pixels = np.array(Image.open(manifest.parent / name))[None, None] / np.float32(255)
            with torch.no_grad():
                boxes, kinds, sure = task.detect(model(torch.from_numpy(pixels)).numpy())  # type: ignore[attr-defined]
            real = kinds[0] >= 0
            found.append([(int(kind), *box) for kind, box in zip(kinds[0][real], boxes[0][real] * 32, strict=True)])
            scores.append(sure[0][real].tolist())
            truths.append([(CLASSES.index(row[1]), *map(float, row[2:])) for row in lines if row[0] == name])
    judge, told = coco(truths, found, scores, 2), finished.summary["pooled"]["test"]
    assert told["map50"]["value"] == pytest.approx(mean_precision(judge, 1), abs=told["map50"]["bound"] + 1e-6)
    assert told["map"]["value"] == pytest.approx(mean_precision(judge), abs=told["map"]["bound"] + 1e-6)


def test_the_report_and_the_terminal_show_them(finished: Run) -> None:
    page = finished.report.read_text("utf-8")
    value = f"{finished.summary['pooled']['test']['map50']['value']:.3f}"
    text = re.sub(r"<[^>]+>", " ", page)
    assert value in text
    for name in (
        "mAP at IoU 0.5",
        "mAP over IoU 0.5 to 0.95",
        "Sensitivity at 1 false positive an image",
        "FROC score",
    ):
        assert name in text
    assert "the score that the model gives to a box" in text
    said = list(sentences(finished.summary))
    assert said[0].startswith(f"Pooled mAP at IoU 0.5 on test images: {value}")


def test_the_same_study_gives_the_same_bits_with_two_workers(study: Study, manifest: Path, tmp_path: Path) -> None:
    quick = study.model_copy(update={"training": study.training.model_copy(update={"epochs": 1})})
    runs = [simulate(quick, manifest, tmp_path / f"{n}", Options(workers=n)) for n in (1, 2)]
    assert runs[0].summary["adapter_sha256"] == runs[1].summary["adapter_sha256"]
    assert runs[0].summary["pooled"] == runs[1].summary["pooled"]


@pytest.mark.parametrize(
    "adaptation",
    ['method = "lora"\nrank = 2', 'method = "probe"', 'method = "last_blocks"', AUGMENTED,
     'method = "lora"\nrank = 2\n[[adaptation]]\nmethod = "fedprox"'],
)  # fmt: skip
def test_two_rounds_train_the_head_and_what_the_method_says(adaptation: str, tiny_vit: Path, manifest: Path) -> None:
    study = studies.loads(disc_study(tiny_vit, 2, adaptation=adaptation))
    bench, strategy = Workbench(study, torch.device("cpu")), MeanStrategy()
    groups = sites(read_manifest(manifest, study.data, network.task(study), study.study.seed))
    members = [
        Site(name, SiteData(name, rows, study.data, network.task(study)), Policy()) for name, rows in groups.items()
    ]
    everything = bench.adapted.network.state_dict()
    frozen = {name: value.clone() for name, value in everything.items() if name not in bench.adapted.travelling}
    started = state = bench.adapted.read()
    for number in (1, 2):
        fold = strategy.init(state)
        for site in members:
            asked = Instruction(
                study.digest, "r", number, f"{number}", digest(state), True, ("val",), True, VERSION, state
            )
            reply = respond(bench, site, asked)
            assert reply.update is not None
            strategy.expects(state).check(reply.update.tensors)
            fold = strategy.add(fold, Update(site.name, reply.update.weight, reply.update.tensors))
            outcome = reply.statistics["fitted/val"]
            assert isinstance(outcome, Detected)
            assert (outcome.images, outcome.patients) == (10, 10)
            assert {f"describe/{kind}" for kind in ("features", "kernel", "intensities", "labels")} <= set(
                reply.statistics
            )
        state = strategy.finish(fold)
    head = {name for name in state if name.startswith("head.")}
    assert head == {f"head.{name}" for name, _ in bench.adapted.network.head.named_parameters()}
    assert all(not np.array_equal(state[name], started[name]) for name in head)
    after = bench.adapted.network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in frozen.items())


def test_few_patients_are_withheld(tiny_vit: Path, manifest: Path) -> None:
    study = studies.loads(disc_study(tiny_vit, 1))
    bench = Workbench(study, torch.device("cpu"))
    rows = sites(read_manifest(manifest, study.data, network.task(study), 0))["north"]
    site = Site("north", SiteData("north", rows, study.data, network.task(study)), Policy(minimum_patients=11))
    state = bench.adapted.read()
    asked = Instruction(study.digest, "r", 1, "n", digest(state), False, ("val", "test"), False, VERSION, state)
    assert set(respond(bench, site, asked).statistics.values()) == {Withheld("detected", 11)}
