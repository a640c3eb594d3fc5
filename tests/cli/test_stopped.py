"""Runs that end before their end, by a key, a kill or a full disk: they say so, and resume to the same bits."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
from pathlib import Path

import pytest

from polyclinic.core import runs
from polyclinic.core import study as studies
from polyclinic.simulations.simulate import Options, simulate
from tests.cli.conftest import COMMAND, Call, Said, environment

ROUNDS = 15


@pytest.fixture(scope="module")
def expected(long_study: Path, tiny_manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """SHA-256 of the adapter of a run that nothing stopped."""
    run = simulate(studies.load(long_study), tiny_manifest, tmp_path_factory.mktemp("whole") / "run", Options())
    return str(run.summary["adapter_sha256"])


def words(study: Path, manifest: Path, folder: Path) -> list[str]:
    return ["simulate", str(study), "--data", str(manifest), "--run", str(folder), "--workers", "2"]


def started(command: list[str], round_number: int) -> subprocess.Popen[str]:
    """The command in a process of its own, as far as the end of a round."""
    running = subprocess.Popen(
        [*COMMAND, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment()
    )
    assert running.stdout is not None
    while not (line := running.stdout.readline()).startswith(f"round {round_number}/"):
        assert line, running.communicate()[1]
    return running


def ended(running: subprocess.Popen[str]) -> Said:
    out, err = running.communicate(timeout=60)
    return Said(running.returncode, out, err)


def rounds(folder: Path) -> int:
    return len((folder / "rounds.jsonl").read_text().splitlines())


def test_ctrl_c_stops_at_once_and_says_how_to_go_on(
    expected: str, polyclinic: Call, long_study: Path, tiny_manifest: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    command = words(long_study, tiny_manifest, folder)
    running = started(command, 2)
    running.send_signal(signal.SIGINT)
    said = ended(running)
    assert said.code == 130
    assert said.err.strip() == (
        f"Stopped. Nothing is lost: run the same command with --run {folder} --resume to go on."
    )
    assert 2 <= rounds(folder) < ROUNDS
    assert not (folder / "summary.json").exists()
    assert "has not finished" in polyclinic("evaluate", folder, "--data", tiny_manifest).complaint
    assert polyclinic(*command, "--resume").code == 0
    assert runs.read(folder).summary["adapter_sha256"] == expected


def test_a_killed_worker_is_named_and_the_run_resumes(
    expected: str, polyclinic: Call, long_study: Path, tiny_manifest: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    command = words(long_study, tiny_manifest, folder)
    running = started(command, 1)
    workers = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    os.kill(int(workers[-1]), signal.SIGKILL)
    complaint = ended(running).complaint
    assert "the worker process was killed (often memory ran out: resume with fewer --workers" in complaint
    assert complaint.count("\n") == 1
    assert 1 <= rounds(folder) < ROUNDS
    assert polyclinic(*command, "--resume").code == 0
    assert runs.read(folder).summary["adapter_sha256"] == expected


SMALL_DISK = """
mount -t tmpfs -o size={size}k tmpfs {disk} || exit 99
head -c {taken}k /dev/zero > {disk}/taken
{command}
echo "code $?, left: $(ls {disk} | tr "\\n" " ")"
rm {disk}/taken
{then}
"""
NO_MOUNT = """
(ulimit -f {limit}; {command}; echo "code $?, left: $(ls {disk} | tr "\\n" " ")")
{then}
"""


def may_mount() -> bool:
    """Whether a name space with a file system of one's own may be had; where not, files are kept small instead."""
    try:
        done = subprocess.run(
            ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True, check=False
        )
    except OSError:
        return False
    return done.returncode == 0


def on_a_small_disk(command: list[str], then: str, folder: Path, free: int) -> Said:
    """Runs ``command`` into FOLDER/disk/run with ``free`` KiB left, and ``then`` something with plenty."""
    (folder / "disk").mkdir()
    script = (SMALL_DISK if may_mount() else NO_MOUNT).format(
        size=8192, taken=8192 - free, limit=free * 3 // 2, disk=shlex.quote(str(folder / "disk")),
        then=then, command=shlex.join([*COMMAND, *command]),
    )  # fmt: skip
    before = ["unshare", "-rm"] if may_mount() else []
    done = subprocess.run([*before, "sh", "-c", script], capture_output=True, text=True, check=False, env=environment())
    return Said(done.returncode, done.stdout, done.stderr)


def check_full(said: Said) -> None:
    """One clear line that names the reason and the remedy."""
    assert said.err.startswith("polyclinic: ")
    assert said.err.count("\n") == 1
    assert "cannot be written" in said.err
    assert "free some space" in said.err


def test_a_disk_that_is_full_at_the_start_is_named_and_no_folder_is_left(
    long_study: Path, tiny_manifest: Path, tmp_path: Path
) -> None:
    command = words(long_study, tiny_manifest, tmp_path / "disk" / "run")
    said = on_a_small_disk(command, "true", tmp_path, 0)
    check_full(said)
    assert said.out in ("code 1, left: taken \n", "code 1, left: \n")


def test_a_disk_that_fills_in_the_middle_is_named_and_the_run_resumes_when_there_is_space(
    expected: str, long_study: Path, tiny_manifest: Path, tmp_path: Path
) -> None:
    command = words(long_study, tiny_manifest, tmp_path / "disk" / "run")
    resume = shlex.join([*COMMAND, *command, "--resume"])
    copy = shlex.join(["cp", str(tmp_path / "disk" / "run" / "summary.json"), str(tmp_path)])  # the disk goes with us
    said = on_a_small_disk(command, f"{resume} && {copy}", tmp_path, 160)
    check_full(said)
    before, _, after = said.out.partition("code 1, left: run")
    done = before.count("round ")
    assert 1 <= done < ROUNDS
    assert f"round {done + 1}/{ROUNDS}" in after, "it goes on where it stopped"
    assert json.loads((tmp_path / "summary.json").read_text())["adapter_sha256"] == expected
