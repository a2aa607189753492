"""Scores of label masks, all from one confusion matrix.

Protocol: 255 in the ground truth leaves a pixel out. 255 in a prediction (a pseudo-mask may hold it) is a wrong answer,
not an excuse: the pixel is missed by its true class and claimed by none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import distance_transform_edt

from pmm_ray.data.dataset import IGNORE


def confusion(pred: NDArray[np.integer], truth: NDArray[np.integer], *, num_classes: int) -> NDArray[np.int64]:
    """Count pixels by (truth, prediction). Sums of such matrices are the matrix of a whole set.

    Args:
        pred: (H, W) ids 0..C-1, or 255 where undecided.
        truth: (H, W) ids 0..C-1, or 255 where not to be counted.
        num_classes: C, the number of ids with the background (21 on VOC), at most 255.

    Returns:
        (C, C + 1) int64. Row: truth; column: prediction, the last one for undecided pixels.

    Raises:
        ValueError: Sizes that differ (both are named), arrays that are not of integers, or an id outside 0..C-1.
    """
    return Compared(truth, num_classes=num_classes).with_prediction(pred)


class Compared:
    """`confusion` of many predictions with one ground truth, which is prepared once.

    Args:
        truth: As in `confusion`, as for the others.
        num_classes: Likewise.

    Raises:
        ValueError: The ground truth is not of integers, or holds an id outside 0..C-1.
    """

    def __init__(self, truth: NDArray[np.integer], *, num_classes: int) -> None:
        self._num_classes = num_classes
        rows = _as_bytes(np.asarray(truth), "ground truth", num_classes)
        _check_ids(np.flatnonzero(np.bincount(rows.ravel())), "ground truth", num_classes)
        self._rows = rows.astype(np.uint16) << 8

    def with_prediction(self, pred: NDArray[np.integer]) -> NDArray[np.int64]:
        """The matrix of one prediction; see `confusion`."""
        columns = _as_bytes(np.asarray(pred), "prediction", self._num_classes)
        if columns.shape != self._rows.shape:
            raise ValueError(
                f"the prediction is {_size(columns.shape)} pixels, its ground truth {_size(self._rows.shape)}"
            )
        # pairs of bytes, all counted before any is looked at: nothing else is as fast
        counts = np.bincount((self._rows | columns).ravel(), minlength=1 << 16).reshape(256, 256)
        _check_ids(np.flatnonzero(counts.any(axis=0)), "prediction", self._num_classes)
        return counts[: self._num_classes, [*range(self._num_classes), IGNORE]].astype(np.int64)


def near_outlines(truth: NDArray[np.uint8], *, width: float) -> NDArray[np.uint8]:
    """The ground truth in a band along its outlines, 255 elsewhere: what `confusion` then gives the scores of edges.

    The trimap-band IoU of Kohli et al. (2009): over a whole photo the insides of objects outvote their outlines. The
    band is `max(1, round(width x diagonal))` pixels wide on each side of where two ids meet. 255 is an id in this: the
    border that VOC leaves undecided around objects is on neither side, and the bands begin where it ends. The photo's
    own border is no outline.

    Args:
        truth: (H, W) ids, 255 where not to be counted.
        width: Share of the photo's diagonal, > 0.

    Returns:
        (H, W) uint8; all 255 where nothing meets.
    """
    if not width > 0:
        raise ValueError(f"the band along outlines needs a width above 0, got {width}")
    far = np.full(truth.shape, True)
    for here, there in ((np.s_[:-1], np.s_[1:]), (np.s_[:, :-1], np.s_[:, 1:])):
        meet = truth[here] != truth[there]
        far[here] &= ~meet
        far[there] &= ~meet
    band = np.full_like(truth, IGNORE)
    if not far.all():
        inside = distance_transform_edt(far) < max(1, round(width * math.hypot(*truth.shape)))
        band[inside] = truth[inside]
    return band


def _as_bytes(ids: NDArray[Any], what: str, num_classes: int) -> NDArray[np.uint8]:
    if ids.dtype.kind not in "iu":
        raise ValueError(f"label masks must hold integers, got {ids.dtype} in the {what}")
    if ids.dtype != np.uint8:
        _check_ids(np.unique(ids), what, num_classes)
    return ids.astype(np.uint8)


def _check_ids(held: NDArray[np.integer], what: str, num_classes: int) -> None:
    strange = held[(held != IGNORE) & ((held < 0) | (held >= num_classes))]
    if strange.size:
        raise ValueError(f"the {what} holds id {strange[0]}; ids must be 0..{num_classes - 1} or {IGNORE}")


def iou(matrix: ArrayLike) -> NDArray[np.float64]:
    """Intersection over union of each class: `hits / (truth + predicted - hits)`.

    Args:
        matrix: (C, C + 1) counts of `confusion`, or (C, C) where no pixel is undecided.

    Returns:
        (C,) float64 in [0, 1]; NaN for a class that the ground truth does not hold, however often it was predicted.

    Raises:
        ValueError: Another shape.
    """
    counts = _counts(matrix)
    hits, held = counts.diagonal(), counts.sum(axis=1)
    union = held + counts[:, : len(counts)].sum(axis=0) - hits
    return np.divide(hits, union, out=np.full(len(counts), np.nan), where=held > 0)


def scores(
    matrix: ArrayLike, names: Sequence[str], image_counts: Sequence[int] | None = None, *, min_images: int = 8
) -> dict[str, Any]:
    """The figures of a set from its confusion matrix, as shares in [0, 1].

    Args:
        matrix: (C, C + 1) or (C, C) counts, see `confusion`.
        names: The C names, background first.
        image_counts: For each of the C ids, how many images of the set have it by their image-level labels. The
            background is in every image, whatever its entry says.
        min_images: From how many images on a class belongs to `miou_frequent`.

    Returns:
        A JSON-able dictionary: `miou`, the mean IoU over classes that the ground truth holds; `miou_frequent`, the same
        over the background and the classes with at least `min_images` images (None without `image_counts`);
        `accuracy`, the share of counted pixels that are right; `iou`, {name: IoU, or None for a class that the
        ground truth does not hold}. A figure of nothing is None.

    Raises:
        ValueError: `matrix`, `names` and `image_counts` do not fit together.
    """
    counts = _counts(matrix)
    if len(names) != len(counts) or len(set(names)) != len(counts):
        raise ValueError(f"{len(counts)} classes need as many different names, got {len(set(names))}")
    if image_counts is not None and len(image_counts) != len(counts):
        raise ValueError(f"{len(counts)} classes need as many image counts, got {len(image_counts)}")
    each = iou(counts)
    frequent = None
    if image_counts is not None:
        enough = np.asarray(image_counts) >= min_images
        enough[0] = True
        frequent = _mean(each[enough])
    total = int(counts.sum())
    return {
        "miou": _mean(each),
        "miou_frequent": frequent,
        "accuracy": int(counts.diagonal().sum()) / total if total else None,
        "iou": {name: None if np.isnan(value) else float(value) for name, value in zip(names, each, strict=True)},
    }


def _counts(matrix: ArrayLike) -> NDArray[np.int64]:
    counts = np.asarray(matrix, np.int64)
    if counts.ndim != 2 or counts.shape[1] - counts.shape[0] not in (0, 1) or not len(counts):
        raise ValueError(f"a confusion matrix must be (C, C) or (C, C + 1), got shape {counts.shape}")
    return counts


def _mean(values: NDArray[np.float64]) -> float | None:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else None


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "no"
