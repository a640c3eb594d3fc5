"""Seeds are derived from what a random choice is for, never drawn from anything global."""

from __future__ import annotations

import hashlib

import numpy as np


def derive(*purpose: int | str) -> int:
    """A 63-bit seed that depends on every part of ``purpose``, such as (study seed, round, site, "batches").

    >>> derive(1, "north", 3) == derive(1, "north", 3) != derive(1, "north", 4)
    True
    """
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in purpose)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(*purpose: int | str) -> np.random.Generator:
    """A NumPy generator seeded by ``derive``."""
    return np.random.Generator(np.random.PCG64(derive(*purpose)))
