"""The guided filter against its definition, window by window."""

from __future__ import annotations

import numpy as np
from PIL import Image

from pmm_ray.masks.guided import GuidedUpsampling


def slow(maps, image, radius, epsilon):
    """The guided filter as the paper writes it, one window after the other; windows repeat the border."""
    guide = np.pad(image / 255, ((radius, radius), (radius, radius), (0, 0)), mode="edge")
    height, width = image.shape[:2]
    lines = np.zeros((height, width, 4))
    values = np.pad(maps, radius, mode="edge")
    side = 2 * radius + 1
    for y in range(height):
        for x in range(width):
            colours = guide[y : y + side, x : x + side].reshape(-1, 3)
            window = values[y : y + side, x : x + side].ravel()
            centred = colours - colours.mean(axis=0)
            covariance = centred.T @ centred / len(window) + epsilon * np.eye(3)
            a = np.linalg.solve(covariance, centred.T @ (window - window.mean()) / len(window))
            lines[y, x] = [*a, window.mean() - a @ colours.mean(axis=0)]
    padded = np.pad(lines, ((radius, radius), (radius, radius), (0, 0)), mode="edge")
    found = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            line = padded[y : y + side, x : x + side].reshape(-1, 4).mean(axis=0)
            found[y, x] = line[:3] @ (image[y, x] / 255) + line[3]
    return found


def test_at_one_size_it_is_the_guided_filter():
    rng = np.random.default_rng(0)
    image, maps = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8), rng.random((2, 9, 12))
    found = GuidedUpsampling(image, image, radius=2, epsilon=1e-2)(maps)
    assert found.dtype == np.float32 and found.shape == (2, 9, 12)
    for one, own in zip(found, maps, strict=True):
        np.testing.assert_allclose(one, slow(own, image, 2, 1e-2), atol=1e-4)


def test_a_small_map_takes_the_edge_of_the_large_photo():
    large = np.full((80, 100, 3), 40, np.uint8)
    large[:, 53:] = (220, 200, 90)
    small = np.asarray(Image.fromarray(large).resize((25, 20), Image.Resampling.BOX))
    # of whose pixels one column lies across the edge
    matte = np.zeros((1, 20, 25))
    matte[:, :, 13] = 0.75
    matte[:, :, 14:] = 1
    (found,) = GuidedUpsampling(small, large, radius=2, epsilon=1e-4)(matte)
    np.testing.assert_array_equal(found > 0.5, np.arange(100)[None].repeat(80, 0) >= 53)
    assert found[:, :50].max() < 0.1 and found[:, 57:].min() > 0.9


def test_between_the_pixels_of_a_small_map_a_ramp_goes_on():
    flat = np.full((80, 100, 3), 90, np.uint8)
    ramp = np.arange(25.0)[None, None].repeat(20, 1)
    (found,) = GuidedUpsampling(flat[:20, :25], flat, radius=1, epsilon=1e-4)(ramp)
    # four pixels to one, whose centres lie on each other; windows at the border bend it
    np.testing.assert_allclose(
        found[:, 16:-16], ((np.arange(100) + 0.5) / 4 - 0.5)[None, 16:-16].repeat(80, 0), atol=1e-4
    )


def test_a_constant_stays_one():
    image = np.random.default_rng(0).integers(0, 256, (30, 20, 3), dtype=np.uint8)
    found = GuidedUpsampling(image[:5, :6], image, radius=1, epsilon=1e-4)(np.full((1, 5, 6), 0.3))
    np.testing.assert_allclose(found, 0.3, atol=1e-5)
