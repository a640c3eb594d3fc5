"""Pictures with what is true and what was found drawn in, for the eyes of their own site."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

TRUE, FOUND = (64, 200, 255), (255, 170, 0)
"""Blue and orange: apart for nearly everybody, on grey as on colour."""


def flat(pixels: np.ndarray, depth: int | None = None) -> np.ndarray:
    """uint8 [H, W, 3] of [C, H, W], or of slice ``depth`` (the middle one) of a volume [C, D, H, W]."""
    chosen = pixels if pixels.ndim == 3 else pixels[:, pixels.shape[1] // 2 if depth is None else depth]
    return np.ascontiguousarray(np.repeat(chosen, 3 // len(chosen), axis=0).transpose(1, 2, 0))


def outlined(picture: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """The picture with the outline of the regions of a mask [H, W] of classes, one pixel wide and inside of them."""
    edges = np.zeros(mask.shape, dtype=bool)
    for axis in (0, 1):
        for step in (1, -1):
            edges |= mask != np.roll(mask, step, axis)
    result = picture.copy()
    result[edges & (mask > 0)] = colour
    return result


def boxed(picture: np.ndarray, boxes: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """The picture with boxes [N, 4]: left, top, right, bottom in shares of its side."""
    image = Image.fromarray(picture)
    pen, side = ImageDraw.Draw(image), len(picture)
    for left, top, right, bottom in np.asarray(boxes, dtype=np.float64) * side:
        pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour)
    return np.asarray(image)
