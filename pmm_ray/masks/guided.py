"""The guided filter (He et al., 2013) as an upsampling: small maps take the edges of the large photo."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import uniform_filter

from pmm_ray.masks.cam import FloatArray


def guided_upsampling(
    maps: NDArray[np.floating], small: NDArray[np.uint8], image: NDArray[np.uint8], *, radius: int, epsilon: float
) -> FloatArray:
    """Maps of a small photo at the size of the large one, each locally a linear function of its colours.

    In every window of the small photo `a' I + b` is fitted to the map, by least squares and with `epsilon |a|^2`; the
    means of a and b over the windows that hold a pixel are resized, and applied to the large photo's colours. This is
    the fast guided filter (He and Sun, 2015), with all three colours as guide.

    Args:
        maps: (K, h, w), any range.
        small: (h, w, 3) uint8 RGB.
        image: (H, W, 3) uint8 RGB, the same photo.
        radius: Half the windows' side, pixels of the small photo, >= 1.
        epsilon: > 0, of colours in [0, 1]. The larger, the smoother.

    Returns:
        (K, H, W) float32, not clipped. With `image` the same as `small` this is the guided filter.
    """
    guide = small.astype(np.float64) / 255
    mean = _mean(guide, radius)
    products = guide[..., :, None] * guide[..., None, :]
    covariance = _mean(products, radius) - mean[..., :, None] * mean[..., None, :]
    inverse = np.linalg.inv(covariance + epsilon * np.eye(3))
    large = image.astype(np.float32) / 255
    found = np.empty((len(maps), *image.shape[:2]), np.float32)
    for one, out in zip(maps.astype(np.float64), found, strict=True):
        average = _mean(one, radius)
        together = _mean(guide * one[..., None], radius) - mean * average[..., None]
        slope = (inverse @ together[..., None])[..., 0]
        offset = average - (slope * mean).sum(axis=-1)
        line = _mean(np.concatenate([slope, offset[..., None]], axis=2), radius).astype(np.float32)
        at = np.stack([_resized(line[..., channel], image.shape[:2]) for channel in range(4)], axis=-1)
        out[...] = (at[..., :3] * large).sum(axis=-1) + at[..., 3]
    return found


def _mean(values: NDArray[np.float64], radius: int) -> NDArray[np.float64]:
    """Over windows of the first two axes, which end at the border by repeating it."""
    size = (2 * radius + 1, 2 * radius + 1, *[1] * (values.ndim - 2))
    return uniform_filter(values, size=size, mode="nearest")


def _resized(values: FloatArray, shape: tuple[int, ...]) -> FloatArray:
    return np.asarray(Image.fromarray(values).resize((shape[1], shape[0]), Image.Resampling.BILINEAR))
