"""A map of sites from how far they are apart."""

from __future__ import annotations

import numpy as np

from polyclinic.core.statistics.monoid import Floats


def classical_mds(distances: Floats) -> Floats:
    """[S, 2] places whose distances are nearest to ``distances`` [S, S] (Torgerson 1952, Psychometrika 17:401-419).

    Deterministic: on each axis the place furthest from the middle (the first of equals) is on the positive side.
    """
    size = len(distances)
    centre = np.eye(size) - 1 / max(1, size)
    values, vectors = np.linalg.eigh(-0.5 * centre @ distances**2 @ centre)
    places = np.zeros((size, 2))
    for axis in range(min(2, size)):
        place = vectors[:, -1 - axis] * np.sqrt(max(0.0, values[-1 - axis]))
        # equal to 1e-9: rounding must not choose the sign
        furthest = np.flatnonzero(np.abs(place) >= np.abs(place).max() * (1 - 1e-9))[0]
        places[:, axis] = -place if place[furthest] < 0 else place
    return places
