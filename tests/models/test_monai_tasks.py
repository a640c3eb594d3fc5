"""MONAI's own networks through the three tasks: two federated rounds each, flat and of volumes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from polyclinic.client.data.dataset import Images, SiteData
from polyclinic.client.data.manifest import Row
from polyclinic.client.policy import Policy
from polyclinic.client.respond import Site
from polyclinic.core import study as studies
from polyclinic.core.study import Study
from polyclinic.models import network
from polyclinic.models.export import load_adapted, write_adapter
from polyclinic.models.network import plain
from tests.models import test_dense_matrix as dense

UNET = "monai:unet?channels=1&features=8,16"
UNETR = "monai:unetr?channels=1&features=8&width=48&mlp=96&heads=4"
SWIN = "monai:swinunetr?channels=1"
DENSENET = "monai:densenet121?channels=1"


def study_of(reference: str, task: str, side: int, depth: int | None = None, method: str = "full") -> Study:
    volume = "" if depth is None else f'volume = "whole"\ndepth = {depth}\n'
    return studies.loads(
        f'[study]\nname = "monai"\nseed = 3\n[data]\nimage_size = {side}\ncolour = "grey"\n{volume}'
        f'boxes = "boxes.csv"\n[backbone]\nreference = "{reference}"\npooling = "mean"\n{task}'
        f'[[adaptation]]\nmethod = "{method}"\n[training]\nbatch_size = 4\nsteps = 2\n[rounds]\ncount = 2\n'
    )


def site(name: str, study: Study, side: int, kind: str) -> Site:
    rows, depth = [], study.data.depth
    for split, count in dense.SPLITS.items():
        places = [f"{split}{i}.png" for i in range(count)]
        rows += [
            Row(Path("/", place), name, "", 0 if kind == "label" else (), split, place, 2, place) for place in places
        ]
    data = SiteData(name, tuple(rows), study.data, network.task(study))
    for split, count in dense.SPLITS.items():
        rng = np.random.default_rng([count, len(name)])
        shape = (side, side) if depth is None else (depth, side, side)
        masks = (rng.random((count, *shape)) < 0.3).astype(np.uint8)
        pixels = (masks[:, None] * 150 + rng.integers(0, 60, (count, 1, *shape))).astype(np.uint8)
        targets = masks if kind == "mask" else np.arange(count, dtype=np.int64) % 2
        data._decoded[split] = Images(pixels, targets, tuple(f"{split}{i}.png" for i in range(count)))
    return Site(name, data, Policy(minimum_patients=1))


@pytest.mark.parametrize(
    ("reference", "kind", "side", "depth"),
    [
        (UNET, "mask", 32, None),
        (UNET, "mask", 16, 16),
        (UNETR, "mask", 32, None),
        (SWIN, "mask", 64, None),
        (UNET, "label", 16, 16),
        (DENSENET, "label", 64, None),
    ],
)
def test_two_rounds_train_it_and_what_is_saved_loads_back(
    reference: str, kind: str, side: int, depth: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = {
        "mask": '[task]\nmethod = "segmentation"\nclasses = ["disc"]\n',
        "label": '[task]\nmethod = "classification"\n',
    }[kind]
    study = study_of(reference, task, side, depth)
    monkeypatch.setattr(dense, "site", lambda name, study, task: site(name, study, side, kind))
    bench, started, state, told = dense.federated(study, kind)
    moved = [name for name in state if not np.array_equal(state[name], started[name])]
    assert any(name.startswith("backbone.encoder.") for name in moved)
    assert (told[0]["incoming/val"] + told[1]["incoming/val"]).patients == 2 * dense.SPLITS["val"]
    bench.adapted.write(state)
    sizes = (side, side) if depth is None else (depth, side, side)
    pixels = torch.rand((1, 1, *sizes), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = bench.adapted.network(pixels)
        write_adapter(study, state, tmp_path / "adapter", plain(study).backbone.sha256)
        torch.testing.assert_close(load_adapted(study, tmp_path / "adapter")(pixels), expected, rtol=0, atol=1e-5)
