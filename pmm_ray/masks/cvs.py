"""Coefficient of variation smoothing, CVS: raise what a classifier under-activates, the more the more uneven it is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pmm_ray.masks.cam import FloatArray, as_cam

MIN_EXPONENT = 0.05
"""Floor of the exponent 1 - s cv. At 0 or below, x^e would turn the order of the scores over and 0 into 1 or infinity.

A foreground in (t, 1] has cv <= (1 - t) / (2 sqrt(t)), 2.12 for t = 0.05, so with the defaults the exponent stays above
0.36 and the floor is never met; it is for sweeps of s and t.
"""


def coefficient_of_variation(cam: NDArray[np.floating], *, t: float) -> FloatArray:
    """How uneven each channel's foreground is: `cv = std(f) / mean(f)`, `f = {x : x > t}`, std over the population.

    Args:
        cam: (K, H, W) in [0, 1]; float16 is welcome, the arithmetic is float32 with float64 sums.
        t: Foreground threshold in [0, 1].

    Returns:
        (K,) float32, finite and >= 0; 0 where no pixel is above t.

    Raises:
        ValueError: See `pmm_ray.masks.cam.as_cam`.
    """
    return _cv(as_cam(cam), t=t)


def _cv(cam: FloatArray, *, t: float) -> FloatArray:
    # products and sums over all pixels: picking the foreground's out takes several times longer
    inside = cam > t
    foreground = cam * inside
    counts = np.maximum([np.count_nonzero(channel) for channel in inside], 1)
    mean = foreground.sum(axis=(1, 2), dtype=np.float64) / counts
    square = np.einsum("khw,khw->k", foreground, foreground, dtype=np.float64) / counts
    variance = np.maximum(square - mean**2, 0)
    return np.divide(np.sqrt(variance), mean, out=np.zeros_like(mean), where=mean > 0).astype(np.float32)


def smooth(cam: NDArray[np.floating], *, s: float, t: float, gate: bool = True) -> FloatArray:
    """CVS: `x^(1 - s cv)` per channel, with `cv` of `coefficient_of_variation`.

    Departures: the exponent is kept at or above `MIN_EXPONENT`. With `gate` (the released code; the formula has none)
    pixels with x < t are set to 0 first; x = t is kept, though it is no foreground of cv.

    Args:
        cam: (K, H, W) in [0, 1], normalised.
        s: Strength, >= 0; 0 leaves the exponent at 1.
        t: Foreground threshold in [0, 1].
        gate: Whether to zero what lies below t.

    Returns:
        (K, H, W) float32 in [0, 1]. Within a channel the order of the pixels stays, and none that is kept falls.

    Raises:
        ValueError: s is negative, or see `pmm_ray.masks.cam.as_cam`.
    """
    return smooth_checked(as_cam(cam), s=s, t=t, gate=gate)


def smooth_checked(x: FloatArray, *, s: float, t: float, gate: bool) -> FloatArray:
    """`smooth` of a CAM that `as_cam` has made: the same, without looking at every pixel for what may be wrong."""
    if not s >= 0:
        raise ValueError(f"the smoothing strength s must be >= 0, got {s}")
    exponent = np.maximum(1 - np.float32(s) * _cv(x, t=t), np.float32(MIN_EXPONENT))
    # 0 stays 0 whatever the exponent, and costs the power function ten times what other numbers do
    kept = (x > 0) & (x >= t) if gate else x > 0
    return np.power(x, exponent[:, None, None], out=np.zeros_like(x), where=kept)
