"""The images of one site, decoded once and kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from polyclinic.client.data.decoder import Taken
from polyclinic.client.data.images import Pixels
from polyclinic.client.data.manifest import Row
from polyclinic.client.data.pictures import pictures
from polyclinic.client.data.quarantine import advised
from polyclinic.client.data.targets import targets
from polyclinic.core.errors import DataError
from polyclinic.core.study import SPLITS, Data

if TYPE_CHECKING:
    from polyclinic.models.contracts import Task


@dataclass(frozen=True, eq=False)
class Images:
    """The images of one split, in the order of their names.

    Attributes:
        pixels: uint8 [N, C, (D,) S, S]; C is 1 if all pictures are grey (the model repeats it), else 3.
        targets: [N, …] as the task has them: for classification int64 [N], or [N, classes] of 0 and 1; for
            segmentation uint8 [N, (D,) S, S].
        patients: whose image each is.
        known: mm between neighbouring pixels, [N, 2 or 3] along (D,) H, W, nan where unknown; None if nobody asked.
        taken: how each was taken, as far as its file says: see ``readers.acquisition``; () if nobody asked.
    """

    pixels: Pixels
    targets: np.ndarray
    patients: tuple[str, ...]
    known: np.ndarray | None = None
    taken: tuple[Taken, ...] = ()

    @property
    def spacing(self) -> np.ndarray:
        """[N, 2 or 3] mm between neighbouring pixels; nan where unknown."""
        return np.full((len(self), self.pixels.ndim - 2), np.nan) if self.known is None else self.known

    def __len__(self) -> int:
        return len(self.patients)


@dataclass(frozen=True, eq=False)
class SiteData:
    """What one site holds. ``rows`` may come in any order and are kept sorted by name.

    Raises:
        DataError: a row belongs to another site.
    """

    site: str
    rows: tuple[Row, ...]
    data: Data
    task: Task
    _decoded: dict[str, Images] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        for row in self.rows:
            if row.site != self.site:
                raise DataError(f"line {row.line} belongs to site '{row.site}'", where=f"site '{self.site}'")
        object.__setattr__(self, "rows", tuple(sorted(self.rows, key=lambda row: row.name)))

    def images(self, split: str) -> Images:
        """The images of ``train``, ``val`` or ``test``: decoded on the first call and then kept. May hold none.

        Raises:
            DataError: there is no such split, or an image cannot be read.
        """
        if split not in SPLITS:
            raise DataError(f"there is no split '{split}'", where=f"site '{self.site}'", remedy="train, val or test")
        if split not in self._decoded:
            rows = [row for row in self.rows if row.split == split]
            found, spacing = targets(rows, self.data, self.task)
            taken: list[Taken] = []
            pixels, patients = _stacked(rows, self.data, taken.append), tuple(row.patient for row in rows)
            self._decoded[split] = Images(pixels, found, patients, spacing, tuple(taken))
        return self._decoded[split]

    def sizes(self) -> dict[str, tuple[int, int]]:
        """(images, patients) of every split; nothing is decoded."""
        held = {split: [row.patient for row in self.rows if row.split == split] for split in SPLITS}
        return {split: (len(patients), len(set(patients))) for split, patients in held.items()}


def _stacked(rows: Sequence[Row], data: Data, tell: Callable[[Taken], None]) -> Pixels:
    """uint8 [N, C, (D,) S, S]: one channel until the first picture in colour turns up."""
    size = (*([] if data.depth is None else [data.depth]), data.image_size, data.image_size)
    pixels = np.empty((len(rows), 1, *size), dtype=np.uint8)
    with pictures(data, tell) as read:
        for i, row in enumerate(rows):
            try:
                picture = read(row.path)
            except DataError as failure:
                raise advised(failure) from failure
            if len(picture) > pixels.shape[1]:
                grey = pixels[:i]
                pixels = np.empty((len(rows), *picture.shape), dtype=np.uint8)
                pixels[:i] = grey
            pixels[i] = picture
    return pixels
