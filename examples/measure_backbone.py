"""Measures the embedded backbone on a folder of images: linear probe and LoRA, against random weights of its shape.

    python examples/measure_backbone.py path/to/cls-derm/manifest.csv --seeds 3

The manifest is a CSV with columns path (relative to it), site, label (0 or 1) and split (train, val or test); a column
patient_id, where there is one, keeps a patient's images in one fold. AUROC is taken per site and averaged over the
sites that hold both labels. Prints a table, then one line of JSON.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, get_peft_model
from PIL import Image
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel

Scores = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Pack:
    """Images uint8 (N, 3, S, S) with, for each, its site, label, split and patient."""

    images: Tensor
    site: NDArray[np.str_]
    label: NDArray[np.int64]
    split: NDArray[np.str_]
    patient: NDArray[np.str_]


def read(manifest: Path, size: int) -> Pack:
    """Reads every image of a manifest, resized to (size, size) pixels."""
    with manifest.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))

    def pixels(path: str) -> Tensor:
        with Image.open(manifest.parent / path) as picture:
            square = picture.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
        return torch.from_numpy(np.array(square)).permute(2, 0, 1)

    def column(name: str, otherwise: str) -> NDArray[np.str_]:
        return np.array([row.get(name) or row[otherwise] for row in rows])

    return Pack(
        images=torch.stack([pixels(row["path"]) for row in rows]),
        site=column("site", "site"),
        label=np.array([int(row["label"]) for row in rows]),
        split=column("split", "split"),
        patient=column("patient_id", "path"),
    )


def backbone(folder: Path, *, trained: bool, seed: int) -> tuple[nn.Module, dict[str, Any]]:
    """The shipped transformer, or one of the same shape with random weights of that seed; with its description."""
    about = json.loads((folder / "vit_tiny.json").read_text(encoding="utf-8"))
    shape = {key: value for key, value in about.items() if key not in {"model_type", "mean", "std", "sha256"}}
    torch.manual_seed(seed)
    vit: nn.Module = ViTModel(ViTConfig(**shape), add_pooling_layer=False)
    if trained:
        weights = folder / "vit_tiny.safetensors"
        if hashlib.sha256(weights.read_bytes()).hexdigest() != about["sha256"]:
            raise SystemExit(f"{weights.name} is not the file that vit_tiny.json describes")
        vit.load_state_dict({name: value.float() for name, value in load_file(weights).items()})
    return vit, about


def normalise(images: Tensor, about: dict[str, Any]) -> Tensor:
    """uint8 (N, 3, S, S) to what the backbone takes."""
    mean, std = (torch.tensor(about[key]).view(3, 1, 1) for key in ("mean", "std"))
    return (images.float() / 255 - mean) / std


def embed(vit: nn.Module, about: dict[str, Any], images: Tensor) -> Tensor:
    """Images uint8 (N, 3, S, S) to class token beside mean patch token: (N, 2 * hidden)."""
    tokens = vit(pixel_values=normalise(images, about)).last_hidden_state
    return torch.cat([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=1)


def extract(features: Callable[[Tensor], Tensor], images: Tensor) -> Scores:
    """Features of all images, 64 at a time: (N, features)."""
    with torch.no_grad():
        return np.concatenate([features(part).numpy() for part in torch.split(images, 64)]).astype(np.float64)


def by_site(pack: Pack, rows: NDArray[np.bool_], scores: Scores) -> dict[str, float]:
    """AUROC of each site that has both labels among `rows`, and their mean under "macro"."""
    found = {}
    for site in np.unique(pack.site):
        chosen = rows & (pack.site == site)
        if len(np.unique(pack.label[chosen])) == 2:
            found[str(site)] = float(roc_auc_score(pack.label[chosen], scores[chosen]))
    return found | {"macro": float(np.mean(list(found.values())))}


def probe(pack: Pack, features: Scores, folds: int, seed: int) -> dict[str, float]:
    """Logistic regression on frozen features, out of fold over all images, folds stratified by site and label.

    Features are standardised and C is 40 over their number, so that wide and narrow backbones are held back alike.
    """
    strata = np.array([f"{site}/{label}" for site, label in zip(pack.site, pack.label, strict=True)])
    scores = np.zeros(len(features))
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    for fit, held in splitter.split(features, strata, pack.patient):
        model = make_pipeline(StandardScaler(), LogisticRegression(C=40 / features.shape[1], max_iter=3000))
        scores[held] = model.fit(features[fit], pack.label[fit]).decision_function(features[held])
    return by_site(pack, np.ones(len(scores), dtype=bool), scores)


def batches(count: int, size: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Indices 0 to count - 1 in random order, `size` at a time; the last, shorter batch is left out."""
    order = rng.permutation(count)
    for start in range(0, count - size + 1, size):
        yield order[start : start + size]


