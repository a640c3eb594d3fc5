"""The run folder: what stands where, and how to read it. See docs/run-folder.md."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polyclinic.core import study as studies
from polyclinic.core.errors import RunError
from polyclinic.core.study import Study


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path

    @property
    def study(self) -> Study:
        """The study, every default written out."""
        return studies.load(self.folder / "study.toml")

    @property
    def adapter(self) -> Path:
        """Folder of the adapter, in peft's format."""
        return self.folder / "adapter"

    @property
    def report(self) -> Path:
        """The report, one HTML file."""
        return self.folder / "report.html"

    @property
    def summary(self) -> dict[str, Any]:
        """summary.json."""
        path = self.folder / "summary.json"
        return _object(path, _text(path))

    @property
    def rounds(self) -> list[dict[str, Any]]:
        """rounds.jsonl, one object a round."""
        path = self.folder / "rounds.jsonl"
        return [_object(path, line) for line in _text(path).splitlines()]


def read(folder: Path | str) -> Run:
    """A finished run.

    Raises:
        RunError: the folder holds none, or one that has not finished.
    """
    run = Run(Path(folder))
    if not (run.folder / "study.toml").is_file():
        raise RunError("holds no run", where=str(folder), remedy="give the folder that 'polyclinic simulate' named")
    if not (run.folder / "summary.json").is_file():
        raise RunError("this run has not finished", where=str(folder), remedy="resume it first: simulate … --resume")
    if run.summary.get("study_digest") != run.study.digest:
        raise RunError("study.toml is not the study that was run", where=str(folder), remedy="put the original back")
    return run


def _object(path: Path, text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError("it is no JSON object")
    except ValueError as failure:
        remedy = "resume the run with --resume: it is then written anew"
        raise RunError(f"is damaged: {failure}", where=str(path), remedy=remedy) from failure
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as failure:
        raise RunError(f"cannot be read: {failure}", where=str(path)) from failure
