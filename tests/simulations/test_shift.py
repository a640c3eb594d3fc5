"""A shift that was dialled in is found, through the very images and backbone that a site uses; its absence is not."""

from __future__ import annotations

from functools import reduce
from operator import add
from pathlib import Path
from typing import Any

import pytest
import torch

from polyclinic.client.evaluate import describe
from polyclinic.core import study as studies
from polyclinic.core.statistics import shift
from polyclinic.models.network import plain
from polyclinic.simulations.centres import Centre, Scanner, write_centres
from polyclinic.simulations.simulate import Options, gather

STUDY = """
[study]
name = "shift"
[data]
colour = "grey"
[task]
method = "classification"
classes = ["normal", "lesion"]
[[adaptation]]
method = "lora"
"""
CENTRES = (
    Centre("alike_1", 80),
    Centre("alike_2", 80),
    Centre("alike_3", 80),
    Centre("dim", 80, scanner=Scanner(brightness=-0.12, contrast=0.8)),
    Centre("noisy", 80, scanner=Scanner(noise=0.12)),
    Centre("ill", 80, prevalence=0.9),
)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Site → what it tells of its data."""
    torch.set_num_threads(1)
    study = studies.loads(STUDY)
    manifest: Path = write_centres(tmp_path_factory.mktemp("centres"), CENTRES, seed=5)
    _, cohort = gather(study, manifest, Options().policy)
    backbone, cpu = plain(study).backbone, torch.device("cpu")
    return {
        name: describe(backbone, site.data.task, site.data.images("train"), study, cpu) for name, site in cohort.items()
    }


def against_alike(told: dict[str, dict[str, Any]], site: str, kind: str) -> tuple[Any, Any]:
    """A site's statistic, and that of the centres that differ in nothing, without the site itself."""
    alike = [told[name][kind] for name in ("alike_1", "alike_2", "alike_3") if name != site]
    return told[site][kind], reduce(add, alike)


@pytest.mark.parametrize("site", ["alike_1", "alike_2", "alike_3"])
def test_no_shift_no_alarm(told: dict[str, dict[str, Any]], site: str) -> None:
    _, p_value = shift.mmd2(*against_alike(told, site, "kernel"))
    assert p_value > 0.01
    assert shift.psi(*against_alike(told, site, "intensities")) < 0.02
    assert shift.label_shift(*against_alike(told, site, "labels")) > 0.01


def test_another_scanner_is_found_in_features_and_is_no_label_shift(told: dict[str, dict[str, Any]]) -> None:
    mmd2, p_value = shift.mmd2(*against_alike(told, "noisy", "kernel"))
    assert p_value < 1e-3
    assert mmd2 > 3 * max(shift.mmd2(*against_alike(told, f"alike_{i}", "kernel"))[0] for i in (1, 2, 3))
    assert shift.frechet(*against_alike(told, "noisy", "features")) > 3 * max(
        shift.frechet(*against_alike(told, f"alike_{i}", "features")) for i in (1, 2, 3)
    )
    assert shift.label_shift(*against_alike(told, "noisy", "labels")) > 0.01


def test_a_darker_scanner_shows_in_intensities(
    told: dict[str, dict[str, Any]],
) -> None:
    assert shift.psi(*against_alike(told, "dim", "intensities")) > 0.1


def test_another_prevalence_shows_in_labels(told: dict[str, dict[str, Any]]) -> None:
    assert shift.label_shift(*against_alike(told, "ill", "labels")) < 1e-6
