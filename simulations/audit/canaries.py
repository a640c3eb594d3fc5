"""Canaries: made-up patients, each of whom takes part by a coin, and a step that gives them the gradients they are for.

Whoever does not take part is drawn as before and adds nothing, for that is how neighbours are defined: the number of
patients is known. All the rest of the step, and all around it, is the site's own code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyclinic.client.private.step import Gradients, Make, Portion, PrivateStep, Terms
from polyclinic.core.privacy.noise import Chance
from polyclinic.models.contracts import Objective, Views
from polyclinic.models.network import Network

Kind = Literal["gradient", "input"]
FAR = 10.0
"""How much longer than ``clip`` a gradient canary is, so that what clips it is seen to work."""


@dataclass(frozen=True, eq=False)
class Directions:
    """One direction a canary, over all weights that train and travel; any two are orthogonal, as they share no number.

    Attributes:
        shapes: weight → its shape, in the order in which numbers are counted.
        owner: [numbers] which canary each number belongs to, or -1.
        sign: [numbers] 1.0 or -1.0.
    """

    shapes: Mapping[str, tuple[int, ...]]
    owner: NDArray[np.int64]
    sign: NDArray[np.float32]

    @staticmethod
    def draw(shapes: Mapping[str, tuple[int, ...]], count: int, rng: np.random.Generator) -> Directions:
        """``count`` directions, or one for each number where there are fewer of these: see ``count``."""
        numbers = sum(math.prod(shape) for shape in shapes.values())
        owner = np.arange(numbers) // max(1, numbers // count)
        owner = np.where(owner < count, owner, -1)
        return Directions(shapes, rng.permutation(owner), rng.choice(np.array([-1, 1], np.float32), numbers))

    @cached_property
    def count(self) -> int:
        """How many there are."""
        return int(self.owner.max()) + 1

    def rows(self, canary: int, norm: float) -> dict[str, NDArray[np.float32]]:
        """Weight → the canary's gradient, ``norm`` long over all of them."""
        mine = np.where(self.owner == canary, self.sign, np.float32(0))
        return self._split(mine * np.float32(norm / math.sqrt(np.count_nonzero(mine))))

    def along(self, moved: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float64]:
        """[count] inner products of each canary's direction, of length 1, with ``moved``."""
        flat = np.concatenate([np.asarray(moved[name], np.float64).reshape(-1) for name in self.shapes])
        owned = self.owner >= 0
        sums = np.bincount(self.owner[owned], (flat * self.sign)[owned], self.count)
        return np.asarray(sums / np.sqrt(np.bincount(self.owner[owned], minlength=self.count)))

    def _split(self, flat: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        ends = np.cumsum([math.prod(shape) for shape in self.shapes.values()])[:-1]
        parts = zip(self.shapes.items(), np.split(flat, ends), strict=True)
        return {name: part.reshape(shape) for (name, shape), part in parts}


@dataclass(frozen=True, eq=False)
class Canaries:
    """Canaries among a site's training patients.

    Attributes:
        places: place of each canary's pictures in the pool → which canary it is.
        inside: [count] the coins: who takes part.
        directions: of gradient canaries; None for input canaries, whose gradient is that of their own picture.
    """

    places: Mapping[int, int]
    inside: NDArray[np.bool_]
    directions: Directions | None = None

    def of(self, portion: Portion) -> list[int]:
        """[count of the portion] which canary each of its units is, or -1."""
        found = [-1] * portion.count
        for unit, place in zip(portion.patients.tolist() if portion.places else (), portion.places, strict=True):
            found[unit] = self.places.get(place, -1)
        return found


@dataclass(frozen=True)
class Audited:
    """Makes steps as ``make`` does, in which canaries have the gradients that they are for: see ``Make``."""

    make: Make
    canaries: Canaries

    def __call__(
        self, network: Network, objective: Objective, terms: Terms, chance: Chance, *, opacus: bool = False
    ) -> PrivateStep:
        """See ``Make``."""
        step = self.make(network, objective, terms, chance, opacus=opacus)
        true = step.by_patient
        shapes = {name: weight for name, weight in network.named_parameters() if weight.requires_grad}

        def by_patient(portion: Portion) -> Gradients:
            which = self.canaries.of(portion)
            real = [canary < 0 or self._has_pictures(canary) for canary in which]
            if all(real):
                return true(portion)
            rows = {name: w.new_zeros((portion.count, *w.shape)) for name, w in shapes.items()}
            if any(real):
                for name, found in true(only(portion, real)).items():
                    rows[name][torch.tensor(real)] = found
            for unit, canary in enumerate(which):
                if not real[unit] and self.canaries.inside[canary]:
                    self._give(rows, unit, canary, FAR * terms.clip)
            return rows

        step.by_patient = by_patient  # type: ignore[method-assign]
        return step

    def _has_pictures(self, canary: int) -> bool:
        return self.canaries.directions is None and bool(self.canaries.inside[canary])

    def _give(self, rows: Gradients, unit: int, canary: int, norm: float) -> None:
        assert self.canaries.directions is not None, "only gradient canaries take part without their pictures"
        for name, row in self.canaries.directions.rows(canary, norm).items():
            rows[name][unit] = torch.from_numpy(row)


def only(portion: Portion, kept: Sequence[bool]) -> Portion:
    """A portion's units of which ``kept`` [count] is true."""
    chosen = torch.tensor(kept, device=portion.patients.device)
    pictures: Tensor = chosen[portion.patients]
    number = torch.cumsum(chosen, dim=0) - 1
    views = Views(portion.views.pixels[pictures], portion.views.target[pictures])
    places = tuple(place for place, there in zip(portion.places, pictures.tolist(), strict=True) if there)
    return Portion(views, number[portion.patients[pictures]], sum(kept), places)
