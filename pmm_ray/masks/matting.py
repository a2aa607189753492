"""Pseudo-labels as image matting: from a CAM's trimap to a matte of each class, and from the mattes to one mask.

The part of "Treating Pseudo-labels Generation as Image Matting" (Mat-Label, ICCV 2023) that needs no network. It is a
reconstruction from the paper's abstract: its thresholds and its matting algorithm are not public here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pmm_ray.masks.cam import FloatArray, Mask, by_class
from pmm_ray.masks.guided import GuidedUpsampling, resized
from pmm_ray.masks.laplacian import LEAST_EPSILON, Kind, Laplacian, laplacian, solve
from pmm_ray.masks.trimap import UNKNOWN, cam_trimap

_GUIDED_RADIUS, _GUIDED_EPSILON = 2, 1e-4
_LEAST_SIDE = 3
"""Of an image that has a Laplacian."""


def matting_mask(
    image: NDArray[np.uint8],
    cam: NDArray[np.floating],
    class_ids: Sequence[int],
    *,
    high: float = 0.45,
    low: float = 0.1,
    kind: Kind = "closed_form",
    epsilon: float = 1e-4,
    size: int = 320,
    margin: float = 0.1,
) -> Mask:
    """Pseudo-mask by matting: the trimap of the CAM, a matte for each class, the argmax of the mattes.

    1. trimap, see `trimap.cam_trimap`;
    2. mattes at working size, brought to the image's, see `Matting.mattes`;
    3. argmax over `[1 - max matte, mattes]`, 255 where the two best are too close, see `merge_mattes`.

    Args:
        image: (H, W, 3) uint8 RGB.
        cam: (K, H, W) in [0, 1], normalised, only classes that the image-level labels name.
        class_ids: The K ids of its channels, 1..254, in any order.
        high: Certain foreground lies above, in [0, 1].
        low: Certain background lies below, in [0, 1], at most `high`.
        kind: See `laplacian.laplacian`, as for `epsilon`.
        epsilon: Likewise.
        size: Long side at which matting is done, pixels; larger images are made smaller for it.
        margin: See `merge_mattes`.

    Returns:
        (H, W) uint8 holding 0, `class_ids` and 255. K = 0 gives all background.

    Raises:
        ValueError: Sizes that differ, a CAM outside [0, 1], ids that are no ids, or a number out of bounds.
    """
    x, labels = by_class(cam, class_ids)
    matting = Matting(image, kind=kind, epsilon=epsilon, size=size)
    matting.check(x.shape[1:])
    mattes = matting.mattes(cam_trimap(x, labels, high=high, low=low), x, labels)
    return merge_mattes(mattes.alpha, labels, margin=margin)


@dataclass(frozen=True)
class Mattes:
    """`alpha` (K, H, W) float32 in [0, 1], and (K,) which of them are the CAM, for want of a trimap (`fell_back`)."""

    alpha: FloatArray
    fell_back: NDArray[np.bool_]


class Matting:
    """Matting of one image. Its Laplacian is made when first needed and serves every trimap.

    Args:
        image: (H, W, 3) uint8 RGB.
        kind: See `laplacian.laplacian`, as for `epsilon`.
        epsilon: Likewise.
        size: Long side at which matting is done, pixels, >= 16.

    Raises:
        ValueError: The image is not (H, W, 3) uint8, or `size` is out of bounds.
    """

    def __init__(self, image: NDArray[np.uint8], *, kind: Kind, epsilon: float, size: int) -> None:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise ValueError(f"the image must be (H, W, 3) uint8 RGB, got {image.dtype} of shape {image.shape}")
        if not (size >= 16 and epsilon >= LEAST_EPSILON):
            least = f"a size of at least 16 and an epsilon of at least {LEAST_EPSILON:g}"
            raise ValueError(f"matting needs {least}, got {size} and {epsilon}")
        self._image, self._kind, self._epsilon = image, kind, epsilon
        scale = min(1.0, size / max(image.shape[:2]))
        height, width = (max(_LEAST_SIDE, round(side * scale)) for side in image.shape[:2])
        self._small = image
        if (height, width) != image.shape[:2]:
            self._small = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BOX))

    @cached_property
    def _laplacian(self) -> Laplacian:
        return laplacian(self._small, kind=self._kind, epsilon=self._epsilon)

    @cached_property
    def _upsampling(self) -> GuidedUpsampling:
        return GuidedUpsampling(self._small, self._image, radius=_GUIDED_RADIUS, epsilon=_GUIDED_EPSILON)

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError if a CAM of (H, W) `shape` is of another size than the image."""
        if self._image.shape[:2] != shape:
            size = " x ".join(map(str, self._image.shape[:2]))
            raise ValueError(
                f"the CAM is {shape[0]} x {shape[1]} pixels, its image {size}; resize the CAM to the image"
            )

    def mattes(self, trimap: Mask, x: FloatArray, labels: NDArray[np.uint8]) -> Mattes:
        """The matte of each class: 1 where the trimap is certain of it, 0 where of anything else, solved between.

        The classes share what is known and so the system of equations; with that of the background their mattes add up
        to 1. A class of which nothing is certain has no matte, and none has one where no background is certain, which
        would leave the background no pixel at all (a departure: certain pixels of other classes alone do not do); nor
        has one whose equations are not solved in time. The CAM takes its place.

        Args:
            trimap: (H, W) uint8 holding 0, the ids, and 255 where unknown.
            x: (K, H, W) float32 in [0, 1], the CAM; also where the solver starts from.
            labels: (K + 1,), 0 and then the ids of the channels.

        Returns:
            The mattes, and which of them are the CAM.
        """
        small = trimap if self._small is self._image else _made_small(trimap, self._small.shape[:2], labels)
        known = small.ravel() != UNKNOWN
        held = np.bincount(small.ravel(), minlength=256)[labels[1:]]
        solved = (held > 0) & (small == 0).any()
        alpha = x.copy()
        if solved.any():
            found, solved[solved] = self._solved(small, known, x[solved], labels[1:][solved])
            alpha[solved] = found
        # a certain pixel is nobody else's, whatever became of the class
        for one, label in zip(alpha, labels[1:], strict=True):
            one[trimap != UNKNOWN] = 0
            one[trimap == label] = 1
        return Mattes(alpha, ~solved)

    def _solved(
        self, small: Mask, known: NDArray[np.bool_], x: FloatArray, ids: NDArray[np.uint8]
    ) -> tuple[FloatArray, NDArray[np.bool_]]:
        """The mattes (k, H, W) that there are, and for which of the (K,) classes."""
        height, width = small.shape
        values = (small.ravel() == ids[:, None]).astype(np.float64)
        start = np.stack([resized(one, (height, width)) for one in x]).reshape(len(x), -1)
        found, solved = solve(self._laplacian, known, values, start.astype(np.float64))
        maps = found[solved].reshape(-1, height, width).clip(0, 1)
        if self._small is not self._image:
            maps = self._upsampling(maps).clip(0, 1)
        return maps.astype(np.float32), solved


