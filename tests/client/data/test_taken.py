"""What DICOM files say of how they were taken reaches the site's statistic, and nothing else of their headers does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from polyclinic.client.data.dataset import SiteData
from polyclinic.client.data.manifest import read_manifest, sites
from polyclinic.client.evaluate import describe
from polyclinic.core.statistics.acquisition import VALUES
from polyclinic.core.study import Study
from polyclinic.models.network import plain, task
from tests.client.data.medical import CANARY, dataset, saved


def test_files_are_counted_by_maker_and_ranges(tiny_study: Study, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = ["path,site,label,split,patient_id"]
    for i in range(6):
        made = dataset(rng.integers(0, 900, (40, 40), dtype=np.uint16), KVP="120" if i else "80", ProtocolName=CANARY)
        saved(made, tmp_path / f"{i}.dcm")
        lines.append(f"{i}.dcm,north,{i % 2},train,p{i}")
    (tmp_path / "manifest.csv").write_text("\n".join(lines) + "\n")
    judged = task(tiny_study)
    rows = sites(read_manifest(tmp_path / "manifest.csv", tiny_study.data, judged, 0))["north"]
    images = SiteData("north", rows, tiny_study.data, judged).images("train")
    assert images.taken[0] == {
        "modality": "CT", "maker": "Siemens", "model": "Skyra", "kVp": "80", "slice thickness": "2.0 mm",
        "pixel spacing": "0.50 mm",
    }  # fmt: skip
    told = describe(plain(tiny_study).backbone, judged, images, tiny_study, torch.device("cpu"))["acquisition"]
    counts = {
        field: {name: count for name, count in zip(known, told.by_field()[field].tolist(), strict=True) if count}  # type: ignore[attr-defined]
        for field, known in VALUES.items()
    }
    assert counts == {
        "modality": {"CT": 6}, "maker": {"Siemens": 6}, "kVp": {"70 to 90": 1, "110 to 130": 5},
        "field strength": {"not said": 6}, "slice thickness": {"2 to 3": 6}, "pixel spacing": {"0.5 to 0.75": 6},
    }  # fmt: skip
    assert CANARY not in str(told.fields())
    assert "Skyra" not in str(told.fields())
