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
from pmm_ray.masks.laplacian import Kind
from pmm_ray.masks.matting import Matting, merge_mattes
from pmm_ray.masks.ppg import ppg_steps
from pmm_ray.masks.steps import Steps, finish_together
from pmm_ray.masks.trimap import cam_trimap, certain_shares, crf_trimap_steps

TOGETHER = 8
"""Settings at once: with any number of classes they fill the engine's eight lanes, and their scores little memory."""


@dataclass(frozen=True, kw_only=True)
class MattingSetting:
    """The numbers of trimap and matting, as `cam_trimap` or `crf_trimap_steps`, `Matting` and `merge_mattes` take them.

    Those that a source does not use do not matter.
    """

    source: Literal["cam", "crf"]
    high: float
    low: float
    foreground_alpha: float
    background_alpha: float
    min_probability: float
    kind: Kind
    epsilon: float
    size: int
    margin: float


@dataclass(frozen=True, kw_only=True)
class MaskSetting:
    """The numbers of one mask maker, as `proportional_pseudo_mask`, `baseline_mask` and `threshold_mask` take them.

    Those that a maker does not use do not matter. `matting`, which wants numbers of its own, has `MattingSetting`.
    """

    maker: Literal["ppg", "baseline", "threshold", "matting"]
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
    matting: MattingSetting | None = None

    def __post_init__(self) -> None:
        if self.maker == "matting" and self.matting is None:
            raise ValueError("the maker 'matting' needs a MattingSetting")

    @property
    def mattes(self) -> MattingSetting | None:
        """Those of matting, where it is the maker."""
        return self.matting if self.maker == "matting" else None

    @property
    def lattices(self) -> tuple[float, float, float, int]:
        """Settings in which this is equal share lattices and passes: the kernels' widths and the iterations."""
        crf = self.crf
        return crf.gaussian_sxy, crf.bilateral_sxy, crf.bilateral_srgb, crf.iterations


@dataclass(frozen=True)
class PseudoMask:
    """A mask (H, W) uint8; and what the maker `matting` knew, all others have none of it.

    `certain` is the share of the pixels that its trimap is certain of: of the background, then of each class by its id.
    `fell_back` are the ids of classes that had no matte (see `Matting.mattes`) and whose CAM stands in for one.
    `trimap` is (H, W) uint8 with 255 where unknown, `mattes` (K, H, W) float32 in [0, 1] by id.
    """

    mask: Mask
    certain: tuple[float, ...] | None = None
    fell_back: tuple[int, ...] = ()
    trimap: Mask | None = None
    mattes: FloatArray | None = None


def pseudo_masks(
    image: NDArray[np.uint8],
    cam: NDArray[np.floating],
    class_ids: Sequence[int],
    settings: Sequence[MaskSetting],
    *,
    backend: Backend = "numba",
) -> Iterator[tuple[int, PseudoMask]]:
    """The masks of many settings on one image, each with the index of its setting, in no particular order.

    Settings whose CRF differs in the kernels' weights alone, or not at all, share lattices and passes. Those of matting
    share its Laplacian. One setting's mask does not depend on the others, but for single pixels; see
    `steps.finish_together`.

    Args:
        image: (H, W, 3) uint8 RGB.
        cam: (K, H, W) in [0, 1], normalised, only classes that the image-level labels name.
        class_ids: The K ids of its channels, 1..254.
        settings: Any number.
        backend: See `crf.DenseCRF`.

    Returns:
        Each index once; its mask holds 0 and `class_ids` only, of matting also 255.

    Raises:
        ValueError: As the makers.
    """
    x, labels = by_class(cam, class_ids)
    finished = _Finish(image, x, labels)
    groups: dict[tuple[float, ...], list[int]] = defaultdict(list)
    for index, setting in enumerate(settings):
        if setting.maker == "threshold":
            mask = threshold_mask(_smoothed(x, setting), labels[1:].tolist(), threshold=setting.threshold)
            yield index, PseudoMask(mask)
        elif (how := setting.mattes) is not None and how.source == "cam":
            trimap = cam_trimap(_smoothed(x, setting), labels, high=how.high, low=how.low)
            yield index, finished.of(setting, trimap)
        else:
            groups[setting.lattices].append(index)
    for members in groups.values():
        crf = DenseCRF(image, params=settings[members[0]].crf, backend=backend)
        crf_on(image, crf, shape=x.shape[1:])  # checks the sizes
        # makers that ask for the same kind of problem fill the lanes together, and of these whose points move alike
        members.sort(key=lambda index: (settings[index].maker, settings[index].alpha))
        for first in range(0, len(members), TOGETHER):
            some = members[first : first + TOGETHER]
            found = _together(x, labels, [settings[index] for index in some], crf)
            yield from ((i, finished.of(settings[i], mask)) for i, mask in zip(some, found, strict=True))


class _Finish:
    """What remains to be done with what a setting's steps returned: nothing, or matting with that as the trimap."""

    def __init__(self, image: NDArray[np.uint8], x: FloatArray, labels: NDArray[np.uint8]) -> None:
        self._image, self._x, self._labels = image, x, labels
        self._mattings: dict[tuple[str, float, int], Matting] = {}

    def of(self, setting: MaskSetting, found: Mask) -> PseudoMask:
        how = setting.mattes
        if how is None:
            return PseudoMask(found)
        mattes = self._matting(how).mattes(found, _smoothed(self._x, setting), self._labels)
        return PseudoMask(
            merge_mattes(mattes.alpha, self._labels, margin=how.margin),
            tuple(certain_shares(found, self._labels).tolist()),
            tuple(self._labels[1:][mattes.fell_back].tolist()),
            trimap=found,
            mattes=mattes.alpha,
        )

    def _matting(self, how: MattingSetting) -> Matting:
        """The image's, which all settings of its kind and size share."""
        key = how.kind, how.epsilon, how.size
        if key not in self._mattings:
            self._mattings[key] = Matting(self._image, kind=how.kind, epsilon=how.epsilon, size=how.size)
            self._mattings[key].check(self._x.shape[1:])
        return self._mattings[key]


def _together(x: FloatArray, labels: NDArray[np.uint8], settings: Sequence[MaskSetting], crf: DenseCRF) -> list[Mask]:
    makers = [_steps(x, labels, setting) for setting in settings]
    # their own: the CRF's are those of whichever setting it was made for
    weights = np.array([(setting.crf.gaussian_compat, setting.crf.bilateral_compat) for setting in settings])
    return finish_together(makers, crf, weights)


def _steps(x: FloatArray, labels: NDArray[np.uint8], setting: MaskSetting) -> Steps:
    smoothed = _smoothed(x, setting)
    if setting.maker == "baseline":
        return baseline_steps(smoothed, labels, alpha=setting.alpha)
    if (how := setting.mattes) is not None:
        return crf_trimap_steps(
            smoothed,
            labels,
            foreground_alpha=how.foreground_alpha,
            background_alpha=how.background_alpha,
            min_probability=how.min_probability,
        )
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
