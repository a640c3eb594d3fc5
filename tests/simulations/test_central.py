"""A federation with noise at the server from end to end: what it spends, what its folder says, and what it does not."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from dp_accounting import dp_event, pld
from jsonschema import Draft202012Validator

from polyclinic.core import runs, verify
from polyclinic.core import study as studies
from polyclinic.core.study import Study
from polyclinic.simulations.simulate import Options, simulate
from tests.conftest import study_text

NOISE, RATE, ROUNDS, DELTA = 1.2, 0.5, 2, 1e-5


def central(tiny_vit: Path, **more: Any) -> Study:
    lines = "\n".join(f"{key} = {json.dumps(value)}" for key, value in ({"sites": 3, "noise": NOISE} | more).items())
    text = study_text(tiny_vit).replace("[rounds]", '[rounds]\nweight = "equal"')
    return studies.loads(f"{text}\n[central]\n{lines}\n")


@pytest.fixture(scope="module")
def run(tiny_vit: Path, tiny_manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> runs.Run:
    folder = tmp_path_factory.mktemp("central") / "run"
    return simulate(central(tiny_vit, rate=RATE), tiny_manifest, folder, Options())


def test_summary_and_rounds_say_what_the_accountant_says_and_keep_the_contract(run: runs.Run) -> None:
    for number, record in enumerate(run.rounds, 1):
        event = dp_event.PoissonSampledDpEvent(RATE, dp_event.GaussianDpEvent(NOISE))
        truth = float(pld.PLDAccountant().compose(event, number).get_epsilon(DELTA))
        assert record["privacy"]["study"] == pytest.approx(truth, rel=0.01)
    assert run.summary["privacy"] == run.rounds[-1]["privacy"]
    for name, documents in (("round", run.rounds), ("summary", [run.summary])):
        schema = json.loads(files("polyclinic.server").joinpath(f"{name}.schema.json").read_text("utf-8"))
        for document in documents:
            Draft202012Validator(schema).validate(document)
            assert not Draft202012Validator(schema).is_valid(document | {"privacy": document["privacy"] | {"drawn": 2}})


def test_the_folder_verifies_and_its_report_says_how_much_and_what_is_not_covered(run: runs.Run) -> None:
    assert len(list(verify.verify(run.folder))) == 5
    page = run.report.read_text().replace("\N{NO-BREAK SPACE}", " ")
    for words in ("Privacy of whole sites, by site (add or remove one)", "Not covered: figures", "who was asked"):
        assert words in page
    assert "no privacy" not in page


def test_simulated_noise_repeats_is_called_no_privacy_and_leaves_the_baselines_alone(
    tiny_vit: Path, tiny_manifest: Path, tmp_path: Path, run: runs.Run
) -> None:
    agreed = central(tiny_vit, rate=RATE, generator="simulated", noise=50.0)
    options = Options(baselines=True)
    one = simulate(agreed, tiny_manifest, tmp_path / "one", options)
    other = simulate(agreed, tiny_manifest, tmp_path / "other", Options(workers=2))
    assert one.summary["adapter_sha256"] == other.summary["adapter_sha256"] != run.summary["adapter_sha256"]
    assert "simulated noise: no privacy" in one.report.read_text()
    plain = studies.loads(study_text(tiny_vit).replace("[rounds]", '[rounds]\nweight = "equal"'))
    bare = simulate(plain, tiny_manifest, tmp_path / "bare", options)
    for site, found in one.summary["sites"].items():
        for model in ("alone", "central"):
            assert found[model] == bare.summary["sites"][site][model]


def test_noise_at_the_sites_and_at_the_server_go_together(tiny_vit: Path, tiny_manifest: Path, tmp_path: Path) -> None:
    text = central(tiny_vit).toml().replace("[training]", "[training]\nsteps = 2")
    agreed = studies.loads(f"{text}\n[privacy]\nnoise = 1.5\ndelta = 1e-3\nexpected = 6\n")
    found = simulate(agreed, tiny_manifest, tmp_path / "run", Options())
    for record in found.rounds:
        assert record["privacy"]["unit"] == "site"
        assert {row["privacy"]["unit"] for row in record["sites"].values()} == {"patient"}


@pytest.mark.parametrize("more", [{"mechanism": "banded", "bands": 2}, {"clipping": "adaptive", "rate": 0.01}])
def test_groups_in_turn_and_clips_that_move_run_to_the_end(
    more: dict[str, Any], tiny_vit: Path, tiny_manifest: Path, tmp_path: Path
) -> None:
    found = simulate(central(tiny_vit, **more), tiny_manifest, tmp_path / "run", Options())
    assert len(found.rounds) == ROUNDS
    assert found.summary["privacy"]["study"] > 0
    assert found.report.is_file()
