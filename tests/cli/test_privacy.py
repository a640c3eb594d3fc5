"""polyclinic privacy: what a run costs before it runs, and what was spent, to be read, checked and handed on."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

import pytest

from polyclinic.client.home import Home
from polyclinic.client.privacy.ledger import Ledger
from polyclinic.client.privacy.record import Charge, Question
from polyclinic.client.settings import Rules
from polyclinic.core.privacy.accounting import epsilon, noise_for
from polyclinic.core.privacy.events import Event
from tests.cli.conftest import Call
from tests.client.test_home import KEY, home

STEP = Event("poisson_gaussian", 1.0, 0.05, 10)
SECTION = "[privacy]\nexpected = 8\nstatistics_share = 0.5\n"


@pytest.fixture
def private_study(study_file: Path, tmp_path: Path) -> Path:
    text = (
        study_file.read_text()
        .replace("batch_size = 4", "steps = 5")
        .replace("count = 2", 'count = 2\nweight = "patients"')
    )
    path = tmp_path / "private.toml"
    path.write_text(f"{text}\n{SECTION}epsilon = 3.0\n")
    return path


@pytest.fixture
def site(tmp_path: Path) -> Home:
    """A site with a limit, that has taken part in two studies with overlapping cohorts."""
    made = home(tmp_path, policy=Rules(epsilon=4.0))
    ledger = Ledger(made.privacy, KEY, clock=lambda: 1764000000.0)
    one, two = (ledger.cohort({f"patient {i}": 1 for i in range(*ends)}) for ends in ((0, 40), (30, 60)))
    for number, study, cohort in ((1, "a" * 64, one), (2, "a" * 64, one), (1, "b" * 64, two)):
        made_one = ledger.reserve(Question(study, "run", number, "base"), [Charge(cohort, "update", STEP)])
        ledger.release(made_one, f"output {number}")
    ledger.close()
    return made


def test_noise_for_a_target_site_by_site(polyclinic: Call, private_study: Path, tiny_manifest: Path) -> None:
    said = polyclinic("privacy", "plan", private_study, "--data", tiny_manifest, "--json")
    assert said.code == 0
    told = json.loads(said.out)
    assert (told["unit"], told["adjacency"], told["delta"]) == ("patient", "add or remove one", 1e-5)
    for row, patients in zip(told["sites"], (24, 20, 30), strict=True):
        assert row["units"]["train"] == patients
        assert row["noise"] == noise_for(3.0, 1e-5, 8 / patients, 10)
        assert row["epsilon"]["train"] == pytest.approx(
            epsilon([Event("poisson_gaussian", row["noise"], 8 / patients, 10)], 1e-5)
        )
        assert row["epsilon"]["val"] <= 1.5
    words = polyclinic("privacy", "plan", private_study, "--data", tiny_manifest).out
    assert "any patient of the site (add or remove one), at δ = 1e-05" in words
    assert all(name in words for name in ("north", "south", "west", "ε train"))


def test_an_epsilon_for_a_noise_also_of_a_study_that_says_nothing(
    polyclinic: Call, private_study: Path, study_file: Path, tiny_manifest: Path
) -> None:
    told = json.loads(polyclinic("privacy", "plan", private_study, "--data", tiny_manifest, "--noise", 2, "--json").out)
    assert {row["noise"] for row in told["sites"]} == {2.0}
    assert len({row["epsilon"]["train"] for row in told["sites"]}) == 3
    higher = json.loads(
        polyclinic("privacy", "plan", private_study, "--data", tiny_manifest, "--epsilon", 9, "--json").out
    )
    assert all(row["epsilon"]["train"] > 8.9 for row in higher["sites"])
    assert "no section [privacy]" in polyclinic("privacy", "plan", study_file, "--data", tiny_manifest).complaint
    steps = polyclinic("privacy", "plan", study_file, "--data", tiny_manifest, "--epsilon", 4).complaint
    assert "training.steps" in steps  # what stands against it is said, as when a study is read


def test_a_site_that_cannot_take_part_is_named_and_the_exit_code_says_so(
    polyclinic: Call, private_study: Path, tiny_manifest: Path
) -> None:
    private_study.write_text(private_study.read_text().replace("expected = 8", "expected = 22"))
    said = polyclinic("privacy", "plan", private_study, "--data", tiny_manifest)
    assert said.code == 1
    assert "privacy.expected is 22 a step, and 20 patients train here" in said.out


def test_show_tells_spent_and_left_by_study_and_cohort(polyclinic: Call, site: Home) -> None:
    told = json.loads(polyclinic("privacy", "show", "--site-folder", site.folder, "--json").out)
    assert told["epsilon"] == epsilon([STEP] * 3, 1e-5)
    assert told["left"] == 4.0 - told["epsilon"]
    assert [one["epsilon"] for one in told["studies"]] == [epsilon([STEP] * count, 1e-5) for count in (2, 1)]
    assert [one["patients"] for one in told["cohorts"]] == [40, 30]
    assert {one["epsilon"] for one in told["cohorts"]} == {told["epsilon"]}  # ten patients are in both
    stricter = json.loads(polyclinic("privacy", "show", "--ledger", site.privacy, "--delta", 1e-7, "--json").out)
    assert stricter["epsilon"] > told["epsilon"]
    assert (stricter["limit"], stricter["left"]) == (None, None)
    words = polyclinic("privacy", "show", "--site-folder", site.folder).out
    assert f"ε = {told['epsilon']:.3f} for any patient of 4: {told['left']:.2f} is left" in words
    assert "█" in words
    assert "a" * 12 in words


def test_verify_checks_signatures_and_heads_and_names_what_is_wrong(polyclinic: Call, site: Home) -> None:
    head = Ledger(site.privacy, KEY).head()[1]
    told = json.loads(polyclinic("privacy", "verify", "--site-folder", site.folder, "--head", head, "--json").out)
    assert (told["ok"], told["entries"], told["signed"]) == (True, 9, KEY.public)
    assert "older ledger" in polyclinic("privacy", "verify", "--site-folder", site.folder, "--head", "f" * 64).complaint
    db = sqlite3.connect(site.privacy / "privacy.db")
    db.execute("UPDATE entries SET line = replace(line, '\"steps\":10', '\"steps\":11') WHERE sequence = 5")
    db.commit()
    db.close()
    assert "privacy ledger, entry 6: " in polyclinic("privacy", "verify", "--ledger", site.privacy).complaint


def test_export_holds_every_entry_and_nobody(polyclinic: Call, site: Home, tmp_path: Path) -> None:
    assert polyclinic("privacy", "export", tmp_path / "out.json", "--site-folder", site.folder).code == 0
    told = json.loads((tmp_path / "out.json").read_text())
    assert [json.loads(line)["sequence"] for line in told["entries"]] == list(range(9))
    assert told["statement"]["epsilon"] == epsilon([STEP] * 3, 1e-5)
    assert "patient 1" not in (tmp_path / "out.json").read_text()


def test_no_ledger_is_made_by_looking_for_one(polyclinic: Call, tmp_path: Path) -> None:
    assert "holds no privacy.db" in polyclinic("privacy", "show", "--ledger", tmp_path / "none").complaint
    assert not (tmp_path / "none").exists()
    assert "say --site-folder" in polyclinic("privacy", "show").err
