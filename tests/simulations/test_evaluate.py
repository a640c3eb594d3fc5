"""External validation against scikit-learn, on sites that took no part, and with the adapter that the run made."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, balanced_accuracy_score, brier_score_loss, log_loss, roc_auc_score

from polyclinic.client.policy import Policy
from polyclinic.core.errors import DataError, RunError
from polyclinic.core.runs import Run
from polyclinic.core.study import Study
from polyclinic.models.network import plain
from polyclinic.simulations.evaluate import evaluate
from polyclinic.simulations.simulate import Options, simulate
from tests.conftest import write_images


@pytest.fixture(scope="module")
def run(tiny_study: Study, tiny_manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return simulate(tiny_study, tiny_manifest, tmp_path_factory.mktemp("evaluate") / "run", Options())


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sites that took no part, harder than those that did: some labels are turned round."""
    manifest = write_images(tmp_path_factory.mktemp("others"), {"east": 80, "far_east": 48, "tiny": 6}, seed=5)
    text = manifest.read_text()
    for number in range(5, 80, 7):
        text = text.replace(f"east-{number}.png,east,{number % 2}", f"east-{number}.png,east,{1 - number % 2}")
    manifest.write_text(text)
    return manifest


def rows(manifest: Path, splits: Sequence[str], site: str = "") -> list[dict[str, str]]:
    with manifest.open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["split"] in splits and site in ("", row["site"])]


def truth(run: Run, manifest: Path, chosen: Sequence[dict[str, str]]) -> dict[str, float]:
    """scikit-learn's figures of the model as peft loads it."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(plain(run.study), str(run.adapter)).eval()
    pixels = np.stack([np.asarray(Image.open(manifest.parent / row["path"])) for row in chosen])
    with torch.no_grad():
        logits = model(torch.from_numpy(pixels)[:, None].float() / 255)[:, 0].double().numpy()
    labels, probabilities = [int(row["label"]) for row in chosen], 1 / (1 + np.exp(-logits))
    return {
        "auroc": roc_auc_score(labels, logits),
        "accuracy": accuracy_score(labels, probabilities > 0.5),
        "balanced_accuracy": balanced_accuracy_score(labels, probabilities > 0.5),
        "nll": log_loss(labels, probabilities),
        "brier": brier_score_loss(labels, probabilities),
    }


@pytest.mark.parametrize("split", ["test", "val", "all"])
def test_figures_are_scikit_learn_s(split: str, run: Run, others: Path) -> None:
    found = evaluate(run, others, split)
    splits = ("train", "val", "test") if split == "all" else (split,)
    for site in ("east", "far_east"):
        chosen = rows(others, splits, site)
        row = found["sites"][site]
        assert row["n"] == {"images": len(chosen), "patients": len(chosen)}
        for name, value in truth(run, others, chosen).items():
            assert row["metrics"][name]["value"] == pytest.approx(value, abs=row["metrics"][name]["bound"] + 1e-6), name
    together = truth(run, others, [row for row in rows(others, splits) if split == "all" or row["site"] != "tiny"])
    if split != "all":  # six patients in all at "tiny": they are withheld in every split
        for name, value in together.items():
            figure = found["pooled"]["metrics"][name]
            assert figure["value"] == pytest.approx(value, abs=figure["bound"] + 1e-6)
    assert found["sites"]["tiny"]["metrics"]["nll"]["why"] == "fewer than 10 patients"
    assert (found["split"], found["study_digest"]) == (split, run.study.digest)


def test_with_other_rules_small_groups_are_told(run: Run, others: Path) -> None:
    found = evaluate(run, others, "all", Policy(minimum_patients=1))
    assert found["sites"]["tiny"]["metrics"]["nll"]["value"] == pytest.approx(
        truth(run, others, rows(others, ("train", "val", "test"), "tiny"))["nll"], abs=1e-6
    )
    together = truth(run, others, rows(others, ("train", "val", "test")))
    assert found["pooled"]["metrics"]["nll"]["value"] == pytest.approx(together["nll"], abs=1e-6)


def test_no_image_in_the_split_is_an_error(run: Run, tmp_path: Path) -> None:
    manifest = write_images(tmp_path, {"east": 12})
    manifest.write_text(manifest.read_text().replace(",test,", ",val,"))
    with pytest.raises(DataError, match="no image is in split 'test'"):
        evaluate(run, manifest)


def test_an_adapter_with_a_true_card_that_the_run_did_not_make_is_refused(
    run: Run, others: Path, tmp_path: Path
) -> None:
    shutil.copytree(run.folder, tmp_path / "run")
    other = Run(tmp_path / "run")
    weights, card = other.adapter / "adapter_model.safetensors", other.adapter / "polyclinic.json"
    body = bytearray(weights.read_bytes())
    body[-1] ^= 1
    weights.write_bytes(body)
    card.write_text(json.dumps(json.loads(card.read_text()) | {"sha256": sha256(body).hexdigest()}))
    with pytest.raises(RunError, match="is the adapter of another run"):
        evaluate(other, others)
