"""What it is worth to remember what the frozen part of a backbone makes of a picture."""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from torch import nn

from polyclinic.client.cache import Cache
from polyclinic.client.data.dataset import Images
from polyclinic.client.fit import fit
from polyclinic.client.respond import Workbench
from polyclinic.core import study as studies
from polyclinic.core.errors import EngineError
from polyclinic.core.study import Study
from polyclinic.core.update import Tensors, digest
from polyclinic.simulations.bench.figure import Measured, at_least

GOAL = 3.0
SMALL = {
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "intermediate_size": 1536,
    "patch_size": 16,
}
"""ViT-S."""


def last_blocks(pictures: int, size: int, repeats: int) -> Measured:
    """Seconds of an epoch: three ways in turn, each from its second epoch on; all end with the same weights.

    "theirs" works the frozen blocks out picture by picture, as a study without a cache does for the sake of equal bits;
    ``batched`` is the ratio to the same study with the frozen blocks worked out batch by batch, which promises no bits.

    Raises:
        EngineError: with and without the cache, training did not give the same bits.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        study, images = _study(_weights(folder, size), size), _images(pictures, size)
        ways = {
            "remembered": Workbench(study, torch.device("cpu"), Cache(folder / "cache")),
            "alone": Workbench(study, torch.device("cpu")),
            "batched": Workbench(study, torch.device("cpu")),
        }
        ways["batched"].adapted.network.backbone.prefix = None
        start = ways["alone"].adapted.read()
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        ends: dict[str, str] = {}
        for repeat in range(repeats + 1):
            for name, bench in ways.items():
                taken, ends[name] = _epoch(bench, start, images)
                if repeat:  # the first fills the cache, and warms all three
                    seconds[name].append(taken)
    if ends["remembered"] != ends["alone"]:
        raise EngineError("remembered features gave other weights than features worked out anew", where="bench cache")
    batched = round(median(seconds["batched"]) / median(seconds["remembered"]), 3)
    name = f"ViT-S at {size} px, last 2 of 12 blocks: an epoch without the cache / with it"
    return at_least(name, seconds["alone"], seconds["remembered"], GOAL, batched=batched)


def _epoch(bench: Workbench, start: Tensors, images: Images) -> tuple[float, str]:
    """(seconds, digest of the weights) of one epoch from the same start."""
    anchor = bench.adapted.write(start)
    begun = time.perf_counter()
    fit(bench.adapted, bench.task, images, bench.study, "site", 1, anchor)
    return time.perf_counter() - begun, digest(bench.adapted.read())


def _weights(folder: Path, size: int) -> Path:
    """Random weights of ViT-S as a file."""
    from safetensors.torch import save_file
    from transformers import ViTConfig, ViTModel

    settings = SMALL | {"image_size": size}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model: nn.Module = ViTModel(ViTConfig(**settings), add_pooling_layer=False)
    path = folder / "vit_small.safetensors"
    save_file(model.state_dict(), path)
    card = {"model_type": "vit", **settings, "mean": [0.5] * 3, "std": [0.5] * 3}
    path.with_suffix(".json").write_text(json.dumps(card), encoding="utf-8")
    return path


def _images(count: int, size: int) -> Images:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (count, 1, size, size), dtype=np.uint8)
    return Images(pixels, rng.integers(0, 2, count), tuple(map(str, range(count))))


def _study(weights: Path, size: int) -> Study:
    return studies.loads(
        f"""
[study]
name = "bench"
[data]
image_size = {size}
colour = "grey"
[backbone]
reference = "file:{weights}"
[task]
method = "classification"
classes = ["normal", "lesion"]
[[adaptation]]
method = "last_blocks"
count = 2
[training]
batch_size = 16
""",
        "bench",
    )
