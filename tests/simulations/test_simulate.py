"""A whole federation on a tiny ViT: the same bits from any engine and after any kill, and a folder that reads back."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polyclinic.core import ledger, runs
from polyclinic.core import study as studies
from polyclinic.core.errors import DataError, EngineError, RunError
from polyclinic.core.study import Study
from polyclinic.models.network import plain
from polyclinic.simulations.simulate import Options, simulate
from tests.conftest import study_text, write_images


@pytest.fixture(scope="module")
def finished(tiny_study: Study, tiny_manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> runs.Run:
    folder = tmp_path_factory.mktemp("runs") / "one"
    return simulate(tiny_study, tiny_manifest, folder, Options(baselines=True))


def sha(run: runs.Run) -> str:
    return str(run.summary["adapter_sha256"])


def test_the_folder_holds_what_the_contract_says(finished: runs.Run, tiny_study: Study) -> None:
    names = {path.name for path in finished.folder.iterdir()}
    assert names == {
        "study.toml", "ledger.jsonl", "journal", "adapter", "rounds.jsonl", "summary.json", "report.html", "own",
    }  # fmt: skip
    assert runs.read(finished.folder).study == tiny_study
    assert [record["round"] for record in finished.rounds] == [1, 2]
    weights = (finished.adapter / "adapter_model.safetensors").read_bytes()
    assert sha(finished) == hashlib.sha256(weights).hexdigest()
    entries = list(ledger.verify((finished.folder / "ledger.jsonl").read_text().splitlines()))
    assert [entry.kind for entry in entries] == ["start", "round", "round", "evaluation", *["baseline"] * 4, "end"]
    assert entries[-1].digest == finished.summary["ledger_head"]
    sites = finished.summary["sites"]
    assert sorted(sites) == ["north", "south", "west"]
    assert sites["west"]["n"]["train"] == {"images": 30, "patients": 30}
    for row in sites.values():
        assert row["metrics"]["test"].keys() == row["alone"]["test"].keys() == row["central"]["test"].keys()


def test_peft_loads_the_adapter_and_gives_the_outputs_that_were_judged(finished: runs.Run, tiny_manifest: Path) -> None:
    from peft import PeftModel
    from PIL import Image
    from sklearn.metrics import log_loss, roc_auc_score

    model = PeftModel.from_pretrained(plain(finished.study), str(finished.adapter)).eval()
    rows = [line.split(",") for line in tiny_manifest.read_text().splitlines()[1:]]
    chosen = [row for row in rows if row[1] == "west" and row[3] == "test"]
    pixels = np.stack([np.asarray(Image.open(tiny_manifest.parent / row[0])) for row in chosen])
    with torch.no_grad():
        logits = model(torch.from_numpy(pixels)[:, None].float() / 255)[:, 0].double().numpy()
    labels = [int(row[2]) for row in chosen]
    told = finished.summary["sites"]["west"]["metrics"]["test"]
    probabilities = 1 / (1 + np.exp(-logits))
    assert told["nll"]["value"] == pytest.approx(log_loss(labels, probabilities), abs=1e-5)
    assert told["auroc"]["value"] == pytest.approx(roc_auc_score(labels, logits), abs=told["auroc"]["bound"] + 1e-9)


def test_workers_and_order_of_lines_change_no_bit(
    finished: runs.Run, tiny_study: Study, tiny_manifest: Path, tmp_path: Path
) -> None:
    two = simulate(tiny_study, tiny_manifest, tmp_path / "two", Options(workers=2, baselines=True))
    lines = tiny_manifest.read_text().splitlines()
    shuffled = tmp_path / "shuffled.csv"
    rng = np.random.default_rng(0)
    shuffled.write_text("\n".join([lines[0], *(lines[1:][i] for i in rng.permutation(len(lines) - 1))]))
    (tmp_path / "images").symlink_to(tiny_manifest.parent / "images")
    again = simulate(tiny_study, shuffled, tmp_path / "again", Options())
    assert sha(two) == sha(again) == sha(finished)
    assert two.summary["sites"] == finished.summary["sites"]  # baselines and every figure included


def test_another_seed_gives_another_adapter(
    finished: runs.Run, tiny_study: Study, tiny_manifest: Path, tmp_path: Path
) -> None:
    other = simulate(tiny_study.with_seed(4), tiny_manifest, tmp_path / "other", Options())
    assert sha(other) != sha(finished)


def test_frozen_weights_stay_and_only_agreed_ones_move(tiny_study: Study, tiny_manifest: Path, tmp_path: Path) -> None:
    from polyclinic.client.respond import Workbench, respond
    from polyclinic.core.messages import Instruction
    from polyclinic.core.update import digest
    from polyclinic.core.version import VERSION
    from polyclinic.simulations.simulate import gather

    options = Options()
    _, cohort = gather(tiny_study, tiny_manifest, options.policy)
    bench = Workbench(tiny_study)
    before = {name: weight.clone() for name, weight in bench.adapted.network.state_dict().items()}
    start = bench.adapted.read()
    asked = Instruction(tiny_study.digest, "r", 1, "n", digest(start), True, ("val",), True, VERSION, start)
    reply = respond(bench, cohort["west"], asked)
    assert reply.update is not None
    moved = {n for n, w in bench.adapted.network.state_dict().items() if not torch.equal(w, before[n])}
    assert moved == set(bench.adapted.travelling) == set(reply.update.tensors)


KILLED = """
import sys
from pathlib import Path
from polyclinic.core import study
from polyclinic.simulations.simulate import Options, simulate
simulate(study.load(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), Options(resume=True))
"""


@pytest.mark.slow
def test_killed_at_twenty_random_moments_it_resumes_to_the_same_bits(
    tiny_vit: Path, tiny_manifest: Path, tmp_path: Path
) -> None:
    text = study_text(tiny_vit).replace("count = 2", "count = 12")
    study_file, folder = tmp_path / "study.toml", tmp_path / "killed"
    study_file.write_text(text)
    expected = simulate(studies.loads(text), tiny_manifest, tmp_path / "whole", Options())
    command = [sys.executable, "-c", KILLED, str(study_file), str(tiny_manifest), str(folder)]
    rng, kills, startup = np.random.default_rng(1), 0, None
    while kills < 20:
        begun = time.monotonic()
        process = subprocess.Popen(command)
        while startup is None and not (folder / "journal").exists():
            time.sleep(0.01)
        startup = startup or time.monotonic() - begun
        try:
            process.wait(max(0.0, begun + startup - time.monotonic()) + float(rng.uniform(0.0, 0.8)))
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            kills += 1
        else:  # it finished: begin anew
            assert process.returncode == 0
            assert sha(runs.read(folder)) == sha(expected)
            shutil.rmtree(folder)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-500:]
    again = runs.read(folder)
    assert sha(again) == sha(expected)
    for record, other in zip(again.rounds, expected.rounds, strict=True):
        assert differing(record, other) <= {"seconds", "bytes_up", "bytes_down"}  # a run's name compresses differently
    list(ledger.verify((folder / "ledger.jsonl").read_text().splitlines()))


def differing(one: Any, other: Any, name: str = "") -> set[str]:
    """Names of the keys, at any depth, under which two records differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        return {key for k in one.keys() | other.keys() for key in differing(one.get(k), other.get(k), k)}
    return set() if one == other else {name}


