"""A site's rules, from a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from polyclinic.client.policy import Policy, read_policy
from polyclinic.core.errors import PolicyError
from polyclinic.core.statistics.monoid import Withheld
from polyclinic.core.statistics.shift import Labels


def labels(patients: int) -> Labels:
    return Labels.of(np.zeros(patients, np.int64), [str(i) for i in range(patients)], ("a", "b"))


def test_release_at_the_limit_below_it_and_of_nobody() -> None:
    rules = Policy(minimum_patients=3)
    assert rules.release("labels", labels(3)) == labels(3)
    assert rules.release("labels", labels(2)) == Withheld("labels", 3)
    assert Policy(minimum_patients=1).release("labels", labels(0)) == Withheld("labels", 1)
    assert Policy(tell=("outcome",)).release("labels", labels(30)) is None


def test_what_is_not_written_is_careful(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text("")
    assert read_policy(path) == Policy()
    assert Policy().minimum_patients == 10
    path.write_text('minimum_patients = 20\ntell = ["outcome"]\nstudies = ["abc"]')
    assert read_policy(path) == Policy(minimum_patients=20, tell=("outcome",), studies=("abc",))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("minimum_patients = 0", "minimum_patients"),
        ("minimum_patients = true", "minimum_patients"),
        ("minimum_patient = 5", "did you mean 'minimum_patients'"),
        ('tell = ["everything"]', "tell"),
        ('studies = "some"', "studies"),
        ("minimum_patients =", "cannot be read"),
    ],
)
def test_wrong_rules_are_refused_with_their_place(text: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(PolicyError, match=rf"policy\.toml.*{reason}"):
        read_policy(path)


def test_a_file_that_is_not_there_or_not_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="cannot be read"):
        read_policy(tmp_path / "none.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(PolicyError, match="cannot be read"):
        read_policy(tmp_path / "bytes.toml")
