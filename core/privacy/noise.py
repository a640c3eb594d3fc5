"""What private releases draw: numbers that follow from one key of 32 bytes, and that nobody without it can foresee.

The key is drawn from the operating system's generator (at a site it is the reservation's, in its ledger), or, for
simulations, worked out from a seed. It is stretched by AES-256 in counter mode. A round that is worked out again under
one key is the same release, to the bit.

Gaussian numbers are made in float64, each the scaled sum of two (Holohan & Braghin 2021, arXiv 2107.10138: from a sum
nobody works back to the uniform numbers), and what is released is rounded to a grid that depends on no data (after
Mironov 2012: the low bits of a sum would tell which numbers were added). What remains is in docs/privacy.md.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

Floats = NDArray[np.float64]
KEY = 32
"""Bytes of a key."""
GRID = 2.0**-16
"""Of the noise's own size: the step of the grid on which a release lies."""
SUMMANDS = 2


class Chance(Protocol):
    """What a private release draws from."""

    def uniform(self, count: int) -> Floats:
        """[count] numbers in (0, 1], each a multiple of 2^-53: the next ones."""


class Keyed:
    """The numbers that follow from a key of 32 bytes.

    Raises:
        ValueError: a key of another length.
    """

    def __init__(self, key: bytes) -> None:
        if len(key) != KEY:
            raise ValueError(f"a key has {KEY} bytes, not {len(key)}")
        self._stream = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()

    def uniform(self, count: int) -> Floats:
        """See ``Chance``."""
        whole = np.frombuffer(self._stream.update(bytes(8 * count)), dtype="<u8") >> np.uint64(11)
        return (whole.astype(np.float64) + 1.0) * 2.0**-53


def drawn(chance: Chance, count: int, rate: float) -> NDArray[np.int64]:
    """Indices of a Poisson sample: each of ``count`` by itself with probability ``rate``, to within 2^-53."""
    return np.flatnonzero(chance.uniform(count) <= rate)


def gaussian(chance: Chance, count: int) -> Floats:
    """[count] standard Gaussian numbers, float64, each the scaled sum of two by Box and Muller's transform."""
    u = chance.uniform(2 * count)
    radius, angle = np.log(u[:count]), u[count:]
    radius *= -2.0
    np.sqrt(radius, out=radius)
    angle *= 2.0 * math.pi
    # every cosine is added to its neighbour's sine: two numbers of one pair would add up to a single one
    numbers: Floats = np.roll(radius * np.sin(angle), 1)
    numbers += np.cos(angle) * radius
    numbers /= math.sqrt(SUMMANDS)
    return numbers


def spacing(deviation: float) -> float:
    """Of the grid on which a release with noise of standard ``deviation`` lies."""
    return float(2.0 ** math.floor(math.log2(deviation)) * GRID)


def released(total: Floats, deviation: float, chance: Chance) -> Floats:
    """A sum with noise of standard ``deviation`` on every number, rounded to the grid.

    ``deviation`` 0 releases the sum as it is: no privacy, for tests alone.
    """
    if deviation == 0.0:
        return total
    return on_grid(total + deviation * gaussian(chance, total.size).reshape(total.shape), deviation)


def on_grid(noised: Floats, deviation: float) -> Floats:
    """A noised sum, rounded to the grid."""
    step = spacing(deviation)
    rounded: Floats = np.rint(noised / step) * step
    return rounded
