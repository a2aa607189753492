"""Reliable labels of "Reliability Does Matter" (RRM, AAAI 2020): few pixels, but those where CAM and CRF are sure.

Two witnesses speak of one CAM. The CAM itself is sure of each class's strongest pixels and of clear background. Two
dense CRFs, one made to find little foreground (alpha 4) and one made to find little background (alpha 32), are sure
where their probability is high. What both are sure of is a label, all else is 255 and left to the other losses.

Labels are handled as numbers of channels here, 0 background and k + 1 for channel k, `UNSURE` for none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pmm_ray.data.dataset import IGNORE
from pmm_ray.masks.cam import FloatArray, Mask, by_class, with_background
from pmm_ray.masks.crf import Crf, CrfParams, crf_on

Rule = Literal["union", "agreement", "crf"]
UNSURE = -1


def reliable_labels(
    image: NDArray[np.uint8],
    cam: NDArray[np.floating],
    class_ids: Sequence[int],
    *,
    rule: Rule = "union",
    cam_alpha: float = 32.0,
    foreground_alpha: float = 4.0,
    background_alpha: float = 32.0,
    min_score: float = 0.1,
    top_share: float = 0.4,
    min_background: float = 0.8,
    min_probability: float = 0.8,
    crf: str | CrfParams | Crf = "rrm_train",
) -> Mask:
    """RRM's labels of one image, as far as they are reliable.

    The CAM's sure pixels are `sure_pixels`, the CRFs' are `crf_labels`. What they make together is the rule's:

    - `union`, as released: the CRFs' label wherever the CAM is sure of anything, also of another class.
    - `agreement`, the paper's wording: a label where both name the same class.
    - `crf`, no reliability at all: the argmax of the CRF with `foreground_alpha`, at every pixel.

    Args:
        image: (H, W, 3) uint8 RGB.
        cam: (K, H, W) in [0, 1], each class divided by its maximum, only classes that the image-level labels name.
        class_ids: The K ids of its channels, 1..254, in any order.
        rule: As said.
        cam_alpha: Power of the background score that the CAM's own argmax competes with, > 0.
        foreground_alpha: Power of the background score in the CRF that foreground is taken from, > 0.
        background_alpha: The same in the CRF that background is taken from, > 0. The larger, the less background.
        min_score: The CAM is sure of foreground only above this score, in [0, 1].
        top_share: And only of this share of the class's pixels above `min_score`, those of the highest scores.
        min_background: The CAM is sure of background above this background score, in [0, 1].
        min_probability: The CRFs are sure from this probability on, in [0, 1].
        crf: A preset's name, constants, or a CRF already made of this image (whose kernels are then shared).

    Returns:
        (H, W) uint8 holding 0, `class_ids` and 255. K = 0 gives all background, of which there is no doubt then.

    Raises:
        ValueError: Sizes that differ, a CAM outside [0, 1], ids that are no ids, no such rule, or a number out of
            bounds.
    """
    if rule not in ("union", "agreement", "crf"):
        raise ValueError(f"no rule {rule!r}; there are union, agreement, crf")
    _check_shares(
        min_score=min_score, top_share=top_share, min_background=min_background, min_probability=min_probability
    )
    for name, alpha in (("cam", cam_alpha), ("foreground", foreground_alpha), ("background", background_alpha)):
        if not alpha > 0:
            raise ValueError(f"{name}_alpha must be above 0, got {alpha}")
    x, labels = by_class(cam, class_ids)
    solver = crf_on(image, crf, shape=x.shape[1:])
    if not len(x):
        return np.zeros(x.shape[1:], np.uint8)
    if rule == "crf":
        return labels[solver.multilabel(with_background(x, foreground_alpha)).argmax(axis=0)]
    sure = sure_pixels(x, alpha=cam_alpha, min_score=min_score, top_share=top_share, min_background=min_background)
    # side by side in the engine's lanes, the second problem costs next to nothing
    both = solver.multilabel(np.stack([with_background(x, foreground_alpha), with_background(x, background_alpha)]))
    found = crf_labels(both[0], both[1], min_probability=min_probability)
    agreed = sure != UNSURE if rule == "union" else sure == found
    return np.append(labels, np.uint8(IGNORE))[np.where(agreed, found, UNSURE)]


def sure_pixels(
    x: FloatArray, *, alpha: float, min_score: float, top_share: float, min_background: float
) -> NDArray[np.intp]:
    """Where the CAM is sure, and of which class: `A = argmax [(1 - max_c x_c)^alpha, x]` at high scores.

    Of background, where A = 0 and its score is above `min_background`. Of class c, where A = c, x_c > `min_score`, and
    x_c is above the score at place `floor((1 - top_share) n)` in the ascending order of those n. A class without such a
    pixel, or one whose scores there are all the same, is nowhere sure. A tie in A goes to the background, then to the
    first channel.

    Args:
        x: (K, H, W) float32 in [0, 1], K >= 1.
        alpha: > 0.
        min_score: In [0, 1].
        top_share: In [0, 1].
        min_background: In [0, 1].

    Returns:
        (H, W): 0 background, k + 1 channel k, `UNSURE`.

    Raises:
        ValueError: A number out of bounds.
    """
    _check_shares(min_score=min_score, top_share=top_share, min_background=min_background)
    scores = with_background(x, alpha)
    winner, score = scores.argmax(axis=0), scores.max(axis=0)
    sure = np.full(winner.shape, UNSURE, np.intp)
    sure[(winner == 0) & (score > min_background)] = 0
    for channel in range(1, len(scores)):
        candidates = (winner == channel) & (score > min_score)
        own = score[candidates]
        place = int(len(own) * (1 - top_share))
        if place < len(own):
            sure[candidates & (score > np.partition(own, place)[place])] = channel
    return sure


def crf_labels(foreground: FloatArray, background: FloatArray, *, min_probability: float) -> NDArray[np.intp]:
    """Where the two CRFs are sure, and of which class.

    1. The argmax of `foreground`, unsure where that is background;
    2. background where the argmax of `background` says so, also in place of a class;
    3. unsure where neither `background` of background nor `foreground` of any class reaches `min_probability`.

    Args:
        foreground: (L, H, W) probabilities, L >= 2, background first, of the CRF with much background (a small alpha).
        background: (L, H, W), the same of the CRF with little background (a large alpha).
        min_probability: In [0, 1].

    Returns:
        (H, W): 0 background, k + 1 channel k, `UNSURE`.

    Raises:
        ValueError: `min_probability` is out of bounds, or the two are not of one such shape.
    """
    _check_shares(min_probability=min_probability)
    if foreground.shape != background.shape or len(foreground) < 2:
        raise ValueError(
            f"two times the same (L, H, W) with L >= 2 is wanted, got {foreground.shape}, {background.shape}"
        )
    found = foreground.argmax(axis=0)
    found[found == 0] = UNSURE
    found[background.argmax(axis=0) == 0] = 0
    highest = np.maximum(background[0], foreground[1:].max(axis=0))
    found[highest < min_probability] = UNSURE
    return found


def _check_shares(**numbers: float) -> None:
    for name, value in numbers.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {value}")
