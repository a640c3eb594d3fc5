"""polyclinic compare, as it is called."""

from __future__ import annotations

import json
from pathlib import Path

from tests.cli.conftest import Call


def test_it_tells_a_table_sentences_and_where_the_page_is(
    polyclinic: Call, study_file: Path, manifest: Path, tmp_path: Path
) -> None:
    asked = ("compare", study_file, "--data", manifest, "--methods", "probe", "--seeds", 1, "--axes", "depth,burden")
    said = polyclinic(*asked, "--run", tmp_path / "run", "--workers", 1)
    assert said.code == 0, said.err
    assert "[1/1] probe, seed 3" in said.err
    for words in ("Regulatory burden", "Points of a change plan", "Which does best?", "compare.html"):
        assert words in said.out
    again = polyclinic(*asked, "--run", tmp_path / "run", "--resume", "--json")
    assert json.loads(again.out) == json.loads((tmp_path / "run" / "compare.json").read_text())
    assert "another --run" in polyclinic(*asked, "--run", tmp_path / "run").complaint


def test_bad_requests_are_one_clear_line(polyclinic: Call, study_file: Path, manifest: Path, tmp_path: Path) -> None:
    asked = ("compare", study_file, "--data", manifest, "--run", tmp_path / "run", "--axes", "burden")
    assert "did you mean 'lora'" in polyclinic(*asked, "--methods", "lorra").complaint
    assert "at most 2 are allowed" in polyclinic(*asked, "--methods", "lora,probe", "--most", 2).complaint
    assert "nothing to compare" in polyclinic(*asked).complaint
    assert "cannot be read" in polyclinic(*asked, "--variants", tmp_path / "none.toml").complaint
    assert polyclinic(*asked, "--methods", "lora", "--seeds", 0).code == 2
