"""Per-image confusion counts, kept sparse, and the scores of a set made from their sum."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pmm_ray.cluster.worker import Row
from pmm_ray.data.dataset import Photos, Truth
from pmm_ray.errors import UserError
from pmm_ray.metrics import Compared, confusion, near_outlines, scores

SPARSE = (("truth", pa.list_(pa.uint8())), ("predicted", pa.list_(pa.uint8())), ("pixels", pa.list_(pa.int64())))
"""Columns that hold the cells of `metrics.confusion` that are not 0. `predicted` = C + 1 stands for undecided (255)."""

BAND = tuple((f"band_{name}", kind) for name, kind in SPARSE)
"""The same along the outlines of the ground truth; null where that is not asked for."""


def cells(pred: NDArray[np.uint8], truth: NDArray[np.uint8], *, num_classes: int) -> dict[str, list[int]]:
    """The confusion counts of one image as the columns of `SPARSE`."""
    return sparse(confusion(pred, truth, num_classes=num_classes))


def sparse(matrix: NDArray[np.int64]) -> dict[str, list[int]]:
    """The counts of `metrics.confusion` as the columns of `SPARSE`."""
    rows, columns = np.nonzero(matrix)
    return {"truth": rows.tolist(), "predicted": columns.tolist(), "pixels": matrix[rows, columns].tolist()}


def compared(
    masks: Iterable[NDArray[np.uint8]], truth: NDArray[np.uint8], *, num_classes: int, boundary: float
) -> Iterator[dict[str, list[int]]]:
    """The confusion counts of masks of one image, one after the other, as the columns of `SPARSE`.

    With `boundary`, a share of the diagonal, also as those of `BAND`: in a band of that width along the outlines of the
    ground truth, see `metrics.near_outlines`.
    """
    whole = Compared(truth, num_classes=num_classes)
    band = Compared(near_outlines(truth, width=boundary), num_classes=num_classes) if boundary else None
    for mask in masks:
        along = {} if band is None else sparse(band.with_prediction(mask))
        yield sparse(whole.with_prediction(mask)) | {f"band_{name}": values for name, values in along.items()}


def total(rows: Iterable[Row], *, num_classes: int) -> NDArray[np.int64]:
    """(C + 1, C + 2): the sum of the counts of many rows, with `num_classes` = C + 1; rows that failed hold none."""
    matrix = np.zeros((num_classes, num_classes + 1), np.int64)
    for row in rows:
        if row["pixels"]:
            np.add.at(matrix, (row["truth"], row["predicted"]), row["pixels"])
    return matrix


def set_scores(matrix: NDArray[np.int64], rows: Sequence[Row], photos: Photos, *, min_images: int) -> dict[str, Any]:
    """`metrics.scores` of a set. How many images have a class is told by their labels, or without any by the truth."""
    names = photos.classes.names
    counts = np.zeros(len(names), np.int64)
    if any(photo.labels for photo in photos.photos):
        held: Iterable[Iterable[int]] = (photo.labels for photo in photos.photos)
    else:
        held = (set(row["truth"] or ()) for row in rows)
    for labels in held:
        counts[list(labels)] += 1
    return scores(matrix, names, counts.tolist(), min_images=min_images)


def band_scores(rows: Sequence[Row], photos: Photos, *, boundary: float) -> dict[str, Any]:
    """The mIoU along outlines, `miou_boundary`, and the band's width, of rows with the columns of `BAND`."""
    counts = [{name: row[f"band_{name}"] for name, _ in SPARSE} for row in rows]
    names = photos.classes.names
    return {"miou_boundary": scores(total(counts, num_classes=len(names)), names)["miou"], "boundary": boundary}


def with_truth(photos: Photos, truth: Truth) -> list[tuple[str, str]]:
    """(name, ground-truth file) of the photos that have one.

    Raises:
        UserError: none has.
    """
    found = [(photo.name, truth.masks[photo.name]) for photo in photos.photos if photo.name in truth.masks]
    if not found:
        raise UserError(f"none of the {len(photos)} images has ground truth in {truth.protocol}; see data.masks")
    return found
