"""polyclinic audit: what it says of a study that holds, of one that does not, and of one that claims nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Call


@pytest.fixture
def private_study(study_file: Path, tmp_path: Path) -> Path:
    text = study_file.read_text().replace("batch_size = 4", "batch_size = 8\nsteps = 2")
    path = tmp_path / "private.toml"
    path.write_text(text.replace("count = 2", 'count = 2\nweight = "patients"') + "\n[privacy]\nnoise = 0.5\n")
    return path


def test_a_claim_that_stands(polyclinic: Call, private_study: Path, tiny_manifest: Path) -> None:
    words = ("--data", tiny_manifest, "--canaries", 60, "--seed", 3, "--full", "--kind", "gradient")
    said = polyclinic("audit", private_study, *words)
    assert said.code == 0
    first = said.out.splitlines()[0]
    assert (
        first == "One site, 60 canaries. Every ε is of a whole run, for any patient (add or remove one), at δ = 1e-05:"
    )
    assert "stands" in said.out
    assert said.out.count(" passed ") == 7
    assert "no proof of privacy" in said.out.splitlines()[-1]
    assert "checked: ledger" in said.err


def test_a_study_that_does_not_hold_is_told_as_such(
    polyclinic: Call, private_study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polyclinic.client.privacy.record.Reservation.stream", lambda self, what: bytes(32))
    said = polyclinic("audit", private_study, "--canaries", 10, "--seed", 3, "--kind", "gradient", "--json")
    told = json.loads(said.out)
    assert (said.code, told["passed"], told["generator"]) == (1, False, "simulated")
    assert [one["check"] for one in told["checks"] if not one["passed"]] == ["fresh noise", "statistics"]
    assert "correlation +1.000" in next(one["figure"] for one in told["checks"] if one["check"] == "fresh noise")
    (attack,) = told["attacks"]
    assert attack["bound"] <= attack["claim"]


def test_a_study_without_privacy_is_refused(polyclinic: Call, study_file: Path) -> None:
    assert "no section [privacy]" in polyclinic("audit", study_file).complaint
