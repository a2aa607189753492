"""Every way from a CAM to a pseudo-mask as one setting, and many settings on one image at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pmm_ray.masks.baseline import baseline_steps
from pmm_ray.masks.cam import FloatArray, Mask, by_class, threshold_mask
from pmm_ray.masks.crf import Backend, CrfParams, DenseCRF, crf_on
from pmm_ray.masks.cvs import smooth_checked
from pmm_ray.masks.ppg import ppg_steps
from pmm_ray.masks.steps import Steps, finish, finish_together

_TOGETHER = 8
"""Settings at once: with any number of classes they fill the engine's eight lanes, and their scores little memory."""


@dataclass(frozen=True, kw_only=True)
class MaskSetting:
    """The numbers of one mask maker, as `proportional_pseudo_mask`, `baseline_mask` and `threshold_mask` take them.

    Those that a maker does not use do not matter.
    """

    maker: Literal["ppg", "baseline", "threshold"]
    cvs: bool
    s: float
    t: float
    gate: bool
    alpha: float
    proportion: bool
    eps: float
    tie: Literal["background", "foreground"]
    threshold: float
    crf: CrfParams

    @property
    def lattices(self) -> tuple[float, float, float, int]:
        """Settings in which this is equal share lattices and passes: the kernels' widths and the iterations."""
        crf = self.crf
        return crf.gaussian_sxy, crf.bilateral_sxy, crf.bilateral_srgb, crf.iterations


def pseudo_masks(
    image: NDArray[np.uint8],
    cam: NDArray[np.floating],
    class_ids: Sequence[int],
    settings: Sequence[MaskSetting],
    *,
    backend: Backend = "numba",
) -> Iterator[tuple[int, Mask]]:
    """The masks of many settings on one image, each as (index of its setting, mask), in no particular order.

    Settings whose CRF differs in the kernels' weights alone, or not at all, share lattices and passes. One setting's
    mask does not depend on the others, but for single pixels; see `steps.finish_together`.

    Args:
        image: (H, W, 3) uint8 RGB.
        cam: (K, H, W) in [0, 1], normalised, only classes that the image-level labels name.
        class_ids: The K ids of its channels, 1..254.
        settings: Any number.
        backend: See `crf.DenseCRF`.

    Returns:
        Each index once; masks (H, W) uint8 holding 0 and `class_ids` only.

    Raises:
        ValueError: As the makers.
    """
    x, labels = by_class(cam, class_ids)
    groups: dict[tuple[float, ...], list[int]] = defaultdict(list)
    for index, setting in enumerate(settings):
        if setting.maker == "threshold":
            yield index, threshold_mask(_smoothed(x, setting), labels[1:].tolist(), threshold=setting.threshold)
        else:
            groups[setting.lattices].append(index)
    for members in groups.values():
        crf = DenseCRF(image, params=settings[members[0]].crf, backend=backend)
        crf_on(image, crf, shape=x.shape[1:])  # checks the sizes
        # makers that ask for the same kind of problem fill the lanes together, and of these whose points move alike
        members.sort(key=lambda index: (settings[index].maker, settings[index].alpha))
        for first in range(0, len(members), _TOGETHER):
            some = members[first : first + _TOGETHER]
            yield from zip(some, _together(x, labels, [settings[index] for index in some], crf), strict=True)


def _together(x: FloatArray, labels: NDArray[np.uint8], settings: Sequence[MaskSetting], crf: DenseCRF) -> list[Mask]:
    makers = [_steps(x, labels, setting) for setting in settings]
    if len(makers) == 1:
        return [finish(makers[0], crf)]
    weights = np.array([(setting.crf.gaussian_compat, setting.crf.bilateral_compat) for setting in settings])
    return finish_together(makers, crf, weights)


def _steps(x: FloatArray, labels: NDArray[np.uint8], setting: MaskSetting) -> Steps:
    smoothed = _smoothed(x, setting)
    if setting.maker == "baseline":
        return baseline_steps(smoothed, labels, alpha=setting.alpha)
    return ppg_steps(
        x,
        smoothed,
        labels,
        alpha=setting.alpha,
        proportion=setting.proportion,
        eps=setting.eps,
        tie=setting.tie,
    )


def _smoothed(x: FloatArray, setting: MaskSetting) -> FloatArray:
    return smooth_checked(x, s=setting.s, t=setting.t, gate=setting.gate) if setting.cvs else x
