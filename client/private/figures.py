"""Figures told under privacy: one bounded vector a unit, summed, with noise that follows from the reservation's key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch

from polyclinic.client.private.noise import released
from polyclinic.core.privacy.events import Event
from polyclinic.core.privacy.noise import Chance
from polyclinic.core.statistics.monoid import Floats
from polyclinic.core.statistics.noised import UNIT, Noised

N = TypeVar("N", bound=Noised)


def noised(blank: N, rows: Floats, patients: Sequence[str], event: Event, chance: Chance) -> N:
    """The statistic of ``rows`` with the noise of ``event``.

    A patient with several images is the mean of their vectors. Each vector is cut to length 1, whoever worked it out,
    and rounded towards 0, which makes none longer: what a unit can change of the sum is at most 1.

    Args:
        blank: the statistic of nobody; its cells are of one vector's shape.
        rows: [N, …] one vector an image.
        patients: [N] whose image each is.
    """
    vectors = rows.reshape(len(rows), blank.cells.size)
    if event.unit == "patient":
        names, whose = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
        total = np.zeros((len(names), vectors.shape[1]))
        np.add.at(total, whose, vectors)
        vectors = total / np.bincount(whose)[:, None]
    # whether some patient's images make the model give no numbers must not show, either: that patient adds nothing
    vectors = np.where(np.isfinite(vectors).all(axis=1, keepdims=True), vectors, 0.0)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    cut = vectors / np.maximum(lengths, 1.0)
    whole = np.trunc(cut * (1.0 - 2.0**-40) * 2.0**UNIT).sum(axis=0)  # 2^-40: for the division's own rounding
    noisy = released(torch.from_numpy(whole / 2.0**UNIT), event.noise, chance).numpy()
    return replace(
        blank,
        patients=len(set(patients)),
        units=len(vectors),
        variance=round(event.noise**2 * 2**UNIT),
        cells=np.rint(noisy * 2.0**UNIT).astype(np.int64).reshape(blank.cells.shape),
    )
