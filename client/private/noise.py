"""Where a private step's chance comes from: the operating system, or, for simulations, a seed.

Secure numbers are the key stream of AES-256 in counter mode under a fresh key of the operating system's generator for
every draw. Gaussian numbers are made in float64, each the scaled sum of two (Holohan & Braghin 2021, arXiv 2107.10138:
from a sum nobody works back to the uniform numbers), and what is released is rounded to a grid that depends on no data
(after Mironov 2012: the low bits of a sum would tell which numbers were added). What remains is in docs/privacy.md.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]
GRID = 2.0**-16
"""Of the noise's own size: the step of the grid on which a release lies."""
SUMMANDS = 2


class Chance(Protocol):
    """What a private step draws from."""

    @property
    def kind(self) -> Literal["system", "simulated"]:
        """Whether anybody could foresee it."""

    def uniform(self, count: int) -> Floats:
        """[count] numbers in (0, 1], each a multiple of 2^-53."""


@dataclass(frozen=True)
class System:
    """The operating system's secure generator, stretched by a stream cipher."""

    kind: Literal["system"] = "system"
    entropy: Callable[[int], bytes] = os.urandom

    def uniform(self, count: int) -> Floats:
        """See ``Chance``."""
        cipher = Cipher(algorithms.AES256(self.entropy(32)), modes.CTR(bytes(16)))
        whole = np.frombuffer(cipher.encryptor().update(bytes(8 * count)), dtype="<u8") >> np.uint64(11)
        return (whole.astype(np.float64) + 1.0) * 2.0**-53


class Simulated:
    """A seeded generator: reproducible, and so no protection whatever."""

    kind: Literal["simulated"] = "simulated"

    def __init__(self, seed: int) -> None:
        self._generator = np.random.Generator(np.random.Philox(seed))

    def uniform(self, count: int) -> Floats:
        """See ``Chance``."""
        return (self._generator.integers(0, 2**53, count).astype(np.float64) + 1.0) * 2.0**-53


def drawn(chance: Chance, count: int, rate: float) -> NDArray[np.int64]:
    """Indices of a Poisson sample: each of ``count`` by itself with probability ``rate``, to within 2^-53."""
    return np.flatnonzero(chance.uniform(count) <= rate)


def gaussian(chance: Chance, count: int) -> Tensor:
    """[count] standard Gaussian numbers, float64, each the scaled sum of two by Box and Muller's transform."""
    u = torch.from_numpy(chance.uniform(2 * count))
    radius, angle = u[:count].log_().mul_(-2.0).sqrt_(), u[count:].mul_(2.0 * math.pi)
    # every cosine is added to its neighbour's sine: two numbers of one pair would add up to a single one
    other = (radius * angle.sin()).roll(1)
    numbers: Tensor = angle.cos_().mul_(radius).add_(other).div_(math.sqrt(SUMMANDS))
    return numbers


def released(total: Tensor, deviation: float, chance: Chance) -> Tensor:
    """A sum with noise of standard ``deviation`` on every number, rounded to the grid; float64, as ``total`` is.

    ``deviation`` 0 releases the sum as it is: no privacy, for tests alone.
    """
    if deviation == 0.0:
        return total
    noise = gaussian(chance, total.numel()).view(total.shape).to(total.device)
    grid = 2.0 ** math.floor(math.log2(deviation)) * GRID
    return torch.round((total + deviation * noise) / grid) * grid
