"""Procedural images that are laid out like medical ones: chest, slice, lesion, fundus, cells and ultrasound.

They look like their subjects only roughly, carry no label and come from no patient. Makers as in `images`.
"""

from __future__ import annotations

import numpy as np
from PIL import ImageDraw
from scipy import ndimage

from polyclinic.models.embedded.images import Field, branch, colour, drawing, ellipse, grid, noise, palette, soft


def chest(rng: np.random.Generator, size: int) -> Field:
    """A frontal chest film: body, two lungs, ribs, spine, heart, perhaps opacities and a marker; grey."""
    y, x = grid(size)
    y, x = y * rng.uniform(0.85, 1.25) + rng.normal(0, 0.08), x * rng.uniform(0.85, 1.25) + rng.normal(0, 0.06)
    width = rng.uniform(0.1, 0.25)
    film = 0.05 + 0.5 * soft(1 - ellipse(y, x, (0.25, 0.0), (1.5, rng.uniform(0.85, 1.1))), 0.1)
    lungs = np.zeros_like(y)
    for side in (-1, 1):
        middle = (rng.normal(-0.05, 0.05), side * rng.uniform(0.36, 0.46))
        radii = (rng.uniform(0.5, 0.72), rng.uniform(0.24, 0.34))
        lungs = np.maximum(lungs, soft(1 - ellipse(y, x, middle, radii, side * rng.uniform(0.0, 0.2)), width))
    film -= rng.uniform(0.25, 0.45) * lungs
    phase = rng.uniform(0, 6) + rng.uniform(14, 22) * (y + rng.uniform(0.2, 0.8) * (np.abs(x) - 0.4) ** 2)
    film += rng.uniform(0.02, 0.1) * np.clip(np.sin(phase), 0, 1) * soft(np.abs(x) - 0.1, 0.03)
    film += rng.uniform(0.1, 0.3) * np.exp(-((x / rng.uniform(0.06, 0.12)) ** 2)) * (1 + 0.15 * np.sin(25 * y))
    heart = (rng.uniform(0.2, 0.4), rng.uniform(0.0, 0.16))
    dense, girth = rng.uniform(0.15, 0.4), (rng.uniform(0.25, 0.38), rng.uniform(0.2, 0.34))
    film += dense * soft(1 - ellipse(y, x, heart, girth, 0.5), 0.2)
    film += rng.uniform(0.2, 0.5) * soft(y - rng.uniform(0.45, 0.75) - 0.3 * x**2, 0.06) * soft(1.1 - np.abs(x), 0.05)
    for _ in range(int(rng.integers(0, 5))):
        spot = ellipse(y, x, (rng.uniform(-0.5, 0.5), rng.uniform(-0.6, 0.6)), tuple(rng.uniform(0.03, 0.35, 2)))
        film += rng.uniform(0.05, 0.35) * np.exp(-spot) * lungs * (0.4 + noise(rng, size, 1.2))
    film += rng.uniform(0.02, 0.12) * (noise(rng, size, 1.3) - 0.5)
    film += rng.uniform(0, 0.03) * rng.standard_normal(y.shape)
    if rng.random() < 0.5:
        corner = tuple(rng.uniform(0.02, 0.25, 2) * 2 * size)

        def marker(draw: ImageDraw.ImageDraw) -> None:
            draw.text(corner, str(rng.choice(["R", "L", "AP"])), fill=255, font_size=30.0)

        film += drawing(rng, size, marker, 0.4)
    return np.repeat(np.clip(film, 0, 1)[..., None], 3, axis=2) ** rng.uniform(0.7, 1.3)


def section(rng: np.random.Generator, size: int) -> Field:
    """A CT or MR slice: nested ellipses (rim, tissue, organs) with texture and noise on black; grey."""
    y, x = grid(size)
    warp = rng.uniform(0, 0.2)
    y, x = y + warp * (noise(rng, size, 2.4) - 0.5), x + warp * (noise(rng, size, 2.4) - 0.5)
    radii = rng.uniform(0.6, 0.95, 2)
    body = ellipse(y, x, (0.0, 0.0), (radii[0], radii[1]))
    inside = soft(1 - body, 0.03)
    field = rng.uniform(0.2, 0.9) * inside
    rim = rng.uniform(0.6, 0.95)
    field += (rng.uniform(0.1, 0.8) - field) * soft(rim - body, 0.03)
    for _ in range(int(rng.integers(2, 16))):
        at = rng.normal(0, 0.32, 2) * radii
        organ = ellipse(y, x, (at[0], at[1]), tuple(rng.uniform(0.04, 0.4, 2)), rng.uniform(0, np.pi))
        field += (rng.uniform(0, 1) - field) * soft(1 - organ, rng.uniform(0.03, 0.3)) * soft(rim - body, 0.05)
        if rng.random() < 0.5:
            mirror = ellipse(y, -x, (at[0], at[1]), tuple(rng.uniform(0.04, 0.3, 2)), rng.uniform(0, np.pi))
            field += (rng.uniform(0, 1) - field) * soft(1 - mirror, 0.1) * soft(rim - body, 0.05)
    folds = np.abs(noise(rng, size, rng.uniform(1.2, 1.8)) - 0.5) * 2
    field += rng.uniform(-0.4, 0.4) * folds * inside + rng.uniform(0, 0.2) * noise(rng, size, 0.6) * inside
    grain = rng.uniform(0, 0.06) * ndimage.gaussian_filter(rng.standard_normal(field.shape), rng.uniform(0.3, 1.0))
    return np.repeat(np.clip(field * rng.uniform(0.7, 1.3) + grain, 0, 1)[..., None], 3, axis=2)


