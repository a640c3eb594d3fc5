"""Procedural images to distil on: textures, surfaces, shapes and drawings.

Nothing here is drawn from data. Every maker (`texture`, `surface`, `leaves`, `fractal`, `strokes`) takes a numpy
generator and a side length in pixels and returns an RGB image: float64, shape (size, size, 3), nominally in [0, 1].
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage

Field = NDArray[np.float64]
Maker = Callable[[np.random.Generator, int], Field]


def noise(rng: np.random.Generator, size: int, power: float, stretch: float = 1.0) -> Field:
    """Random field whose spectrum falls as frequency to the minus `power`; `stretch` > 1 makes it fibrous.

    Returns:
        Shape (size, size), scaled so that its 1st and 99th percentiles are 0 and 1, clipped.
    """
    angle = rng.uniform(0, np.pi)
    fy, fx = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :]
    along, across = np.cos(angle) * fx + np.sin(angle) * fy, np.cos(angle) * fy - np.sin(angle) * fx
    radius = np.sqrt((stretch * along) ** 2 + (across / stretch) ** 2 + (0.5 / size) ** 2)
    field = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((size, size))) * radius**-power, s=(size, size))
    low, high = np.percentile(field, [1, 99])
    return np.asarray(np.clip((field - low) / (high - low + 1e-9), 0, 1))


def colour(field: Field, colours: Field) -> Field:
    """Maps a (H, W) field in [0, 1] through colours, shape (n, 3), spaced evenly. Returns (H, W, 3)."""
    stops = np.linspace(0, 1, len(colours))
    return np.stack([np.interp(field, stops, colours[:, channel]) for channel in range(3)], axis=-1)


def palette(rng: np.random.Generator, count: int) -> Field:
    """Random colours, shape (count, 3): grey in a third of cases, otherwise scattered about a common hue."""
    value = rng.uniform(0, 1, (count, 1))
    if rng.random() < 0.33:
        return np.repeat(value, 3, axis=1)
    spread = rng.choice([0.15, 0.35, 0.6])
    return np.clip(0.55 * value + 0.45 * rng.uniform(0, 1, 3) + rng.normal(0, spread, (count, 3)), 0, 1)


def grid(size: int) -> tuple[Field, Field]:
    """Pixel coordinates in [-1, 1]: y and x, each (size, size)."""
    axis = np.linspace(-1, 1, size)
    y, x = np.meshgrid(axis, axis, indexing="ij")
    return y, x


def ellipse(y: Field, x: Field, centre: tuple[float, float], radii: tuple[float, float], angle: float = 0.0) -> Field:
    """Squared elliptic distance, 1 on the rim: (H, W); centre and radii are (y, x), turned by `angle` radians."""
    dy, dx = y - centre[0], x - centre[1]
    u, v = np.cos(angle) * dy + np.sin(angle) * dx, np.cos(angle) * dx - np.sin(angle) * dy
    return np.asarray((u / radii[0]) ** 2 + (v / radii[1]) ** 2)


def soft(value: Field, width: float) -> Field:
    """Logistic step at 0: near 1 where `value` is well above 0, over a transition of `width`."""
    return np.asarray(1 / (1 + np.exp(-np.clip(value / width, -30, 30))))


def drawing(rng: np.random.Generator, size: int, paint: Callable[[ImageDraw.ImageDraw], None], blur: float) -> Field:
    """A mask painted at twice the size, halved and blurred: (size, size) in [0, 1]; `paint` draws in 2*size pixels."""
    canvas = Image.new("L", (2 * size, 2 * size))
    paint(ImageDraw.Draw(canvas))
    mask = np.asarray(canvas.resize((size, size), Image.Resampling.BOX), dtype=np.float64) / 255
    return np.asarray(ndimage.gaussian_filter(mask, blur * rng.uniform(0.2, 1.0)))


def branch(
    rng: np.random.Generator, draw: ImageDraw.ImageDraw, at: Field, angle: float, width: float, left: int
) -> None:
    """Draws a vessel or hair from `at` (x, y pixels) that wanders, thins and forks at most `left` times."""
    for _ in range(int(rng.integers(8, 24))):
        angle += rng.normal(0, 0.18)
        step = at + 5 * np.array([np.cos(angle), np.sin(angle)])
        draw.line([*at, *step], fill=int(120 + 135 * min(1.0, width / 5)), width=max(1, round(width)))
        at, width = step, width * 0.985
    if left > 0 and width > 0.8:
        fork = rng.uniform(0.25, 0.7)
        branch(rng, draw, at, angle + fork, width * rng.uniform(0.6, 0.85), left - 1)
        branch(rng, draw, at, angle - fork, width * rng.uniform(0.6, 0.95), left - 1)


def texture(rng: np.random.Generator, size: int) -> Field:
    """Clouds, fibres and marble: coloured noise, sometimes bent through waves or cut into levels."""
    field = noise(rng, size, rng.uniform(0.6, 2.4), np.exp(rng.uniform(0, 1.2) * rng.integers(0, 2)))
    if rng.random() < 0.35:
        field = 0.5 + 0.5 * np.sin(2 * np.pi * (rng.uniform(1, 7) * field + rng.uniform(0, 6) * grid(size)[0]))
    if rng.random() < 0.25:
        field = np.floor(field * rng.integers(2, 7)) / 6
    other = colour(noise(rng, size, rng.uniform(0.4, 2.0)), palette(rng, 3))
    return np.asarray(colour(field, palette(rng, int(rng.integers(2, 6)))) * 0.75 + other * rng.uniform(0, 0.4))


def surface(rng: np.random.Generator, size: int) -> Field:
    """A bumpy surface lit from one side: noise or cells as height, Lambert shading plus a highlight."""
    height = noise(rng, size, rng.uniform(1.2, 2.6), np.exp(rng.uniform(0, 0.8)))
    if rng.random() < 0.5:
        points = rng.uniform(0, size, (int(rng.integers(8, 150)), 2))
        seeds = np.ones((size, size), dtype=bool)
        seeds[tuple(points.astype(int).T)] = False
        distance = ndimage.distance_transform_edt(seeds)
        height = 0.4 * height + np.sqrt(distance / distance.max()) * rng.choice([-1.0, 1.0])
    gy, gx = np.gradient(ndimage.gaussian_filter(height, rng.uniform(0.5, 2.0)) * size * rng.uniform(0.1, 0.5))
    light = rng.normal(0, 1, 3) + np.array([0, 0, 1.2])
    shade = (light[2] - light[1] * gy - light[0] * gx) / (np.sqrt(1 + gx**2 + gy**2) * np.linalg.norm(light))
    body = colour(noise(rng, size, 1.5), palette(rng, 3))
    shine = rng.uniform(0, 0.6) * np.clip(shade, 0, 1) ** rng.uniform(8, 40)
    return np.asarray(body * (0.25 + 0.85 * np.clip(shade, 0, 1))[..., None] + shine[..., None])


def leaves(rng: np.random.Generator, size: int) -> Field:
    """Dead leaves: textured ellipses, boxes and polygons that occlude each other, sizes by a power law."""
    canvas, layers = Image.new("RGB", (size, size)), [texture(rng, size) for _ in range(3)]
    sheets = [Image.fromarray(np.rint(np.clip(layer, 0, 1) * 255).astype(np.uint8)) for layer in layers]
    canvas.paste(sheets[0])
    for _ in range(int(rng.integers(4, 60))):
        radius, at = size * min(0.45, 0.03 * rng.pareto(1.2) + 0.03), rng.uniform(0, size, 2)
        mask = Image.new("L", (size, size))
        sides = int(rng.integers(3, 9)) if rng.random() < 0.5 else 40
        angles = np.sort(rng.uniform(0, 2 * np.pi, sides)) if sides < 9 else np.linspace(0, 2 * np.pi, sides)
        squash = rng.uniform(0.35, 1)
        corners = at + radius * np.stack([np.cos(angles), squash * np.sin(angles)], axis=1)
        ImageDraw.Draw(mask).polygon([tuple(corner) for corner in corners.tolist()], fill=255)
        tint = tuple(int(v) for v in 255 * palette(rng, 1)[0])
        sheet = Image.new("RGB", (size, size), (tint[0], tint[1], tint[2]))
        canvas.paste(Image.blend(sheet, sheets[int(rng.integers(3))], rng.uniform(0, 0.7)), mask=mask)
    return np.asarray(canvas, dtype=np.float64) / 255


def fractal(rng: np.random.Generator, size: int) -> Field:
    """An iterated function system: random contractions, 30,000 points, density coloured on a plain ground."""
    count = int(rng.integers(2, 6))
    maps = rng.normal(0, 0.55, (count, 2, 2))
    maps *= (rng.uniform(0.5, 0.85, count) / np.linalg.norm(maps, 2, axis=(1, 2)))[:, None, None]
    shifts, points = rng.uniform(-1, 1, (count, 2)), rng.uniform(-1, 1, (1500, 2))
    trail = []
    for turn in range(28):
        pick = rng.integers(0, count, len(points))
        points = np.einsum("nij,nj->ni", maps[pick], points) + shifts[pick]
        if turn >= 8:
            trail.append(points)
    cloud = np.concatenate(trail)
    low, high = np.percentile(cloud, [1, 99], axis=0)
    place = ((cloud - low) / (high - low + 1e-6) * 0.9 + 0.05) * size
    density, _, _ = np.histogram2d(place[:, 0], place[:, 1], bins=size, range=[[0, size], [0, size]])
    field = np.log1p(ndimage.gaussian_filter(density, rng.uniform(0.4, 1.5)))
    field = np.asarray(field / (field.max() + 1e-9)) ** rng.uniform(0.5, 1.2)
    return colour(field, palette(rng, int(rng.integers(2, 6))))


def strokes(rng: np.random.Generator, size: int) -> Field:
    """Lines, rings and marks like writing, rulers and instruments over a texture."""

    def paint(draw: ImageDraw.ImageDraw) -> None:
        for _ in range(int(rng.integers(3, 40))):
            a, b, fill = rng.uniform(0, 2 * size, 2), rng.uniform(5, 0.7 * size, 2), int(rng.integers(80, 256))
            shape = rng.integers(4)
            width = int(rng.integers(1, 12))
            if shape == 0:
                draw.line([*a, *(a + b * rng.choice([-1, 1], 2))], fill=fill, width=width)
            elif shape == 1:
                draw.ellipse([*a, *(a + b)], outline=fill, width=width)
            elif shape == 2:
                draw.rectangle([*a, *(a + b)], outline=fill, width=width)
            else:
                draw.text((a[0], a[1]), str(rng.integers(10**6)), fill=fill, font_size=float(rng.uniform(10, 70)))

    mask = drawing(rng, size, paint, 1.0)[..., None]
    return np.asarray(texture(rng, size) * (1 - mask) + colour(noise(rng, size, 1.5), palette(rng, 2)) * mask)
