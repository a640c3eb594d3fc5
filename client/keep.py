"""What a site keeps for itself from round to round: tensors that never leave, as they were after each round."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from polyclinic.core import files
from polyclinic.core.errors import RunError

Kept = Mapping[str, Tensor]
ROUNDS = 3
"""Rounds of a run whose state is held: one that a coordinator repeats begins again from the round before it."""
RUNS = 8
"""Runs of a folder whose states are held: however many a coordinator begins, a site's disk does not fill."""
CHECK = "sha256"


@dataclass(frozen=True, eq=False)
class Keep:
    """A site's own state, by run and round; in a folder, or without one only as long as this process lives.

    The folder is its owner's alone, and what a coordinator calls a run becomes no path.
    """

    folder: Path | None = None
    _held: dict[tuple[str, int], Kept] = field(default_factory=dict, init=False, repr=False)

    def before(self, run: str, round_number: int) -> Kept | None:
        """What the last round before ``round_number`` left; None if this site has not trained in this run.

        Raises:
            RunError: it is there and cannot be read, or was there and is no longer held.
        """
        held = self._rounds(run)
        earlier = [number for number in held if number < round_number]
        if not earlier and len(held) >= ROUNDS and round_number > 1:  # to begin anew would be another training
            raise RunError(
                f"the site's own state before round {round_number} is no longer held",
                where=run if self.folder is None else str(self._folder(run)),
                remedy=f"a round can be repeated while it is one of the last {ROUNDS}; begin another run",
            )
        if not earlier:
            return None
        return self._held[run, max(earlier)] if self.folder is None else _read(self._path(run, max(earlier)))

    def after(self, run: str, round_number: int, kept: Kept) -> None:
        """Keeps what a round left, whatever an earlier try at it left; a run that never leaves anything has no file.

        Raises:
            RunError: it cannot be written; what stood there before still stands.
        """
        if not kept and not self._rounds(run):
            return
        if self.folder is None:
            self._held[run, round_number] = {name: tensor.clone() for name, tensor in kept.items()}
        else:
            path = self._path(run, round_number)
            with files.explained(path):
                for folder in (self.folder.parent, self.folder, path.parent):
                    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            _write(path, kept)
        rounds = self._rounds(run)  # of which those after this one are of a course that the coordinator took back
        for number in set(rounds) - set([each for each in rounds if each <= round_number][-ROUNDS:]):
            self._held.pop((run, number), None)
            if self.folder is not None:
                self._path(run, number).unlink(missing_ok=True)
        self._forget_runs()

    def _rounds(self, run: str) -> list[int]:
        if self.folder is None:
            return sorted(number for name, number in self._held if name == run)
        return sorted(int(path.stem) for path in self._folder(run).glob("*.safetensors") if path.stem.isdigit())

    def _forget_runs(self) -> None:
        runs = [] if self.folder is None else [path for path in self.folder.iterdir() if path.is_dir()]
        for old in sorted(runs, key=lambda path: (path.stat().st_mtime_ns, path.name))[:-RUNS]:
            shutil.rmtree(old, ignore_errors=True)

    def _folder(self, run: str) -> Path:
        assert self.folder is not None
        return self.folder / hashlib.sha256(run.encode()).hexdigest()[:32]

    def _path(self, run: str, number: int) -> Path:
        return self._folder(run) / f"{number}.safetensors"


def _write(path: Path, kept: Kept) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in sorted(kept.items())}
    files.write(path, save(tensors, {CHECK: _check(tensors)}))


def _read(path: Path) -> Kept:
    try:
        with safe_open(path, framework="pt") as source:
            told = source.metadata() or {}
            kept = {name: source.get_tensor(name) for name in sorted(source.keys())}
        if told.get(CHECK) != _check(kept):
            raise ValueError("its checksum is another")
    except (OSError, SafetensorError, ValueError) as failure:
        remedy = f"restore it from a copy; deleting {path.parent} begins this site's own state anew"
        raise RunError(f"the site's own state cannot be read: {failure}", where=str(path), remedy=remedy) from failure
    return kept


def _check(tensors: Kept) -> str:
    return hashlib.sha256(save(dict(tensors))).hexdigest()