def lesion(rng: np.random.Generator, size: int) -> Field:
    """A dermoscopy: skin, a pigmented blob with network, globules, veil and scale, hairs, bubbles, vignette."""
    y, x = grid(size)
    skin = np.array([rng.uniform(0.65, 0.98), rng.uniform(0.45, 0.75), rng.uniform(0.35, 0.7)])
    picture = skin * (0.85 + 0.25 * noise(rng, size, rng.uniform(0.8, 2.0)))[..., None]
    at, radii = rng.normal(0, 0.18, 2), rng.uniform(0.15, 0.85, 2)
    reach = ellipse(y, x, (at[0], at[1]), (radii[0], radii[1]), rng.uniform(0, np.pi))
    ragged = reach + rng.uniform(0, 1.8) * (noise(rng, size, rng.uniform(1.2, 2.4)) - 0.5)
    mask = soft(1 - ragged, rng.uniform(0.02, 0.4)) * rng.uniform(0.3, 1.0)
    tones = int(rng.integers(2, 5))
    pigment = np.stack([skin * rng.uniform(0.05, 0.9) * rng.uniform(0.7, 1.3, 3) for _ in range(tones)])
    inner = colour(noise(rng, size, rng.uniform(1.0, 2.2)), pigment)
    cells = np.abs(np.sin(noise(rng, size, rng.uniform(0.7, 1.3)) * rng.uniform(6, 30)))
    inner *= 1 - rng.uniform(0, 0.5) * rng.integers(0, 2) * cells[..., None]
    picture += (inner - picture) * mask[..., None]
    for _ in range(int(rng.integers(0, 4))):
        place = at + rng.normal(0, 0.25, 2)
        tint = rng.choice(np.array([[0.45, 0.5, 0.65], [0.9, 0.85, 0.8], [0.7, 0.25, 0.25], [0.15, 0.1, 0.1]]))
        blotch = np.exp(-ellipse(y, x, (place[0], place[1]), tuple(rng.uniform(0.05, 0.4, 2)), rng.uniform(0, 3)))
        picture += (tint - picture) * (rng.uniform(0.1, 0.8) * blotch * soft(1.3 - ragged, 0.2))[..., None]
    dots = rng.random((size, size)) > 1 - rng.choice([0.0, 0.001, 0.006])
    dark = ndimage.gaussian_filter(dots.astype(np.float64), rng.uniform(0.8, 2.5))
    picture *= 1 - rng.uniform(0.3, 0.9) * (dark / (dark.max() + 1e-9) * soft(1 - ragged, 0.1))[..., None]

    def hairs(draw: ImageDraw.ImageDraw) -> None:
        for _ in range(int(rng.integers(1, 25))):
            branch(rng, draw, rng.uniform(0, 2 * size, 2), rng.uniform(0, 2 * np.pi), rng.uniform(1, 4.5), 0)

    if rng.random() < 0.4:
        tone = rng.choice([0.08, 0.2, 0.8])
        picture += (tone - picture) * drawing(rng, size, hairs, 0.8)[..., None] * rng.uniform(0.5, 1.0)
    if rng.random() < 0.35:
        picture *= soft(rng.uniform(0.9, 1.5) - y**2 - x**2, rng.choice([0.02, 0.3]))[..., None]
    return np.asarray(ndimage.gaussian_filter(picture, (rng.uniform(0, 0.8),) * 2 + (0,)))


