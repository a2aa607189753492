"""How little ground truth is enough to choose a setting: the choice of a few photos, judged on all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pmm_ray.metrics import iou

_MOST_PHOTOS = 500
"""Photos of which subsets are drawn; more would only take memory."""


@dataclass(frozen=True)
class Choice:
    """What a way of choosing finds, as mIoU on all photos, in [0, 1].

    Attributes:
        how: In words.
        scores: Of the setting it chose, once for each subset of photos that was drawn.
        rank: Spearman's correlation of its scores with those on all photos, over the settings; the mean of the subsets.
    """

    how: str
    scores: tuple[float, ...]
    rank: float


def counts_of(tables: Sequence[Mapping[str, Sequence[Any]]], *, num_classes: int, seed: int) -> NDArray[np.int64]:
    """Confusion counts of settings and photos as one array, of at most `_MOST_PHOTOS` photos drawn at random.

    Args:
        tables: One for each setting, with columns 'name' of photos and 'truth', 'predicted', 'pixels' of lists (see
            `stages.confusion_rows.SPARSE`); the order is another where a sweep of another seed made it. Photos that a
            table has no counts of are left out.
        num_classes: C, with the background.
        seed: Of the drawing.

    Returns:
        (settings, photos, C, C + 1), photos by name.
    """
    rows = [
        {name: i for i, (name, held) in enumerate(zip(table["name"], table["pixels"], strict=True)) if held is not None}
        for table in tables
    ]
    known = sorted(set.intersection(*map(set, rows)))
    if len(known) > _MOST_PHOTOS:
        drawn = np.random.default_rng(seed).choice(len(known), _MOST_PHOTOS, replace=False)
        known = [known[i] for i in drawn.tolist()]
    counts = np.zeros((len(tables), len(known), num_classes, num_classes + 1), np.int64)
    for of_setting, table, places in zip(counts, tables, rows, strict=True):
        for matrix, name in zip(of_setting, known, strict=True):
            i = places[name]
            matrix[table["truth"][i], table["predicted"][i]] = table["pixels"][i]
    return counts


def mious(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """mIoU of each of many sets: (..., C, C + 1) counts -> (...,), in [0, 1]."""
    flat = counts.reshape(-1, *counts.shape[-2:])
    return np.array([np.nanmean(iou(matrix)) for matrix in flat]).reshape(counts.shape[:-2])


def by_few(counts: NDArray[np.int64], full: NDArray[np.float64], *, photos: int, draws: int, seed: int) -> Choice:
    """Choose by the ground truth of `photos` photos, drawn anew each time.

    Args:
        counts: (settings, N, C, C + 1), `counts_of`.
        full: (settings,) mIoU on all photos.
        photos: In a subset, at most N.
        draws: Subsets.
        seed: Of the drawing.
    """
    rng = np.random.default_rng(seed)
    chosen, ranks = [], []
    for _ in range(draws):
        some = rng.choice(counts.shape[1], photos, replace=False)
        scores = mious(counts[:, some].sum(axis=1))
        chosen.append(float(full[int(scores.argmax())]))
        ranks.append(rank_correlation(scores, full))
    return Choice(f"ground truth of {photos} photos, {draws} draws", tuple(chosen), float(np.mean(ranks)))


def rank_correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Spearman's rho, in [-1, 1]; 0 where one of the two does not vary."""
    from scipy.stats import rankdata

    x, y = (rankdata(values) - (len(values) + 1) / 2 for values in (a, b))
    size = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / size if size > 0 else 0.0
