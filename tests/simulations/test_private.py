"""A private federation from end to end: what it spends, what leaves, and that nothing is forgotten."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dp_accounting import dp_event, pld

from polyclinic.client.policy import Policy
from polyclinic.client.privacy.ledger import Ledger
from polyclinic.core import runs
from polyclinic.core import study as studies
from polyclinic.core.errors import QuorumError
from polyclinic.core.study import Study
from polyclinic.simulations.simulate import OWN, Options, simulate
from tests.conftest import study_text

STEPS, ROUNDS, EXPECTED, NOISE, DELTA = 3, 2, 6, 1.5, 1e-3


def private(tiny_vit: Path, **more: Any) -> Study:
    asked = {"noise": NOISE, "delta": DELTA, "expected": EXPECTED, "generator": "simulated", "pictures": 2}
    asked |= {"statistics_share": 0.0} | more
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


@pytest.fixture(scope="module")
def telling(tiny_vit: Path, tiny_manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> runs.Run:
    """A run that also tells figures, of the last model alone; with little noise, so that ten patients say something."""
    study = private(tiny_vit, statistics_share=1.0, judged=1, noise=0.5)
    return simulate(study, tiny_manifest, tmp_path_factory.mktemp("telling") / "run", Options())


def test_figures_are_told_with_their_noise_and_charged_to_the_patients_behind_them(telling: runs.Run) -> None:
    for site, found in telling.summary["sites"].items():
        accuracy = found["metrics"]["test"]["accuracy"]
        assert accuracy["noise"] > 0.0
        assert accuracy["low"] <= accuracy["value"] <= accuracy["high"]
        assert found["metrics"]["val"]["nll"]["why"] == "not told under privacy"
        assert found["shift"]["mmd2_noise"] > 0.0
        with closing(Ledger(telling.folder / OWN / site / "privacy")) as ledger:
            ledger.verify()
            record = ledger.record()
        whats = [[charge.what for charge in one.charges] for one in record.reserved.values()]
        assert whats == [
            ["update", "describe/kernel", "describe/labels"],
            ["update"],
            ["incoming/test", "incoming/val"],
        ]
        cohorts = {charge.what: charge.cohort for charge in record.charged()}
        assert len({cohorts[what] for what in ("update", "incoming/val", "incoming/test")}) == 3
        assert found["privacy"]["mechanism"] == "Gaussian noise on 2 figures"
    assert telling.rounds[0]["sites"]["north"]["incoming"] is None
    report = telling.report.read_text()
    assert "noise ±" in report
    assert "validation images, under privacy" in report


def test_the_same_figures_come_out_of_a_round_that_is_asked_again(
    telling: runs.Run, tiny_vit: Path, tiny_manifest: Path, tmp_path: Path
) -> None:
    study = private(tiny_vit, statistics_share=1.0, judged=1, noise=0.5)
    again = simulate(study, tiny_manifest, tmp_path / "again", Options(workers=2))
    assert again.summary["sites"] == telling.summary["sites"] | {
        site: found | {"privacy": again.summary["sites"][site]["privacy"]}  # heads have times in them
        for site, found in telling.summary["sites"].items()
    }


def test_a_site_with_too_few_patients_says_so_and_spends_nothing_on_figures(
    tiny_vit: Path, tiny_manifest: Path, tmp_path: Path
) -> None:
    study = private(tiny_vit, statistics_share=1.0, judged=1)
    run = simulate(study, tiny_manifest, tmp_path / "run", Options(policy=Policy(minimum_patients=12)))
    assert run.summary["sites"]["south"]["metrics"]["test"]["accuracy"]["why"] == "fewer than 12 patients"
    with closing(Ledger(run.folder / OWN / "south" / "privacy")) as ledger:
        assert {charge.what for charge in ledger.record().charged()} == {"update"}


def test_a_run_that_cannot_fit_into_the_limit_does_not_start(
    tiny_vit: Path, tiny_manifest: Path, tmp_path: Path
) -> None:
    with pytest.raises(QuorumError, match="limit"):
        simulate(private(tiny_vit, limit=0.01), tiny_manifest, tmp_path / "run", Options())


def test_noise_is_what_moves_the_update(run: runs.Run, tiny_vit: Path, tiny_manifest: Path, tmp_path: Path) -> None:
    loud = simulate(private(tiny_vit, noise=200.0), tiny_manifest, tmp_path / "loud", Options())
    assert loud.summary["adapter_sha256"] != run.summary["adapter_sha256"]
    assert np.isfinite(loud.rounds[-1]["seconds"])