def fundus(rng: np.random.Generator, size: int) -> Field:
    """A retina: orange disc on black, optic disc, macula, vessel trees from the disc, spots bright and dark."""
    y, x = grid(size)
    base = np.array([rng.uniform(0.5, 0.95), rng.uniform(0.2, 0.5), rng.uniform(0.05, 0.25)])
    picture = base * (0.7 + 0.4 * noise(rng, size, rng.uniform(1.5, 2.5)))[..., None]
    side, high = rng.choice([-1.0, 1.0]) * rng.uniform(0.3, 0.6), rng.normal(0, 0.1)
    picture *= (1 - 0.5 * np.exp(-ellipse(y, x, (high, -side * 0.3), (0.25, 0.25))))[..., None]
    disc = soft(1 - ellipse(y, x, (high, side), tuple(rng.uniform(0.1, 0.18, 2))), 0.25)[..., None]

    def vessels(draw: ImageDraw.ImageDraw) -> None:
        start = np.array([side + 1, high + 1]) * size
        for angle in rng.uniform(0, 2 * np.pi, int(rng.integers(4, 10))):
            branch(rng, draw, start, float(angle), rng.uniform(2.5, 7), 4)

    picture += disc * (np.array([1.0, 0.85, 0.55]) - picture) * rng.uniform(0.6, 1.0)
    picture *= 1 - rng.uniform(0.3, 0.7) * drawing(rng, size, vessels, 0.8)[..., None] * np.array([0.6, 1.0, 1.0])
    for _ in range(int(rng.integers(0, 30))):
        spot = soft(1 - ellipse(y, x, tuple(rng.uniform(-0.7, 0.7, 2)), tuple(rng.uniform(0.01, 0.06, 2))), 0.3)
        picture += (np.array([[0.95, 0.85, 0.4], [0.35, 0.05, 0.03]])[rng.integers(2)] - picture) * spot[..., None]
    return np.asarray(picture * soft(rng.uniform(0.8, 1.1) - y**2 - x**2, 0.02)[..., None])


def cells(rng: np.random.Generator, size: int) -> Field:
    """Microscopy: many cells with nuclei on a stained ground (blood, pink-and-purple tissue, fluorescence)."""
    stains = np.array([
        [[0.95, 0.92, 0.88], [0.85, 0.6, 0.6], [0.45, 0.2, 0.55]],
        [[0.95, 0.75, 0.85], [0.8, 0.5, 0.7], [0.35, 0.2, 0.5]],
        [[0.02, 0.02, 0.05], [0.1, 0.4, 0.15], [0.3, 0.5, 0.95]],
        [[0.8, 0.8, 0.8], [0.6, 0.6, 0.6], [0.25, 0.25, 0.25]],
    ])  # fmt: skip
    ground, flesh, core = np.clip(stains[rng.integers(4)] + rng.normal(0, 0.07, (3, 3)), 0, 1)
    radius, count = size * rng.uniform(0.02, 0.12), int(rng.integers(8, 90))
    spots = rng.uniform(0, size, (count, 2))
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float64)
    rows += radius * (noise(rng, size, 1.5) - 0.5)
    outer, inner = np.zeros((size, size)), np.zeros((size, size))
    for spot in spots:
        body = ellipse(rows, columns, tuple(spot), tuple(radius * rng.uniform(0.7, 1.3, 2)), rng.uniform(0, np.pi))
        outer = np.maximum(outer, soft(1 - body, 0.12) * rng.uniform(0.6, 1))
        if rng.random() < 0.6:
            inner = np.maximum(inner, soft(rng.uniform(0.15, 0.6) - body, 0.06) * rng.uniform(0.6, 1))
    pallor = 1 - rng.uniform(0, 0.5) * ndimage.gaussian_filter(outer, radius / 3)
    grain = (0.85 + 0.3 * noise(rng, size, rng.uniform(0.5, 1.8)))[..., None]
    picture = ground + (flesh - ground) * (outer * pallor)[..., None]
    return np.asarray((picture + (core - picture) * inner[..., None]) * grain)


def ultrasound(rng: np.random.Generator, size: int) -> Field:
    """A sector of speckle with layers, cysts and shadows; mostly grey."""
    y, x = grid(size)
    depth, angle = np.hypot(y + 1.2, x), np.arctan2(x, y + 1.2)
    tissue = noise(rng, size, rng.uniform(1.2, 2.2)) * (0.6 + 0.4 * np.sin(depth * rng.uniform(3, 15)))
    for _ in range(int(rng.integers(0, 6))):
        hole = soft(1 - ellipse(y, x, tuple(rng.uniform(-0.6, 0.6, 2)), tuple(rng.uniform(0.05, 0.4, 2))), 0.15)
        tissue += (rng.uniform(0, 1) - tissue) * hole
    speckle = ndimage.gaussian_filter(rng.standard_normal((size, size)), (0.6, rng.uniform(0.8, 2.0)))
    field = tissue * (0.5 + np.abs(speckle) * rng.uniform(0.5, 2.0)) * np.exp(-rng.uniform(0, 0.8) * (depth - 0.2))
    sector = soft(rng.uniform(0.5, 1.2) - np.abs(angle), 0.01) * soft(2.15 - depth, 0.01) * soft(depth - 0.25, 0.01)
    tint = palette(rng, 1)[0] * 0.15 + 0.85
    return np.asarray((field * sector)[..., None] * tint)
