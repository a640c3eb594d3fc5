"""A federation small enough to run in a second: a random ViT, three sites, pictures of 32 × 32."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from polyclinic.core import study as studies
from polyclinic.core.study import Study

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "OMP_NUM_THREADS": "1",
}

VIT = {
    "model_type": "vit",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
    "num_channels": 3,
}


def write_vit(folder: Path, name: str = "tiny") -> Path:
    """A random ViT in the form that ``file:`` reads; returns the path of its weights."""
    import torch
    from safetensors.torch import save_file
    from transformers import ViTConfig, ViTModel

    torch.manual_seed(0)
    model = ViTModel(ViTConfig(**{k: v for k, v in VIT.items() if k != "model_type"}), add_pooling_layer=False)
    weights = folder / f"{name}.safetensors"
    save_file(model.state_dict(), weights)
    weights.with_suffix(".json").write_text(json.dumps(VIT | {"mean": [0.5] * 3, "std": [0.25] * 3}))
    return weights


def write_images(folder: Path, sites: dict[str, int], *, seed: int = 0) -> Path:
    """``sites[name]`` patients a site, one picture each, brighter where the label is 1; returns the manifest."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for site, patients in sites.items():
        for i in range(patients):
            label = i % 2
            split = "train" if i < patients * 0.5 else "val" if i < patients * 0.75 else "test"
            picture = rng.normal(100 + 40 * label, 30, (32, 32)).clip(0, 255).astype(np.uint8)
            name = f"images/{site}-{i}.png"
            Image.fromarray(picture).save(folder / name)
            rows.append({"path": name, "site": site, "label": label, "split": split, "patient_id": f"p{i}"})
    manifest = folder / "manifest.csv"
    with manifest.open("w", newline="") as out:
        writer = csv.DictWriter(out, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return manifest


def study_text(weights: Path, extra: str = "") -> str:
    """A study on the tiny ViT: LoRA, two rounds."""
    return f"""
[study]
name = "tiny"
seed = 3
[data]
image_size = 32
colour = "grey"
[backbone]
reference = "file:{weights}"
[[adaptation]]
method = "lora"
rank = 2
alpha = 4
[training]
learning_rate = 5e-3
batch_size = 4
[rounds]
count = 2
{extra}
"""


@pytest.fixture(scope="session")
def tiny_vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a random ViT."""
    return write_vit(tmp_path_factory.mktemp("vit"))


@pytest.fixture(scope="session")
def tiny_manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three sites of different size; every split has ten patients or more."""
    return write_images(tmp_path_factory.mktemp("data"), {"north": 48, "south": 40, "west": 60})


@pytest.fixture(scope="session")
def tiny_study(tiny_vit: Path) -> Study:
    """The study on both."""
    return studies.loads(study_text(tiny_vit))
