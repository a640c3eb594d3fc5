"""Whole runs of FFA-LoRA, RoLoRA and FedSVD, plain and private: interrupted and resumed they give the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from polyclinic.core import study as studies
from polyclinic.core.study import Study
from polyclinic.server.rounds import Event
from polyclinic.simulations.simulate import Options, simulate
from tests.conftest import study_text

PRIVATE = '[privacy]\nnoise = 1.5\ndelta = 1e-3\nexpected = 6\ngenerator = "simulated"\npictures = 2\n'


def study_of(vit: Path, method: str, private: bool) -> Study:
    text = study_text(vit, PRIVATE if private else "").replace('method = "lora"', f'method = "{method}"')
    text = text.replace("[training]", "[training]\nsteps = 2").replace("count = 2", 'count = 4\nweight = "patients"')
    return studies.loads(text + ('[strategy]\nmethod = "fedsvd"\n' if method == "fedsvd" else ""))


class StopError(Exception):
    """The process ends here."""


@pytest.mark.parametrize("private", [False, True], ids=["plain", "private"])
@pytest.mark.parametrize("method", ["ffa_lora", "rolora", "fedsvd"])
def test_a_run_that_was_stopped_between_rounds_resumes_to_the_same_bits(
    method: str, private: bool, tiny_vit: Path, tiny_manifest: Path, tmp_path: Path
) -> None:
    study = study_of(tiny_vit, method, private)
    whole = simulate(study, tiny_manifest, tmp_path / "whole", Options())

    def stop(event: Event) -> None:
        if event.kind == "done" and event.round == 1:
            raise StopError

    with pytest.raises(StopError):
        simulate(study, tiny_manifest, tmp_path / "stopped", Options(), stop)
    again = simulate(study, tiny_manifest, tmp_path / "stopped", Options(resume=True))
    assert again.summary["adapter_sha256"] == whole.summary["adapter_sha256"]
    records: list[Any] = [run.rounds for run in (whole, again)]
    assert [record["result"] for record in records[0]] == [record["result"] for record in records[1]]
    assert len({record["result"] for record in records[0]}) == 4
