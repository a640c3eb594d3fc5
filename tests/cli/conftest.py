"""The command line as a stranger meets it: the real main(), in this process or in one of its own."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from polyclinic.cli.main import main
from polyclinic.core import runs
from tests.conftest import study_text, write_images

COMMAND = [sys.executable, "-c", "from polyclinic.cli.main import main; main()"]
"""The command in a process of its own; what ``polyclinic`` on the path does, wherever that is installed."""


@dataclass(frozen=True)
class Said:
    """What a command did."""

    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """What a command that failed said, and that it was one clear line of ours, without a traceback."""
        assert self.code == 1, self
        assert "Traceback" not in self.out + self.err
        assert self.err.startswith("polyclinic: ")
        assert any(hint in self.err for hint in ("(", "did you mean", "should be")), f"no remedy: {self.err}"
        return self.err


Call = Callable[..., Said]


@pytest.fixture
def polyclinic(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Calls the command line in this process."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*words: object) -> Said:
        monkeypatch.setattr(sys, "argv", ["polyclinic", *map(str, words)])
        capsys.readouterr()
        code: object = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
        out, err = capsys.readouterr()
        return Said(int(str(code)), out, err)

    return call


def process(*words: object, cwd: Path | None = None, before: Sequence[str] = ()) -> Said:
    """Calls the command line in a process of its own."""
    command = [*before, *COMMAND, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environment())
    return Said(done.returncode, done.stdout, done.stderr)


def environment() -> dict[str, str]:
    """Ours, without what a terminal would change."""
    return {key: value for key, value in os.environ.items() if key not in ("FORCE_COLOR", "TTY_COMPATIBLE")}


@pytest.fixture(scope="session")
def study_file(tiny_vit: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny study, as a file."""
    path = tmp_path_factory.mktemp("study") / "study.toml"
    path.write_text(study_text(tiny_vit))
    return path


@pytest.fixture(scope="session")
def live_study(study_file: Path, tiny_vit: Path) -> Path:
    """The tiny study with its backbone's hash, as a live federation needs it."""
    pin = f'sha256 = "{hashlib.sha256(tiny_vit.read_bytes()).hexdigest()}"'
    path = study_file.with_name("live.toml")
    path.write_text(study_file.read_text().replace("[backbone]", f"[backbone]\n{pin}"))
    return path


@pytest.fixture(scope="session")
def long_study(study_file: Path) -> Path:
    """The tiny study, with rounds enough to be stopped in."""
    path = study_file.with_name("long.toml")
    path.write_text(study_file.read_text().replace("count = 2", "count = 15"))
    return path


@pytest.fixture(scope="session")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three plain sites, one with a single class, and one with few patients and less than a batch to train on."""
    folder = tmp_path_factory.mktemp("five")
    path = write_images(folder, {"north": 48, "south": 40, "west": 60, "one_class": 40, "small": 6})
    path.write_text(path.read_text().replace(",one_class,0,", ",one_class,1,"))
    return path


@pytest.fixture(scope="session")
def told(study_file: Path, manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Said, runs.Run]:
    """What a whole simulation, in a process of its own, said and left."""
    folder = tmp_path_factory.mktemp("runs") / "first"
    said = process("simulate", study_file, "--data", manifest, "--run", folder, "--baselines", "--workers", 1)
    assert said.code == 0, said.err
    return said, runs.read(folder)


@pytest.fixture(scope="session")
def finished(told: tuple[Said, runs.Run]) -> runs.Run:
    """That simulation's run; nobody may change it."""
    return told[1]
