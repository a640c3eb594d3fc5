"""Scanner shifts of known size: what another machine would have made of the same pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from polyclinic.core.statistics.monoid import Floats

Change = Callable[[Floats, float, np.random.Generator], Floats]
"""(pictures [N, C, (D,) S, S] in [0, 1], size, generator) → the same, shifted; not yet cut to [0, 1]."""


@dataclass(frozen=True)
class Shift:
    """One kind of shift: what its size is, three sizes from mild to strong, and how it is done."""

    unit: str
    sizes: tuple[float, ...]
    change: Change


def gamma(pictures: Floats, size: float, rng: np.random.Generator) -> Floats:
    """x^size: above 1 darkens the middle greys."""
    return pictures**size


def contrast(pictures: Floats, size: float, rng: np.random.Generator) -> Floats:
    """Distances from the middle grey 0.5, times ``size``."""
    return (pictures - 0.5) * size + 0.5


def blur(pictures: Floats, size: float, rng: np.random.Generator) -> Floats:
    """A Gaussian point spread in the plane; ``size`` is its standard deviation in hundredths of the side."""
    sigma = size / 100 * pictures.shape[-1]
    blurred: Floats = ndimage.gaussian_filter(pictures, [0] * (pictures.ndim - 2) + [sigma, sigma], mode="nearest")
    return blurred


def noise(pictures: Floats, size: float, rng: np.random.Generator) -> Floats:
    """White Gaussian noise of standard deviation ``size``."""
    return pictures + size * rng.standard_normal(pictures.shape)


def resolution(pictures: Floats, size: float, rng: np.random.Generator) -> Floats:
    """Every block of ``size`` × ``size`` pixels becomes their mean; blocks at the edge may be smaller."""
    step, side = int(size), pictures.shape[-1]
    starts = np.arange(0, side, step)
    counts = np.diff(np.append(starts, side))
    for axis in (-2, -1):
        means = np.add.reduceat(pictures, starts, axis=axis)
        shape = [1] * pictures.ndim
        shape[axis] = len(counts)
        pictures = np.repeat(means / counts.reshape(shape), counts, axis=axis)
    return pictures


SHIFTS: Mapping[str, Shift] = {
    "gamma": Shift("exponent of the grey levels", (1.25, 1.6, 2.2), gamma),
    "contrast": Shift("factor about the middle grey", (0.8, 0.6, 0.4), contrast),
    "blur": Shift("standard deviation, % of the side", (1.0, 2.0, 3.0), blur),
    "noise": Shift("standard deviation, share of full scale", (0.02, 0.05, 0.1), noise),
    "resolution": Shift("pixels that become one, each way", (2.0, 3.0, 4.0), resolution),
}


def shifted(pixels: NDArray[np.uint8], name: str, size: float, rng: np.random.Generator) -> NDArray[np.uint8]:
    """uint8 pictures [N, C, (D,) S, S] as they would be under a shift, again 8 bits. Nothing moves: targets stay true.

    The generator draws the noise, so that equal generators give every model the same pictures.
    """
    changed = SHIFTS[name].change(pixels.astype(np.float64) / 255.0, size, rng)
    return np.rint(255.0 * np.clip(changed, 0.0, 1.0)).astype(np.uint8)
