"""Benchmarks do the work that they claim to measure; how fast is theirs to say, not a test's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from polyclinic.core import runs
from polyclinic.core.update import digest
from polyclinic.models.network import Adapted, build
from polyclinic.server.journal import Journal
from polyclinic.simulations.bench import bare, cache, methods, server
from polyclinic.simulations.bench.figure import at_most, federation, study, work
from polyclinic.simulations.simulate import Options, simulate


def test_the_bare_loop_trains_the_same_weights_as_a_simulation(tmp_path: Path) -> None:
    manifest = federation(tmp_path / "images", 2, 12)
    steps = []
    state = bare.run(work(manifest, 1), lambda: steps.append(1))
    run = simulate(study(1), manifest, tmp_path / "run", Options())
    trained = sum(weight.numel() for weight in state.values())
    assert trained == 73_728 + 385  # rank 8 on q, k, v, o of six layers of width 192, and the head
    sites = run.summary["sites"].values()
    assert len(steps) == sum(-(-site["n"]["train"]["images"] // 16) for site in sites)
    assert runs.read(run.folder).summary["rounds"] == 1


def test_the_server_takes_every_echo(tmp_path: Path) -> None:
    assert server.serve(3, tmp_path) > 0
    journal = Journal.open(tmp_path)
    assert [(len(record["sites"]), record["excluded"]) for record in journal.rounds()] == [(3, {}), (3, {})]
    journal.close()


def test_methods_are_measured_by_steps_that_train(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("vpt", "inflate", "augment"):
        found = methods.study(name)
        assert found is not None
        assert [method.method for method in found.adaptation] == ([] if name == "vpt" else ["lora"]) + [name]
        assert (found.data.depth is None) == (name != "inflate")
    built: list[Adapted] = []
    monkeypatch.setattr(methods, "build", lambda study: built.append(build(study)) or built[-1])
    found = methods.study("probe")
    assert found is not None
    step, _ = methods.work(found)
    before = digest(built[0].read())
    step()
    assert digest(built[0].read()) != before
    (figure,) = methods.against_lora(1, ["probe"])
    assert (figure.name, figure.goal) == ("probe: a step", "none")
    assert figure.detail["step_ms"] > 0  # type: ignore[operator]


def test_a_figure_is_the_ratio_of_medians_and_says_what_it_was_measured_on() -> None:
    told = json.loads(at_most("x", [3.0, 1.0, 2.0], [4.0, 4.0, 1.0], 0.6).line())
    assert (told["value"], told["reached"], told["goal"]) == (0.5, True, "<= 0.6")
    assert "torch" in told["on"]


def test_the_cache_is_measured_on_runs_that_end_with_the_same_bits() -> None:
    found = cache.last_blocks(pictures=8, size=32, repeats=1)
    assert found.goal == ">= 3.0"
    assert found.value > 0.0
    assert set(found.detail) == {"ours", "theirs", "batched"}
