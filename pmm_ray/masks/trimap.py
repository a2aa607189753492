"""Trimaps from a CAM: what is certain of each class, what is certain background, and what matting is to decide.

One map serves all classes of an image. What is certain of one class is certain not to be of another, so a pixel that is
unknown is unknown for all; the trimap of class c is {c: foreground, 255: unknown, anything else: background}.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pmm_ray.data.dataset import IGNORE
from pmm_ray.masks.cam import FloatArray, Mask, with_background
from pmm_ray.masks.reliable import crf_labels
from pmm_ray.masks.steps import Steps

UNKNOWN = IGNORE


def cam_trimap(x: FloatArray, labels: NDArray[np.uint8], *, high: float, low: float) -> Mask:
    """The trimap that the CAM's own scores make.

    Class c where `x_c > high` and no class scores more, of equal ones the first; background where `max_c x_c < low`;
    unknown elsewhere.

    Args:
        x: (K, H, W) float32 in [0, 1]; K = 0 is all background.
        labels: (K + 1,), 0 and then the ids of the channels.
        high: theta_high in [0, 1], at least `low`.
        low: theta_low in [0, 1].

    Returns:
        (H, W) uint8 holding 0, the ids, and 255 where unknown.

    Raises:
        ValueError: A threshold out of bounds, or `low` above `high`.
    """
    if not 0 <= low <= high <= 1:
        raise ValueError(f"trimap thresholds must be 0 <= low <= high <= 1, got low {low} and high {high}")
    if not len(x):
        return np.zeros(x.shape[1:], np.uint8)
    score = x.max(axis=0)
    trimap = np.full(score.shape, UNKNOWN, np.uint8)
    trimap[score < low] = 0
    certain = score > high
    trimap[certain] = labels[1:][x.argmax(axis=0)[certain]]
    return trimap


def crf_trimap_steps(
    x: FloatArray,
    labels: NDArray[np.uint8],
    *,
    foreground_alpha: float,
    background_alpha: float,
    min_probability: float,
) -> Steps:
    """The trimap that two CRFs make: one finds little foreground, one little background, and both are RRM's.

    See `reliable.crf_labels`: a class where the CRF with `foreground_alpha` says so, background where the one with
    `background_alpha` says so, unknown elsewhere and where the surer of the two is below `min_probability`.

    Args:
        x: (K, H, W) float32 in [0, 1]; K = 0 is all background.
        labels: (K + 1,), 0 and then the ids of the channels.
        foreground_alpha: Power of the background score, > 0: 4.
        background_alpha: The same, > 0: 32. The larger, the less background.
        min_probability: In [0, 1].

    Returns:
        Steps that end in (H, W) uint8 holding 0, the ids, and 255 where unknown.
    """
    if not len(x):
        return np.zeros(x.shape[1:], np.uint8)
    scores = [with_background(x, alpha) for alpha in (foreground_alpha, background_alpha)]
    if len(x) == 1:
        # two-label problems, which the CRF solves side by side and in a third of the time
        inside = yield np.stack(scores)
        narrow, wide = (np.stack([1 - probability, probability]) for probability in inside)
    else:
        narrow = yield scores[0]
        wide = yield scores[1]
    return np.append(labels, np.uint8(UNKNOWN))[crf_labels(narrow, wide, min_probability=min_probability)]


def certain_shares(trimap: Mask, labels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Share of the pixels that are certain of the background and of each class: (K + 1,) in [0, 1], as in `labels`."""
    return np.bincount(trimap.ravel(), minlength=256)[labels] / max(1, trimap.size)
