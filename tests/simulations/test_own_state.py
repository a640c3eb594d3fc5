"""Sites that keep something for themselves: the same bits from every engine and after every end, and judged with it."""

from __future__ import annotations

import os
import signal
import stat
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from polyclinic.core import runs
from polyclinic.core import study as studies
from polyclinic.core.errors import EngineError
from polyclinic.core.study import Study
from polyclinic.models.network import build
from polyclinic.server.rounds import Event
from polyclinic.simulations.simulate import OWN, Options, simulate
from tests.conftest import study_text


@pytest.fixture(scope="module")
def study(tiny_vit: Path) -> Study:
    """Three rounds of LoRA with normalisations that stay at home."""
    text = study_text(tiny_vit, '[[adaptation]]\nmethod = "fedbn"\n')
    return studies.loads(text.replace("count = 2", "count = 3"))


@pytest.fixture(scope="module")
def finished(study: Study, tiny_manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> runs.Run:
    return simulate(study, tiny_manifest, tmp_path_factory.mktemp("own") / "whole", Options(baselines=True))


def same(one: runs.Run, other: runs.Run) -> bool:
    """Adapters, every figure, and what the sites kept."""
    equal = one.summary["adapter_sha256"] == other.summary["adapter_sha256"]
    return equal and one.summary["sites"] == other.summary["sites"] and own(one.folder) == own(other.folder)


def own(folder: Path) -> dict[str, bytes]:
    """site/round → what the site kept."""
    found = (folder / OWN).rglob("*.safetensors")
    return {f"{path.relative_to(folder / OWN).parts[0]}/{path.stem}": path.read_bytes() for path in found}


def test_every_site_keeps_every_round_in_a_folder_that_is_the_owners_alone(finished: runs.Run, study: Study) -> None:
    assert set(own(finished.folder)) == {
        f"{site}/{number}" for site in ("north", "south", "west") for number in (1, 2, 3)
    }
    assert stat.S_IMODE((finished.folder / OWN).stat().st_mode) == 0o700
    for path in (finished.folder / OWN).rglob("*.safetensors"):
        with safe_open(path, "pt") as kept:
            names = set(kept.keys())
        assert {name.removeprefix("personal/") for name in names} == set(build(study).personal)


def test_workers_change_no_bit(finished: runs.Run, study: Study, tiny_manifest: Path, tmp_path: Path) -> None:
    assert same(simulate(study, tiny_manifest, tmp_path / "two", Options(workers=2, baselines=True)), finished)


def children() -> set[int]:
    """Processes that this one has started and not yet seen the end of."""
    return {int(pid) for pid in Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()}


@pytest.mark.parametrize("moment", [("site", 2), ("done", 2), ("round", 3), ("site", 3)])
def test_killed_workers_and_a_resumed_run_give_the_same_bits(
    moment: tuple[str, int], finished: runs.Run, study: Study, tiny_manifest: Path, tmp_path: Path
) -> None:
    killed: list[int] = []
    others = children()  # of tests before this one

    def kill_all(event: Event) -> None:
        if (event.kind, event.round) == moment and not killed:
            killed.extend(pid for pid in children() - others if b"pytest" in Path(f"/proc/{pid}/cmdline").read_bytes())
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    folder = tmp_path / "run"
    with pytest.raises(EngineError, match="worker process was killed"):
        simulate(study, tiny_manifest, folder, Options(workers=2, baselines=True), kill_all)
    assert len(killed) == 2
    again = simulate(study, tiny_manifest, folder, Options(workers=2, baselines=True, resume=True))
    assert same(again, finished)


def test_a_run_that_is_resumed_without_its_sites_states_is_another_one(
    finished: runs.Run, study: Study, tiny_manifest: Path, tmp_path: Path
) -> None:
    import shutil

    class StopError(Exception):
        pass

    def stop(event: Event) -> None:
        if (event.kind, event.round) == ("done", 2):
            raise StopError

    folder = tmp_path / "run"
    with pytest.raises(StopError):
        simulate(study, tiny_manifest, folder, Options(), stop)
    shutil.rmtree(folder / OWN)
    again = simulate(study, tiny_manifest, folder, Options(resume=True))
    assert again.summary["adapter_sha256"] != finished.summary["adapter_sha256"]


def test_the_central_baseline_is_judged_with_the_normalisations_that_it_trained(
    finished: runs.Run, study: Study, tiny_manifest: Path, tmp_path: Path
) -> None:
    """Where all train in one place, nothing is personal: LoRA and trained norms, by another way."""
    document = study.toml().replace('method = "fedbn"', 'method = "layernorm"')
    travelling = simulate(studies.loads(document), tiny_manifest, tmp_path / "run", Options(baselines=True))

    def central(run: runs.Run) -> dict[str, Any]:
        return {site: row["central"]["test"]["nll"]["value"] for site, row in run.summary["sites"].items()}

    assert central(finished) == pytest.approx(central(travelling), abs=1e-3)
    alone = {site: row["alone"]["test"]["nll"]["value"] for site, row in finished.summary["sites"].items()}
    other = {site: row["alone"]["test"]["nll"]["value"] for site, row in travelling.summary["sites"].items()}
    assert alone == pytest.approx(other, abs=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*(subprocess .* is still running|unclosed file):ResourceWarning")  # Ray's own
def test_in_flowers_engine_the_sites_keep_the_same_bits(
    finished: runs.Run, study: Study, tiny_manifest: Path, tmp_path: Path
) -> None:
    run = simulate(study, tiny_manifest, tmp_path / "run", Options(engine="flower", workers=2, baselines=True))
    assert same(run, finished)
