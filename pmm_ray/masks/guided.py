"""The guided filter (He et al., 2013) as an upsampling: small maps take the edges of the large photo."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import uniform_filter

from pmm_ray.masks.cam import FloatArray


class GuidedUpsampling:
    """Maps of a small photo at the size of the large one, each locally a linear function of its colours.

    In every window of the small photo `a' I + b` is fitted to the map, by least squares and with `epsilon |a|^2`; the
    means of a and b over the windows that hold a pixel are resized, and applied to the large photo's colours. This is
    the fast guided filter (He and Sun, 2015), with all three colours as guide.

    Args:
        small: (h, w, 3) uint8 RGB.
        image: (H, W, 3) uint8 RGB, the same photo.
        radius: Half the windows' side, pixels of the small photo, >= 1.
        epsilon: > 0, of colours in [0, 1]. The larger, the smoother.
    """

    def __init__(self, small: NDArray[np.uint8], image: NDArray[np.uint8], *, radius: int, epsilon: float) -> None:
        self._radius = radius
        self._guide = small.astype(np.float64) / 255
        self._large = image.astype(np.float32) / 255
        self._means = _mean(self._guide, radius)
        products = self._guide[..., :, None] * self._guide[..., None, :]
        covariance = _mean(products, radius) - self._means[..., :, None] * self._means[..., None, :]
        self._inverse = np.linalg.inv(covariance + epsilon * np.eye(3))

    def __call__(self, maps: NDArray[np.floating]) -> FloatArray:
        """(K, h, w) of any range to (K, H, W) float32, not clipped. Of one size this is the guided filter."""
        found = np.empty((len(maps), *self._large.shape[:2]), np.float32)
        for one, out in zip(maps.astype(np.float64), found, strict=True):
            average = _mean(one, self._radius)
            together = _mean(self._guide * one[..., None], self._radius) - self._means * average[..., None]
            slope = (self._inverse @ together[..., None])[..., 0]
            offset = average - (slope * self._means).sum(axis=-1)
            line = _mean(np.concatenate([slope, offset[..., None]], axis=2), self._radius).astype(np.float32)
            at = [resized(line[..., channel], out.shape) for channel in range(4)]
            np.add(sum(at[channel] * self._large[..., channel] for channel in range(3)), at[3], out=out)
        return found


def _mean(values: NDArray[np.float64], radius: int) -> NDArray[np.float64]:
    """Over windows of the first two axes, which end at the border by repeating it."""
    size = (2 * radius + 1, 2 * radius + 1, *[1] * (values.ndim - 2))
    return uniform_filter(values, size=size, mode="nearest")


def resized(values: FloatArray, shape: tuple[int, ...]) -> FloatArray:
    """(h, w) float32 to (H, W) `shape`, bilinear; made smaller, with a wider filter."""
    return np.asarray(Image.fromarray(values).resize((shape[1], shape[0]), Image.Resampling.BILINEAR))
