"""The CRF baseline, the row every gain is measured against: one dense CRF over background and all classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pmm_ray.masks.cam import FloatArray, Mask, by_class, with_background
from pmm_ray.masks.crf import Crf, CrfParams, crf_on
from pmm_ray.masks.steps import Steps, finish


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
    x, labels = by_class(cam, class_ids)
    return finish(baseline_steps(x, labels, alpha=alpha), crf_on(image, crf, shape=x.shape[1:]))


def baseline_steps(x: FloatArray, labels: NDArray[np.uint8], *, alpha: float) -> Steps:
    """What `baseline_mask` does with a CAM that `by_class` has checked and ordered.

    Background and one class are a two-label problem, which the CRF solves in a third of the time.

    Args:
        x: (K, H, W) float32 in [0, 1].
        labels: (K + 1,), 0 and then the ids of the channels.
        alpha: > 0.
    """
    scores = with_background(x, alpha)
    if not len(x):
        return np.zeros(x.shape[1:], np.uint8)
    if len(x) == 1:
        return labels[((yield scores[None])[0] > 0.5).astype(np.intp)]
    return labels[np.argmax((yield scores), axis=0)]
