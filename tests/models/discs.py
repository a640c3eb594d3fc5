"""A federation of pictures of bright and dark discs on grey, in boxes; sites differ in how bright their grey is."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("bright", "dark")


def disc_picture(rng: np.random.Generator, grey: int, side: int) -> tuple[np.ndarray, list[tuple[object, ...]]]:
    """uint8 [side, side], and (class, left, top, right, bottom) of up to three discs that do not touch."""
    rows, columns = np.indices((side, side)) + 0.5
    pixels, boxes, middles = rng.normal(grey, 6, (side, side)), [], []
    for _ in range(rng.integers(0, 4)):
        radius, (x, y) = rng.uniform(3, 5), rng.uniform(6, side - 6, 2)
        if all(np.hypot(x - a, y - b) > 11 for a, b in middles):
            name = str(rng.choice(CLASSES))
            pixels[np.hypot(columns - x, rows - y) <= radius] += 80 if name == "bright" else -80
            boxes.append((name, *np.round([x - radius, y - radius, x + radius, y + radius], 2)))
            middles.append((x, y))
    return pixels.clip(0, 255).astype(np.uint8), boxes


def write_discs(folder: Path, sites: dict[str, int], patients: int = 40, side: int = 32, seed: int = 0) -> Path:
    """``sites``: grey of each. One picture a patient: half train, a quarter each val and test; returns the manifest."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows, lines = [], []
    for site, grey in sites.items():
        for i in range(patients):
            pixels, boxes = disc_picture(rng, grey, side)
            name = f"images/{site}-{i}.png"
            Image.fromarray(pixels).save(folder / name)
            split = "train" if i < patients / 2 else "val" if i < patients * 3 / 4 else "test"
            rows.append((name, site, split, f"p{i}"))
            lines += [(name, *box) for box in boxes]
    for file, header, table in (
        ("manifest.csv", ("path", "site", "split", "patient_id"), rows),
        ("boxes.csv", ("image", "label", "xmin", "ymin", "xmax", "ymax"), lines),
    ):
        with (folder / file).open("w", newline="") as out:
            csv.writer(out).writerows([header, *table])
    return folder / "manifest.csv"


def disc_study(weights: Path, rounds: int, extra: str = "", adaptation: str = 'method = "full"', task: str = "") -> str:
    """A study of them on the tiny ViT."""
    return f"""
[study]
name = "discs"
seed = 3
[data]
image_size = 32
colour = "grey"
boxes = "boxes.csv"
[task]
method = "detection"
classes = ["bright", "dark"]
most = 4
most_detections = 10
stride = 4
width = 16
depth = 1
{task}
[backbone]
reference = "file:{weights}"
[[adaptation]]
{adaptation}
[training]
learning_rate = 5e-3
batch_size = 8
{extra}
[rounds]
count = {rounds}
"""