def merge_mattes(alpha: FloatArray, labels: NDArray[np.uint8], *, margin: float) -> Mask:
    """The mask of several mattes: argmax over `[1 - max_c alpha_c, alpha]`, 255 where the best two are too close.

    Args:
        alpha: (K, H, W) in [0, 1]; K = 0 is all background.
        labels: (K + 1,), 0 and then the ids of the mattes.
        margin: In [0, 1]. A pixel is 255 where the best score is less than this above the second best; of equal scores
            the first wins with a margin of 0.

    Returns:
        (H, W) uint8 holding 0, the ids and 255.

    Raises:
        ValueError: `margin` is out of bounds.
    """
    if not 0 <= margin <= 1:
        raise ValueError(f"margin must lie in [0, 1], got {margin}")
    if not len(alpha):
        return np.zeros(alpha.shape[1:], np.uint8)
    scores = np.concatenate([1 - alpha.max(axis=0, keepdims=True), alpha])
    mask = labels[scores.argmax(axis=0)]
    second, best = np.partition(scores, -2, axis=0)[-2:]
    mask[best - second < margin] = UNKNOWN
    return mask


def _made_small(trimap: Mask, shape: tuple[int, int], labels: NDArray[np.uint8]) -> Mask:
    """The nearest pixels; of a label that is then nowhere certain, the cells that hold any of it.

    No cell is taken from a label that would be nowhere certain without it. Background is the first to take one, since
    without any no class has a matte.
    """
    rows, columns = (
        ((np.arange(count) + 0.5) * of / count).astype(np.intp) for count, of in zip(shape, trimap.shape, strict=True)
    )
    small = trimap[rows[:, None], columns]
    held = np.bincount(small.ravel(), minlength=256)
    for label in np.setdiff1d(np.intersect1d(labels, trimap), small):
        for y, x in np.argwhere(trimap == label):
            cell = y * shape[0] // trimap.shape[0], x * shape[1] // trimap.shape[1]
            if small[cell] == UNKNOWN or held[small[cell]] > 1:
                held[small[cell]] -= 1
                held[label] += 1
                small[cell] = label
    return small
