"""Surfaces of the embedded data set: backgrounds, body coats and emblems, as float32 arrays on a pixel grid.

Colours are RGB in about [0, 1] (the scene is clipped once, at the end); `rng` is the only source of chance.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import numpy as np
from PIL import Image

Array = np.ndarray
Rng = np.random.Generator


def noise(rng: Rng, height: int, width: int, *, cell: tuple[float, float]) -> Array:
    """Smooth noise (H, W) float32, mean about 0 and spread about 1; `cell` is its grain (rows, columns) in pixels."""
    rows, columns = max(2, round(height / cell[0])), max(2, round(width / cell[1]))
    grid = Image.fromarray(rng.standard_normal((rows, columns)).astype(np.float32))
    return np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC))


def _tinted(rng: Rng, value: Array, *, hue: float, saturation: float, brightness: float) -> Array:
    """Colour a brightness pattern (H, W) -> (H, W, 3), its hue, saturation and brightness a little off the given."""
    rgb = colorsys.hsv_to_rgb(
        (hue + rng.uniform(-0.04, 0.04)) % 1, saturation * rng.uniform(0.75, 1.1), brightness * rng.uniform(0.85, 1.1)
    )
    return np.asarray(rgb, np.float32) * (1 + value[..., None])


def _grid(height: int, width: int) -> tuple[Array, Array]:
    y, x = np.mgrid[:height, :width].astype(np.float32)
    return y, x


def _meadow(rng: Rng, height: int, width: int) -> Array:
    blades = 0.12 * noise(rng, height, width, cell=(9, 2.5)) + 0.10 * noise(rng, height, width, cell=(40, 40))
    return _tinted(rng, blades, hue=0.29, saturation=0.55, brightness=0.52)


def _water(rng: Rng, height: int, width: int) -> Array:
    y, _ = _grid(height, width)
    bend = 3 * noise(rng, height, width, cell=(30, 45))
    waves = 0.11 * np.sin(y * 2 * np.pi / rng.uniform(9, 14) + bend) + 0.06 * noise(rng, height, width, cell=(3, 12))
    return _tinted(rng, waves, hue=0.56, saturation=0.55, brightness=0.62)


def _sand(rng: Rng, height: int, width: int) -> Array:
    grain = 0.09 * noise(rng, height, width, cell=(1.5, 1.5)) + 0.09 * noise(rng, height, width, cell=(28, 60))
    return _tinted(rng, grain, hue=0.11, saturation=0.38, brightness=0.80)


def _bricks(rng: Rng, height: int, width: int) -> Array:
    y, x = _grid(height, width)
    tall, long = rng.uniform(15, 20), rng.uniform(34, 44)
    row = np.floor(y / tall)
    shifted = x + np.where(row % 2 == 0, 0, long / 2)
    column = np.floor(shifted / long)
    shades = rng.standard_normal((64, 64)).astype(np.float32)
    value = 0.08 * shades[row.astype(int) % 64, column.astype(int) % 64] + 0.06 * noise(rng, height, width, cell=(3, 3))
    mortar = ((y % tall) < 2) | ((shifted % long) < 2)
    wall = _tinted(rng, value, hue=0.03, saturation=0.50, brightness=0.60)
    return np.where(mortar[..., None], np.float32(0.66), wall)


def _planks(rng: Rng, height: int, width: int) -> Array:
    _, x = _grid(height, width)
    broad = rng.uniform(24, 34)
    board = np.floor(x / broad).astype(int)
    grain = 0.08 * noise(rng, height, width, cell=(45, 2)) + 0.05 * noise(rng, height, width, cell=(80, 8))
    value = grain + 0.09 * rng.standard_normal(64).astype(np.float32)[board % 64]
    value = np.where((x % broad) < 1.5, -0.45, value)
    return _tinted(rng, value.astype(np.float32), hue=0.75, saturation=0.20, brightness=0.48)


BACKGROUNDS: tuple[Callable[[Rng, int, int], Array], ...] = (_meadow, _water, _sand, _bricks, _planks)
"""Kinds of ground; kind i is where class i + 1 is at home."""


def coat(rng: Rng, height: int, width: int, *, colour: Array) -> Array:
    """A body's surface (H, W, 3): one colour (3,) and a faint pattern: it holds together, yet is no flat fill."""
    y, x = _grid(height, width)
    kind = rng.integers(3)
    if kind == 0:
        pattern = 0.03 * noise(rng, height, width, cell=(6, 6))
    elif kind == 1:
        angle, period = rng.uniform(0, np.pi), rng.uniform(7, 14)
        pattern = 0.04 * np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period)
    else:
        pattern = 0.05 * np.tanh(3 * noise(rng, height, width, cell=(9, 9)) - 3)
    return colour * (1 + pattern.astype(np.float32)[..., None])