def lora(pack: Pack, vit: nn.Module, about: dict[str, Any], epochs: int, seed: int) -> dict[str, float]:
    """LoRA of rank 8 on q, k, v, o and a linear head, all sites' training images together; AUROC on the test split.

    Trains in bfloat16 (batch 32, AdamW 1e-3, mirrored at random), predicts in float32.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"])
    adapted: nn.Module = get_peft_model(vit, config)
    head = nn.Linear(2 * int(about["hidden_size"]), 1)
    learnt = [p for p in adapted.parameters() if p.requires_grad] + list(head.parameters())
    adam = torch.optim.AdamW(learnt, lr=1e-3, weight_decay=0.01)
    rows = np.flatnonzero(pack.split == "train")
    images, wanted = pack.images[rows], torch.from_numpy(pack.label[rows]).float()
    adapted.train()
    for _ in range(epochs):
        for picked in batches(len(rows), 32, rng):
            part = images[picked].flip(-1) if rng.random() < 0.5 else images[picked]
            with torch.autocast("cpu", torch.bfloat16):
                logits = head(embed(adapted, about, part)).squeeze(1)
            adam.zero_grad()
            torch.autograd.backward(nn.functional.binary_cross_entropy_with_logits(logits.float(), wanted[picked]))
            adam.step()
    adapted.eval()
    scores = extract(lambda part: head(embed(adapted, about, part)), pack.images).ravel()
    return by_site(pack, pack.split == "test", scores)


def teacher() -> Callable[[Tensor], Tensor]:
    """The teacher's 1280 pooled features, of uint8 images; needs the packages that `distil.py` names."""
    from polyclinic.models.embedded import distil

    features = distil.load_teacher()
    return lambda images: features(distil.normalise(images.float() / 255))[2]


def measure(pack: Pack, folder: Path, asked: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Every row of the table: its name, and one AUROC per site and macro for each seed."""
    rows: dict[str, list[dict[str, float]]] = {}
    seeds = range(asked.seeds)
    for name in asked.weights:
        for seed in seeds:
            vit, about = backbone(folder, trained=name == "distilled", seed=seed)
            vit.eval()
            if "probe" in asked.tests:
                features = extract(partial(embed, vit, about), pack.images)
                rows.setdefault(f"probe {name}", []).append(probe(pack, features, asked.folds, seed))
            if "lora" in asked.tests:
                rows.setdefault(f"lora {name}", []).append(lora(pack, vit, about, asked.epochs, seed))
    if asked.teacher:
        features = extract(teacher(), pack.images)
        rows["probe teacher"] = [probe(pack, features, asked.folds, seed) for seed in seeds]
    return rows


def main() -> None:
    """Reads the command line, measures, prints."""
    parser = argparse.ArgumentParser(description="Measures the embedded backbone on a manifest of images.")
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--folder", type=Path, default=Path(str(files("polyclinic.models.embedded"))))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--tests", nargs="+", choices=["probe", "lora"], default=["probe", "lora"])
    parser.add_argument("--weights", nargs="+", choices=["distilled", "random"], default=["distilled", "random"])
    parser.add_argument("--teacher", action="store_true", help="also probe the teacher")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    size = int(json.loads((asked.folder / "vit_tiny.json").read_text(encoding="utf-8"))["image_size"])
    pack = read(asked.manifest, size)
    rows = measure(pack, asked.folder, asked)
    sites = list(next(iter(rows.values()))[0])
    held = int((pack.split == "test").sum())
    print(f"{len(pack.label)} images, {held} of them test; AUROC, mean over seeds (macro of each seed)")
    print("".join(f"{title:>22}" for title in ["", *sites]))
    for name, runs in rows.items():
        means = "".join(f"{np.mean([run.get(site, np.nan) for run in runs]):>22.3f}" for site in sites)
        print(f"{name:>22}{means}   ({', '.join(format(run['macro'], '.3f') for run in runs)})")
    print(json.dumps({"manifest": asked.manifest.parent.name, "epochs": asked.epochs, "auroc": rows}))


if __name__ == "__main__":
    main()
