"""Class activation maps: what they must look like, their normalisation, and the plainest pseudo-mask.

A CAM here is (K, H, W), one channel for each class that the image-level labels name, in [0, 1]. Channel k belongs to
`class_ids[k]`. Ids: 0 background, 1..C classes, 255 ignore.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.uint8]
FloatArray = NDArray[np.float32]

_ROUNDING = 1e-3
"""How far outside [0, 1] a value may lie and still be taken for the rounding of a resize or of float16."""


def as_cam(cam: NDArray[np.floating]) -> FloatArray:
    """A CAM as the mask makers compute with it: a (K, H, W) float32 copy, clipped to [0, 1].

    float16 is widened before any arithmetic, because sums over a large object pass float16's largest value, 65504.

    Raises:
        ValueError: `cam` is not (K, H, W) of real numbers, has NaN or infinite values, or leaves [0, 1] by more than
            rounding.
    """
    array = np.asarray(cam)
    if array.ndim != 3 or array.dtype.kind not in "fiub":
        raise ValueError(f"a CAM must be a (K, H, W) array of real numbers, got {array.dtype} of shape {array.shape}")
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise ValueError("the CAM has NaN or infinite values; normalise it and look at the network that made it")
    if array.size and (array.min() < -_ROUNDING or array.max() > 1 + _ROUNDING):
        raise ValueError(f"the CAM must lie in [0, 1], got {array.min():g} .. {array.max():g}; normalise it first")
    return np.clip(array, 0.0, 1.0, out=array)


def by_class(cam: NDArray[np.floating], class_ids: Sequence[int]) -> tuple[FloatArray, Mask]:
    """Check a CAM and its ids, and order both by id, so that no result depends on the order of the channels.

    Args:
        cam: (K, H, W) in [0, 1], any real dtype.
        class_ids: K different ids in 1..254.

    Returns:
        The CAM, (K, H, W) float32, channels in ascending order of id; and the labels that an argmax over
        [background, channels] points into, (K + 1,) uint8: 0 and then the ids.

    Raises:
        ValueError: See `as_cam`; or the ids are not K different integers in 1..254.
    """
    scores = as_cam(cam)
    ids = np.asarray(class_ids)
    if ids.ndim != 1 or len(ids) != len(scores):
        raise ValueError(f"{len(scores)} CAM channels need as many class ids, got {list(np.ravel(ids))}")
    if len(ids) and (ids.dtype.kind not in "iu" or ids.min() < 1 or ids.max() > 254):
        raise ValueError(f"class ids must be integers in 1..254 (0 is background, 255 ignore), got {ids.tolist()}")
    if len(np.unique(ids)) != len(ids):
        raise ValueError(f"class ids must differ, got {ids.tolist()}")
    order = np.argsort(ids)
    return scores[order], np.concatenate([[0], ids[order]]).astype(np.uint8)


def with_background(x: FloatArray, alpha: float) -> FloatArray:
    """The classes beside a background that is what they leave: `[(1 - max_c x_c)^alpha, x]`.

    Args:
        x: (K, H, W) float32 in [0, 1]; with K = 0 the background scores 1.
        alpha: Power of the background score, > 0. Larger means less background.

    Returns:
        (K + 1, H, W) float32 in [0, 1].

    Raises:
        ValueError: alpha is not above 0.
    """
    if not alpha > 0:
        raise ValueError(f"alpha must be above 0, got {alpha}")
    return np.concatenate([(1 - x.max(axis=0, keepdims=True, initial=0)) ** np.float32(alpha), x])


def normalise(cam: NDArray[np.floating]) -> FloatArray:
    """Min-max normalisation of each class channel, PMM eq. 1: `(x - min x) / (max x - min x)`.

    Departure: a constant channel, where the equation divides by zero, becomes all zeros.

    Args:
        cam: (K, H, W) real and finite, any range.

    Returns:
        (K, H, W) float32 in [0, 1].

    Raises:
        ValueError: `cam` is not (K, H, W), or has NaN or infinite values.
    """
    x = np.asarray(cam)
    if x.ndim != 3:
        raise ValueError(f"a CAM must be (K, H, W), got shape {x.shape}")
    x = x.astype(np.float32)
    if not np.isfinite(x).all():
        raise ValueError("the CAM has NaN or infinite values; look at the network that made it")
    if not x.size:
        return x
    low, high = x.min(axis=(1, 2), keepdims=True), x.max(axis=(1, 2), keepdims=True)
    # In float64: the span of two float32 numbers can pass float32's largest value.
    span = high.astype(np.float64) - low
    scaled = (x.astype(np.float64) - low) / np.where(span > 0, span, 1.0)
    return scaled.astype(np.float32)


def divided_by_peak(cam: NDArray[np.floating]) -> FloatArray:
    """RRM's normalisation of each class channel: `x / max x`, so that 0 stays 0.

    Args:
        cam: (K, H, W) real and finite, >= 0 (after ReLU).

    Returns:
        (K, H, W) float32 in [0, 1]; a channel of zeros stays one.

    Raises:
        ValueError: `cam` is not (K, H, W), or has NaN, infinite or negative values.
    """
    if np.ndim(cam) != 3:
        raise ValueError(f"a CAM must be (K, H, W), got shape {np.shape(cam)}")
    x: FloatArray = np.asarray(cam, np.float32)
    if x.size and not (x.min() >= 0 and x.max() < np.inf):
        raise ValueError("the CAM has NaN, infinite or negative values; look at the network that made it")
    peak = x.max(axis=(1, 2), keepdims=True, initial=0)
    below: FloatArray = np.where(peak > 0, peak, 1).astype(np.float32)
    return x / below


def threshold_mask(cam: NDArray[np.floating], class_ids: Sequence[int], *, threshold: float) -> Mask:
    """The pseudo-mask without refinement: argmax over [threshold, cam]; the background scores `threshold` everywhere.

    A tie goes to the background, then to the smallest id.

    Args:
        cam: (K, H, W) in [0, 1], normalised (`normalise`).
        class_ids: The K ids of its channels, 1..254.
        threshold: Background score in [0, 1].

    Returns:
        (H, W) uint8 holding 0 and `class_ids` only; K = 0 gives all background.

    Raises:
        ValueError: See `by_class`.
    """
    scores, labels = by_class(cam, class_ids)
    background = np.full((1, *scores.shape[1:]), threshold, np.float32)
    return labels[np.argmax(np.concatenate([background, scores]), axis=0)]
