"""A phantom: a made-up cross-section of a body, with or without a lesion, before any scanner has looked at it.

Nothing is drawn from data. A patient's generator decides the anatomy, a picture's generator what differs from slice to
slice (pose, texture, vessels), so that two pictures of one patient are alike and not the same. Places inside the body
are in body coordinates, in which its outline is the unit circle; y points down. Pictures are float64, (size, size),
nominally in [0, 1]. Spectra, not pixels, are drawn, so the same generators give the same anatomy at any size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import fft

Field = NDArray[np.float64]


@dataclass(frozen=True)
class Organ:
    """A soft superellipse: centre and radii (y, x) in body coordinates, angle in radians, grey level in [0, 1].

    ``square`` bends it from an ellipse (0) to a rounded box (1); ``grain`` is the standard deviation of its texture.
    """

    at: tuple[float, float]
    radii: tuple[float, float]
    level: float
    angle: float = 0.0
    square: float = 0.0
    grain: float = 0.01
    edge: float = 0.07

    def cover(self, y: Field, x: Field) -> Field:
        """How much of each pixel it covers, in [0, 1]: the shape of ``y`` and ``x``, which are body coordinates."""
        a, b = np.cos(self.angle) / self.radii[0], np.sin(self.angle) / self.radii[0]
        c, d = np.cos(self.angle) / self.radii[1], np.sin(self.angle) / self.radii[1]
        u = (a * y + b * x - (a * self.at[0] + b * self.at[1])) ** 2
        v = (c * x - d * y - (c * self.at[1] - d * self.at[0])) ** 2
        distance = np.sqrt(np.sqrt(u * u + v * v + 2 * (1 - self.square) * u * v) if self.square else u + v)
        return np.asarray(np.clip(0.5 + (1 - distance) * min(self.radii) / self.edge, 0, 1))


@dataclass(frozen=True)
class Lesion:
    """A blob with an irregular border: ``contrast`` in grey levels, ``radius`` as a share of the picture's side.

    ``host`` in [0, 1) chooses the organ and ``place`` = (distance in [0, 1), direction in radians) the spot in it.
    ``bumps``, shape (harmonics, 2), are the border's amplitudes and phases; ``hollow`` in [0, 1] pales its middle.
    ``halo`` in [0, 1] is how far, as a share of the contrast, its surroundings turn the other way: it keeps an organ's
    mean grey level nearly as it was, so that a lesion has to be seen and cannot be weighed.
    """

    contrast: float
    radius: float
    host: float
    place: tuple[float, float]
    bumps: Field
    hollow: float
    halo: float

    @classmethod
    def draw(cls, rng: np.random.Generator, contrast: float, radius: float) -> Lesion:
        """One at random, of the given ``contrast`` and ``radius``."""
        harmonics = np.arange(2, 10)
        amplitude = rng.normal(0, 0.26, harmonics.size) / harmonics
        bumps = np.stack([amplitude, rng.uniform(0, 2 * np.pi, harmonics.size)], axis=1)
        place = (float(np.sqrt(rng.random())), float(rng.uniform(0, 2 * np.pi)))
        return cls(contrast, radius, float(rng.random()), place, bumps, *map(float, rng.uniform((0, 0.3), (0.5, 0.6))))


class Finding(NamedTuple):
    """Where a lesion lies in its picture: centre column ``x``, row ``y`` and mean ``radius``, all in pixels."""

    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Body:
    """Where a body lies: body coordinates of each pixel, ``y`` and ``x``, (size, size), and the way back without warp.

    ``turn``, (2, 2), and ``shift``, (2,), map body coordinates to picture coordinates, which run from -1 to 1.
    """

    y: Field
    x: Field
    turn: Field
    shift: Field

    @classmethod
    def draw(cls, patient: np.random.Generator, slice_: np.random.Generator, size: int) -> Body:
        """The outline and a gentle warp belong to the patient; how the body lies in the picture to the slice."""
        radii = np.array([patient.uniform(0.62, 0.76), patient.uniform(0.78, 0.9)])
        warp = [0.025 * waves(patient, size, 4, 1.0) for _ in range(2)]
        shift, angle, scale = slice_.normal(0, 0.03, 2), slice_.normal(0, 0.06), slice_.uniform(0.94, 1.04)
        cos, sin = scale * np.cos(angle), scale * np.sin(angle)
        turn = np.array([[cos, -sin], [sin, cos]]) * radii
        (a, b), (c, d) = np.linalg.inv(turn)
        axis = np.linspace(-1, 1, size)
        dy, dx = axis[:, None] - shift[0], axis[None, :] - shift[1]
        return cls(a * dy + b * dx + warp[0], c * dy + d * dx + warp[1], turn, shift)

    def paint(self, field: Field, organ: Organ, texture: Field, extra: Field | None = None) -> None:
        """Lays ``organ`` over ``field`` in place, with its share of ``texture`` and with ``extra`` grey levels."""
        window = self._window(organ)
        level = organ.level + organ.grain * texture[window]
        if extra is not None:
            level += extra[window]
        field[window] += organ.cover(self.y[window], self.x[window]) * (level - field[window])

    def _window(self, organ: Organ) -> tuple[slice, slice]:
        # Only pixels that an organ may touch are computed: 1.2 is a box's corner, 0.12 is more than the warp moves.
        size, reach = len(self.y), 1.2 * max(organ.radii) + organ.edge + 0.12
        middle, half = self.shift + self.turn @ organ.at, np.abs(self.turn).sum(axis=1) * reach
        low, high = ((middle - half + 1) / 2 * size).astype(int), ((middle + half + 1) / 2 * size).astype(int) + 1
        return slice(max(low[0], 0), max(high[0], 0)), slice(max(low[1], 0), max(high[1], 0))


def picture(
    patient: np.random.Generator, slice_: np.random.Generator, size: int, lesion: Lesion | None
) -> tuple[Field, Finding | None]:
    """Draws one slice of one patient.

    Args:
        patient: generator of the anatomy; give each slice of a patient a fresh one of the same seed.
        slice_: generator of what differs between slices.
        size: side in pixels.
        lesion: what there is to find; None for a healthy patient. It changes no pixel but its own.

    Returns:
        The picture, (size, size), and where the lesion is (None without one).
    """
    body, hosts = Body.draw(patient, slice_, size), _hosts(patient)
    field, texture = np.full((size, size), 0.02), waves(slice_, size, 40, 0.7)
    for organ in [*_shell(patient), *_inside(patient)]:
        body.paint(field, organ, texture)
    _ribs(field, patient, body)
    # The zero lines of a smooth field wander like vessels; a second field lets them fade in and out of the slice.
    course, depth = waves(slice_, size, 7, 0.4), waves(slice_, size, 6, 0.5)
    vessels = slice_.uniform(0.05, 0.12) * np.exp(-((course / 0.09) ** 2)) * np.clip(depth, 0, 1)
    for organ in hosts:
        body.paint(field, organ, texture, vessels)
    for spot in _spots(slice_, hosts):
        body.paint(field, spot, texture)
    return field, None if lesion is None else _mark(field, lesion, body, hosts)


def waves(rng: np.random.Generator, size: int, modes: int, power: float) -> Field:
    """A smooth random field of unit variance: ``modes`` squared cosines whose amplitude falls as frequency^-power.

    Returns:
        Shape (size, size), mean 0.
    """
    frequency = np.hypot(*np.ogrid[0.0:modes, 0.0:modes])
    frequency[0, 0] = np.inf  # no constant part: grey levels are set elsewhere
    weight = frequency**-power
    spectrum = np.zeros((size, size))
    shown = min(modes, size)
    drawn = rng.standard_normal((modes, modes)) * weight * size / np.sqrt((weight**2).sum())
    spectrum[:shown, :shown] = drawn[:shown, :shown]
    return np.asarray(fft.idctn(spectrum, norm="ortho", overwrite_x=True))


def _near(rng: np.random.Generator, y: float, x: float, spread: float = 0.04) -> tuple[float, float]:
    return y + rng.normal(0, spread), x + rng.normal(0, spread)


def _shell(rng: np.random.Generator) -> list[Organ]:
    # Skin and fat, then muscle, then the fat of the cavity.
    fat, wall = rng.uniform(0.84, 0.94), rng.uniform(0.08, 0.12)
    return [
        Organ((0.0, 0.0), (1.0, 1.0), rng.normal(0.26, 0.02), square=0.25, edge=0.05),
        Organ((0.0, 0.0), (fat, fat), rng.normal(0.48, 0.02), square=0.25, grain=0.02),
        Organ((-0.02, 0.0), (fat - wall, fat - wall), rng.normal(0.3, 0.02), square=0.25, grain=0.025),
    ]


def _inside(rng: np.random.Generator) -> list[Organ]:
    # Organs in which no lesion is ever placed; some look bright and round, so brightness alone tells nothing.
    spine, bone = _near(rng, 0.57, 0.0, 0.015), rng.normal(0.82, 0.03)
    organs = [
        Organ(spine, (0.17, 0.16), bone, square=0.3, grain=0.05),
        Organ((spine[0] + 0.2, spine[1]), (0.06, 0.07), 0.4),
        Organ((spine[0] + 0.27, spine[1]), (0.08, 0.035), bone),
        Organ(_near(rng, 0.33, 0.07, 0.02), (0.075, 0.065), rng.normal(0.68, 0.04)),
        Organ(_near(rng, 0.33, -0.09, 0.02), (0.07, 0.075), rng.normal(0.62, 0.04)),
    ]
    for side in (-1, 1):
        at, radii = _near(rng, 0.44, 0.42 * side), (rng.uniform(0.17, 0.22), rng.uniform(0.12, 0.16))
        organs.append(Organ(at, radii, rng.normal(0.64, 0.04), 0.5 * side, grain=0.02))
        organs.append(Organ((at[0], at[1] - 0.05 * side), (0.08, 0.045), 0.4, 0.5 * side))
    stomach = _near(rng, -0.3, 0.22)
    organs.append(Organ(stomach, (0.24, 0.25), rng.normal(0.42, 0.04), rng.uniform(0, 1), 0.4, 0.02))
    organs.append(Organ((stomach[0] - 0.09, stomach[1]), (0.1, rng.uniform(0.1, 0.18)), 0.06, rng.normal(0, 0.2)))
    for _ in range(int(rng.integers(2, 6))):
        loop, radius = _near(rng, 0.08, 0.2, 0.15), rng.uniform(0.07, 0.12)
        organs.append(Organ(loop, (radius, radius * rng.uniform(0.7, 1.1)), rng.normal(0.46, 0.04)))
        organs.append(Organ(loop, (radius * 0.4, radius * 0.4), rng.choice([0.12, 0.36, 0.6])))
    return organs


def _hosts(rng: np.random.Generator) -> list[Organ]:
    # The liver and the spleen, more or less: the two organs in which lesions grow.
    liver = (rng.uniform(0.42, 0.52), rng.uniform(0.33, 0.42))
    spleen = (rng.uniform(0.28, 0.38), rng.uniform(0.18, 0.23))
    return [
        Organ(_near(rng, -0.1, -0.4), liver, rng.normal(0.52, 0.045), rng.normal(0.2, 0.2), 0.4, 0.025),
        Organ(_near(rng, 0.1, 0.58, 0.03), spleen, rng.normal(0.54, 0.045), rng.normal(-0.2, 0.2), 0.3, 0.025),
    ]


def _ribs(field: Field, rng: np.random.Generator, body: Body) -> None:
    # Bright beads in the wall, cut obliquely: an arc of the ring wherever a wave over the angle is high.
    distance = np.hypot(body.y, body.x) - 0.86
    ring = np.abs(distance) < 0.1
    beads = np.cos(rng.integers(7, 11) * np.arctan2(body.x[ring], body.y[ring]) + rng.uniform(0, 2 * np.pi))
    cover = np.exp(-((distance[ring] / 0.03) ** 2)) * np.clip(2 * beads - 0.9, 0, 1)
    field[ring] += cover * (0.8 - field[ring])


def _spots(rng: np.random.Generator, hosts: list[Organ]) -> list[Organ]:
    # What a lesion can be mistaken for: vessels cut across (bright, small, smooth) and cysts (dark, round).
    spots = []
    for _ in range(int(rng.integers(1, 5))):
        at, radius = _spot(hosts, rng.random(), (rng.random(), rng.uniform(0, 2 * np.pi))), rng.uniform(0.025, 0.05)
        spots.append(Organ(at, (radius, radius), rng.uniform(0.6, 0.75), edge=0.05))
    if rng.random() < 0.35:
        at, radius = _spot(hosts, rng.random(), (rng.random(), rng.uniform(0, 2 * np.pi))), rng.uniform(0.05, 0.12)
        spots.append(Organ(at, (radius, radius), rng.uniform(0.3, 0.42), edge=0.05))
    return spots


def _spot(hosts: list[Organ], host: float, place: tuple[float, float]) -> tuple[float, float]:
    # Body coordinates of a place well inside one of the hosts; the larger one is chosen more often.
    area = np.cumsum([organ.radii[0] * organ.radii[1] for organ in hosts])
    organ = hosts[int(np.searchsorted(area, host * area[-1], side="right"))]
    u, v = 0.58 * place[0] * organ.radii[0] * np.cos(place[1]), 0.58 * place[0] * organ.radii[1] * np.sin(place[1])
    cos, sin = np.cos(organ.angle), np.sin(organ.angle)
    return organ.at[0] + cos * u - sin * v, organ.at[1] + sin * u + cos * v


def _mark(field: Field, lesion: Lesion, body: Body, hosts: list[Organ]) -> Finding:
    # Drawn in pixels, not in body coordinates, so that its radius is true in every direction.
    size = len(field)
    target = _spot(hosts, lesion.host, lesion.place)
    row, column = np.unravel_index(np.argmin((body.y - target[0]) ** 2 + (body.x - target[1]) ** 2), field.shape)
    radius = lesion.radius * size
    reach = int(2.5 * radius) + 2
    top, left = max(int(row) - reach, 0), max(int(column) - reach, 0)
    window = field[top : int(row) + reach + 1, left : int(column) + reach + 1]
    rows, columns = np.ogrid[: window.shape[0], : window.shape[1]]
    dy, dx = rows + top - row, columns + left - column
    distance, angle = np.hypot(dy, dx), np.arctan2(dy, dx)
    bumps = sum(a * np.cos(k * angle + phase) for k, (a, phase) in enumerate(lesion.bumps, start=2))
    border = radius * np.clip(1 + bumps, 0.5, 2.0)
    mask = np.clip(0.5 + (border - distance) / 2.5, 0, 1)
    halo = np.clip(0.5 + (1.5 * border - distance) / 4, 0, 1) - mask
    core = mask * (1 - lesion.hollow * np.clip(1 - 1.5 * distance / border, 0, 1))
    window += lesion.contrast * (core - lesion.halo * np.clip(halo, 0, 1))
    return Finding(float(column), float(row), radius)
