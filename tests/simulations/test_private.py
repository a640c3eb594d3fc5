"""A private federation from end to end: what it spends, what leaves, and that nothing is forgotten."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dp_accounting import dp_event, pld

from polyclinic.client.privacy.ledger import Ledger
from polyclinic.core import runs
from polyclinic.core import study as studies
from polyclinic.core.errors import QuorumError
from polyclinic.core.study import Study
from polyclinic.simulations.simulate import OWN, Options, simulate
from tests.conftest import study_text

STEPS, ROUNDS, EXPECTED, NOISE, DELTA = 3, 2, 6, 1.5, 1e-3


def private(tiny_vit: Path, **more: Any) -> Study:
    asked = {"noise": NOISE, "delta": DELTA, "expected": EXPECTED, "generator": "simulated", "pictures": 2} | more
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in asked.items())
    text = study_text(tiny_vit).replace("epochs = 1", f"steps = {STEPS}")
    text = text if "steps" in text else text.replace("[training]", f"[training]\nsteps = {STEPS}")
    text = text if 'weight = "' in text else text.replace("[rounds]", '[rounds]\nweight = "patients"')
    return studies.loads(f"{text}\n[privacy]\n{lines}\n")


@pytest.fixture(scope="module")
def run(tiny_vit: Path, tiny_manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> runs.Run:
    return simulate(private(tiny_vit), tiny_manifest, tmp_path_factory.mktemp("private") / "run", Options())


def truth(rate: float, steps: int) -> float:
    """Google's own accountant, asked directly."""
    event = dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(NOISE))
    return float(pld.PLDAccountant().compose(event, steps).get_epsilon(DELTA))


def test_the_receipts_say_what_the_accountant_says_of_all_steps_so_far(run: runs.Run) -> None:
    for site, found in run.summary["sites"].items():
        rate = EXPECTED / found["n"]["train"]["patients"]
        told = [record["sites"][site]["privacy"] for record in run.rounds]
        for number, receipt in enumerate(told, 1):
            assert receipt["study"] == pytest.approx(truth(rate, STEPS * number), rel=0.01)
            assert (receipt["unit"], receipt["delta"], receipt["generator"]) == ("patient", DELTA, "simulated")
        with closing(Ledger(run.folder / OWN / site / "privacy")) as ledger:
            ledger.verify()
            assert told[-1]["head"] in {entry.digest for entry in map(_entry, ledger.lines())}


def _entry(line: str) -> Any:
    from polyclinic.core.ledger import Entry

    body = json.loads(line)
    return Entry(**{key: body[key] for key in Entry.__dataclass_fields__ if key in body})


def test_how_many_images_a_patient_has_is_not_told(run: runs.Run) -> None:
    for found in run.summary["sites"].values():
        assert all(split["images"] == split["patients"] for split in found["n"].values())


def test_nothing_but_noised_updates_leaves_and_the_report_says_that_the_noise_is_simulated(run: runs.Run) -> None:
    assert "simulated noise: no privacy" in run.report.read_text()
    for record in run.rounds:
        assert all(site["incoming"] is None and site["fitted"] is None for site in record["sites"].values())


def test_two_workers_and_a_second_run_give_the_same_bits_and_other_noise_gives_others(
    run: runs.Run, tiny_vit: Path, tiny_manifest: Path, tmp_path: Path
) -> None:
    same = simulate(private(tiny_vit), tiny_manifest, tmp_path / "same", Options(workers=2))
    assert same.summary["adapter_sha256"] == run.summary["adapter_sha256"]
    secure = private(tiny_vit, generator="system")
    one, other = (simulate(secure, tiny_manifest, tmp_path / name, Options()) for name in ("one", "other"))
    assert one.summary["adapter_sha256"] != other.summary["adapter_sha256"]
    assert "no privacy" not in json.dumps(one.rounds[-1])


def test_a_run_that_cannot_fit_into_the_limit_does_not_start(
    tiny_vit: Path, tiny_manifest: Path, tmp_path: Path
) -> None:
    with pytest.raises(QuorumError, match="limit"):
        simulate(private(tiny_vit, limit=0.01), tiny_manifest, tmp_path / "run", Options())


def test_noise_is_what_moves_the_update(run: runs.Run, tiny_vit: Path, tiny_manifest: Path, tmp_path: Path) -> None:
    loud = simulate(private(tiny_vit, noise=200.0), tiny_manifest, tmp_path / "loud", Options())
    assert loud.summary["adapter_sha256"] != run.summary["adapter_sha256"]
    assert np.isfinite(loud.rounds[-1]["seconds"])
