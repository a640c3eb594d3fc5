"""What a site keeps for itself from round to round: tensors that never leave, as they were after each round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from polyclinic.core import files
from polyclinic.core.errors import RunError

Kept = Mapping[str, Tensor]
ROUNDS = 3
"""Rounds of a run whose state is held: one that a coordinator repeats begins again from the round before it."""


@dataclass(frozen=True, eq=False)
class Keep:
    """A site's own state, by run and round; in a folder, or without one only as long as this process lives."""

    folder: Path | None = None
    _held: dict[tuple[str, int], Kept] = field(default_factory=dict, init=False, repr=False)

    def before(self, run: str, round_number: int) -> Kept | None:
        """What the last round before ``round_number`` left; None if this site has not trained in this run.

        Raises:
            RunError: it is there and cannot be read.
        """
        earlier = [number for number in self._rounds(run) if number < round_number]
        if not earlier:
            return None
        if self.folder is None:
            return self._held[run, max(earlier)]
        path = self._path(run, max(earlier))
        try:
            return load(path.read_bytes())
        except (OSError, SafetensorError, ValueError) as failure:
            remedy = "restore it from a copy; deleting the folder of the run begins this site's own state anew"
            raise RunError(
                f"the site's own state cannot be read: {failure}", where=str(path), remedy=remedy
            ) from failure

    def after(self, run: str, round_number: int, kept: Kept) -> None:
        """Keeps what a round left, whatever an earlier try at it left; nothing is written if there is nothing."""
        if not kept:
            return
        if self.folder is None:
            self._held[run, round_number] = dict(kept)
        else:
            path = self._path(run, round_number)
            with files.explained(path):
                self.folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                files.write(path, save({name: tensor.contiguous() for name, tensor in sorted(kept.items())}))
        for number in self._rounds(run)[:-ROUNDS]:
            self._held.pop((run, number), None)
            if self.folder is not None:
                self._path(run, number).unlink(missing_ok=True)

    def _rounds(self, run: str) -> list[int]:
        if self.folder is None:
            return sorted(number for name, number in self._held if name == run)
        return sorted(int(path.stem) for path in self._path(run, 0).parent.glob("*.safetensors") if path.stem.isdigit())

    def _path(self, run: str, number: int) -> Path:
        assert self.folder is not None
        return self.folder / run / f"{number}.safetensors"
