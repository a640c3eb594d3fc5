"""Where a picture lies in the study's square: the one place that knows, for pixels, masks and boxes alike."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Framing:
    """How a picture becomes a square; lengths in pixels.

    Attributes:
        seen: left, top, right and bottom of the part that is kept, in the picture.
        size: width and height to which that part is brought.
        corner: left and top of it in the square; what it does not cover is black.
    """

    seen: tuple[int, int, int, int]
    size: tuple[int, int]
    corner: tuple[int, int]

    @property
    def scale(self) -> tuple[float, float]:
        """By how much lengths along x and y are multiplied."""
        left, top, right, bottom = self.seen
        return self.size[0] / (right - left), self.size[1] / (bottom - top)

    @property
    def offset(self) -> tuple[float, float]:
        """A place p of the picture, counted from its corner, lies in the square at p * ``scale`` + ``offset``."""
        return self.corner[0] - self.seen[0] * self.scale[0], self.corner[1] - self.seen[1] * self.scale[1]


def framing(width: int, height: int, side: int, fit: str) -> Framing:
    """How a picture of ``width`` × ``height`` becomes a square of ``side``: ``fit`` is ``data.fit`` of the study."""
    if fit == "crop":
        edge = min(width, height)
        left, top = (width - edge) // 2, (height - edge) // 2
        return Framing((left, top, left + edge, top + edge), (side, side), (0, 0))
    if fit == "squash":
        return Framing((0, 0, width, height), (side, side), (0, 0))
    across, down = (max(1, round(length * side / max(width, height))) for length in (width, height))
    return Framing((0, 0, width, height), (across, down), ((side - across) // 2, (side - down) // 2))