def test_a_killed_worker_is_a_clear_error_and_the_run_resumes(
    finished: runs.Run, tiny_study: Study, tiny_manifest: Path, tmp_path: Path
) -> None:
    def kill_one(event: Any) -> None:
        if event.kind == "done" and event.round == 1:
            children = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()
            ours = [int(pid) for pid in children if b"pytest" in Path(f"/proc/{pid}/cmdline").read_bytes()]
            os.kill(ours[-1], signal.SIGKILL)

    folder = tmp_path / "run"
    with pytest.raises(EngineError, match=r"worker process was killed.*resume"):
        simulate(tiny_study, tiny_manifest, folder, Options(workers=2), kill_one)
    again = simulate(tiny_study, tiny_manifest, folder, Options(workers=2, resume=True))
    assert sha(again) == sha(finished)


def test_refuses_another_study_other_data_and_a_folder_in_use(
    finished: runs.Run, tiny_study: Study, tiny_manifest: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    with pytest.raises(RunError, match=r"holds a run already.*--resume"):
        simulate(tiny_study, tiny_manifest, folder, Options())
    with pytest.raises(RunError, match="another study"):
        simulate(tiny_study.with_seed(9), tiny_manifest, folder, Options(resume=True))
    fewer = write_images(tmp_path / "fewer", {"north": 48, "south": 40})
    with pytest.raises(RunError, match="another data"):
        simulate(tiny_study, fewer, folder, Options(resume=True))
    assert sha(simulate(tiny_study, tiny_manifest, folder, Options(resume=True))) == sha(finished)


def test_one_site_alone_and_a_broken_image_are_refused_before_anything_is_written(
    tiny_study: Study, tmp_path: Path
) -> None:
    alone = write_images(tmp_path / "alone", {"north": 24})
    with pytest.raises(DataError, match="only site"):
        simulate(tiny_study, alone, tmp_path / "run", Options())
    broken = write_images(tmp_path / "broken", {"north": 24, "south": 24})
    picture = tmp_path / "broken" / "images" / "south-3.png"
    picture.write_bytes(picture.read_bytes()[:200])
    with pytest.raises(DataError, match=r"south-3\.png"):
        simulate(tiny_study, broken, tmp_path / "run", Options())
    assert not (tmp_path / "run").exists()


def test_small_and_one_class_sites_are_withheld_or_explained_and_crash_nothing(
    tiny_study: Study, tmp_path: Path
) -> None:
    manifest = write_images(tmp_path, {"large": 60, "small": 12, "sick": 60})
    manifest.write_text(manifest.read_text().replace(",sick,0,", ",sick,1,"))
    run = simulate(tiny_study, manifest, tmp_path / "run", Options(baselines=True))
    sites = run.summary["sites"]
    assert sites["small"]["metrics"]["test"]["nll"] == {
        "value": None, "low": None, "high": None, "why": "fewer than 10 patients",
    }  # fmt: skip
    assert sites["sick"]["metrics"]["test"]["auroc"]["why"] == "only one class present"
    assert sites["sick"]["metrics"]["test"]["nll"]["value"] > 0
    assert sites["small"]["shift"]["frechet"] is None
    assert run.summary["pooled"]["test"]["auroc"]["value"] is not None
    assert run.report.is_file()