def _edge(distance: Array, sharpness: float) -> Array:
    """1 inside (distance < 0), 0 outside, a soft step about a pixel wide; `sharpness` is pixels per unit."""
    return np.clip(0.5 - distance * sharpness, 0, 1)


def _ring(u: Array, v: Array, sharp: float) -> Array:
    return _edge(np.abs(np.hypot(u, v) - 0.52) - 0.17, sharp)


def _cross(u: Array, v: Array, sharp: float) -> Array:
    thin, far = np.minimum(np.abs(u), np.abs(v)), np.maximum(np.abs(u), np.abs(v))
    return _edge(np.maximum(thin - 0.19, far - 0.78), sharp)


def _star(u: Array, v: Array, sharp: float) -> Array:
    # A five-pointed star: fold the angle into one tenth of a turn, where the edge is a straight line.
    fold = np.abs((np.arctan2(v, u) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    radius = np.hypot(u, v)
    px, py = radius * np.cos(fold), radius * np.sin(fold)
    tip, notch = np.array([0.86, 0.0]), 0.38 * np.array([np.cos(np.pi / 5), np.sin(np.pi / 5)])
    along = (notch - tip) / np.hypot(*(notch - tip))
    return _edge(-((px - tip[0]) * along[1] - (py - tip[1]) * along[0]), sharp)


def _bars(u: Array, v: Array, sharp: float) -> Array:
    return _edge((0.5 - np.abs((v * 1.6 + 0.5) % 1 - 0.5) - 0.25) / 1.6, sharp)


def _checker(u: Array, v: Array, sharp: float) -> Array:
    return _edge(-np.sin(np.pi * u * 1.45) * np.sin(np.pi * v * 1.45) / 3, sharp)


EMBLEMS: dict[str, tuple[Callable[[Array, Array, float], Array], float]] = {
    "ring": (_ring, 0.98),
    "cross": (_cross, 0.63),
    "star": (_star, 0.13),
    "bars": (_bars, 0.80),
    "checker": (_checker, 0.38),
}
"""Class name -> its pattern in [-1, 1]^2 and the hue of its ink. Class i + 1 is the i-th."""


def emblem(rng: Rng, u: Array, v: Array, *, name: str, sharpness: float) -> tuple[Array, Array]:
    """The part that names the class: colours (H, W, 3) and opacity (H, W) of a badge on the disc u^2 + v^2 < 1."""
    pattern, hue = EMBLEMS[name]
    ink = colorsys.hsv_to_rgb((hue + rng.uniform(-0.05, 0.05)) % 1, rng.uniform(0.7, 1), rng.uniform(0.25, 0.75))
    paper = np.float32(rng.uniform(0.88, 1.0))
    radius = np.hypot(u, v)
    amount = np.maximum(pattern(u, v, sharpness), _edge(0.9 - radius, sharpness))[..., None]
    colours = amount * np.asarray(ink, np.float32) + (1 - amount) * paper
    return colours.astype(np.float32), _edge(radius - 1, sharpness).astype(np.float32)
