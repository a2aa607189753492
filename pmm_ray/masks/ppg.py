"""Proportional pseudo-mask generation, PPG: each class meets the CRF alone, then classes compare shares, not scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pmm_ray.masks.cam import FloatArray, Mask, by_class
from pmm_ray.masks.crf import Crf, CrfParams, crf_on
from pmm_ray.masks.cvs import smooth_checked
from pmm_ray.masks.steps import Steps, finish


def proportional_pseudo_mask(
    image: NDArray[np.uint8],
    cam: NDArray[np.floating],
    class_ids: Sequence[int],
    *,
    s: float = 0.3,
    t: float = 0.05,
    alpha: float = 11.0,
    gate: bool = True,
    cvs: bool = True,
    proportion: bool = True,
    eps: float = 1.0,
    tie: Literal["background", "foreground"] = "background",
    crf: str | CrfParams | Crf = "ppg",
) -> Mask:
    """PMM's pseudo-mask: CVS, one two-label CRF per class, then an argmax over each class's proportions.

    With x the CAM and x' the smoothed CAM (x' = x without `cvs`, and then no gate either), per class c:

    1. `m_c = [CRF({(1 - x'_c)^alpha, x'_c}) > 0.5]`, see `foreground_scores`;
    2. `p_c = x_c / (eps + sum x_c m_c)` on the unsmoothed x, see `proportions`; or `p_c = x_c` without `proportion`;
    3. background is 1 where no m_c holds; the mask is the argmax over `[background, m_c p_c]`, see `merge`.

    The classes do not see each other before step 3, so K classes cost K two-label problems on shared kernels.

    Args:
        image: (H, W, 3) uint8 RGB.
        cam: (K, H, W) in [0, 1], any real dtype, normalised, only classes that the image-level labels name.
        class_ids: The K ids of its channels, 1..254, in any order.
        s: CVS strength, >= 0.
        t: CVS foreground threshold in [0, 1].
        alpha: Power of the background score, > 0. Larger means less background.
        gate: CVS: zero x < t first, as released.
        cvs: Whether to smooth at all.
        proportion: Whether classes compare shares (the paper) or their scores.
        eps: 1 as released, 0 as in the paper.
        tie: What a pixel becomes that is in some m_c but scores 0 in all of them: "background" as released, or
            "foreground", the smallest such id.
        crf: A preset's name, constants, or a CRF already made of this image (whose kernels are then shared).

    Returns:
        (H, W) uint8 holding 0 and `class_ids` only. K = 0 gives all background.

    Raises:
        ValueError: Sizes that differ, a CAM outside [0, 1], ids that are no ids, or a number out of bounds.
    """
    x, labels = by_class(cam, class_ids)
    smoothed = smooth_checked(x, s=s, t=t, gate=gate) if cvs else x
    steps = ppg_steps(x, smoothed, labels, alpha=alpha, proportion=proportion, eps=eps, tie=tie)
    return finish(steps, crf_on(image, crf, shape=x.shape[1:]))


def ppg_steps(
    x: FloatArray,
    smoothed: FloatArray,
    labels: NDArray[np.uint8],
    *,
    alpha: float,
    proportion: bool,
    eps: float,
    tie: Literal["background", "foreground"],
) -> Steps:
    """The three steps of `proportional_pseudo_mask`, from a CAM that `by_class` has checked and ordered.

    Args:
        x: (K, H, W) float32 in [0, 1].
        smoothed: x', of the same shape; or x itself.
        labels: (K + 1,), 0 and then the ids of the channels.
        alpha: See `proportional_pseudo_mask`, as for the others.
        proportion: Likewise.
        eps: Likewise.
        tie: Likewise.
    """
    # 0.5 itself is background
    inside = (yield foreground_scores(smoothed, alpha=alpha)) > 0.5
    return labels[merge(inside, proportions(x, inside, eps=eps) if proportion else x, tie=tie)]


def foreground_scores(x: FloatArray, *, alpha: float) -> FloatArray:
    """PPG step 1: what each class brings to the CRF, where it meets the background alone: `{(1 - x_c)^alpha, x_c}`.

    Args:
        x: (K, H, W) float32 in [0, 1], the smoothed CAM.
        alpha: Power of the background score, > 0.

    Returns:
        (K, 2, H, W) float32, {background, foreground}.

    Raises:
        ValueError: alpha is not above 0.
    """
    if not alpha > 0:
        raise ValueError(f"alpha must be above 0, got {alpha}")
    scores = np.stack([x, x], axis=1)
    background = np.subtract(1, x, out=scores[:, 0])
    np.power(background, np.float32(alpha), out=background)
    return scores


def proportions(x: FloatArray, inside: NDArray[np.bool_], *, eps: float) -> FloatArray:
    """PPG step 2: `p_c = x_c / (eps + sum x_c m_c)`, the share of the class's whole score that a pixel holds.

    A small object thereby wins pixels from a large one. With eps = 0 a class without any score inside has shares 0.

    Args:
        x: (K, H, W) float32 in [0, 1], the CAM before smoothing.
        inside: (K, H, W) bool, m_c.
        eps: >= 0.

    Returns:
        (K, H, W) float32, >= 0.

    Raises:
        ValueError: eps is negative.
    """
    if not eps >= 0:
        raise ValueError(f"eps must be >= 0, got {eps}")
    # a product, which is faster than a sum of some
    rows = np.sum(x * inside, axis=2, keepdims=True)
    total = eps + rows.sum(axis=1, keepdims=True, dtype=np.float64)
    below: FloatArray = np.where(total > 0, total, np.inf).astype(np.float32)
    return x / below


def merge(
    inside: NDArray[np.bool_], scores: FloatArray, *, tie: Literal["background", "foreground"] = "background"
) -> NDArray[np.intp]:
    """PPG step 3: argmax over `[no class inside, m_c score_c]`; of equal classes the first wins.

    A pixel that is inside some class but scores 0 in all of them equals the background, which is first. That is the
    released code's outcome ("background"); "foreground" gives it to the first class it is inside.

    Args:
        inside: (K, H, W) bool.
        scores: (K, H, W) float32, >= 0.
        tie: "background" or "foreground".

    Returns:
        (H, W) indices: 0 background, 1 + k for channel k.

    Raises:
        ValueError: No such tie rule.
    """
    if tie not in ("background", "foreground"):
        raise ValueError(f"tie must be 'background' or 'foreground', got {tie!r}")
    index = np.zeros(inside.shape[1:], np.intp)
    best = np.zeros(inside.shape[1:], scores.dtype)
    for k, (held, score) in enumerate(zip(inside, scores, strict=True), start=1):
        # A class at a time: numpy's argmax over the first axis is several times slower.
        wins = held & (score > best)
        if tie == "foreground":
            wins |= held & (index == 0)
        np.copyto(best, score, where=wins)
        np.copyto(index, k, where=wins)
    return index
