"""The CRF baseline, the row every gain is measured against: one dense CRF over background and all classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pmm_ray.masks.cam import Mask, by_class
from pmm_ray.masks.crf import Crf, CrfParams, crf_on


def baseline_mask(
    image: NDArray[np.uint8],
    cam: NDArray[np.floating],
    class_ids: Sequence[int],
    *,
    alpha: float,
    crf: str | CrfParams | Crf = "baseline",
) -> Mask:
    """Pseudo-mask of PMM section 2.1: background score `(1 - max_c x_c)^alpha`, unaries `[background, x]`, CRF, argmax.

    Args:
        image: (H, W, 3) uint8 RGB.
        cam: (K, H, W) in [0, 1], normalised, only classes that the image-level labels name.
        class_ids: The K ids of its channels, 1..254, in any order.
        alpha: Power of the background score, > 0: 4..32 in practice, 24 for rough masks. Larger means less background.
        crf: A preset's name, constants, or a CRF already made of this image (whose kernels are then shared).

    Returns:
        (H, W) uint8 holding 0 and `class_ids` only; a tie goes to the smallest id. K = 0 gives all background.

    Raises:
        ValueError: Sizes that differ, a CAM outside [0, 1], ids that are no ids, or alpha not above 0.
    """
    if not alpha > 0:
        raise ValueError(f"alpha must be above 0, got {alpha}")
    x, labels = by_class(cam, class_ids)
    refine = crf_on(image, crf, shape=x.shape[1:])
    if not len(x):
        return np.zeros(x.shape[1:], np.uint8)
    background = (1 - x.max(axis=0, keepdims=True)) ** np.float32(alpha)
    return labels[np.argmax(refine.multilabel(np.concatenate([background, x])), axis=0)]
