"""Mask settings scored without a mask being written: many of them on each image, which is read and prepared once."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from pmm_ray.artefacts import Artefact
from pmm_ray.cluster.worker import Row, failed, succeeded
from pmm_ray.config import MasksConfig
from pmm_ray.data.cams import full_size
from pmm_ray.data.dataset import Photos, Truth
from pmm_ray.data.images import check_same_size, read_label
from pmm_ray.masks.contrast import Contrasts, contrast
from pmm_ray.masks.crf import Backend
from pmm_ray.masks.makers import pseudo_masks
from pmm_ray.metrics import Compared
from pmm_ray.stages.cam_files import cam_places, read_with_cam
from pmm_ray.stages.confusion_rows import SPARSE, set_scores, sparse, total
from pmm_ray.stages.make_masks import mask_setting

SCORE_FACTS = pa.schema([*SPARSE, ("cam_share", pa.float64()), ("colour_share", pa.float64())])
"""Of each image: its confusion counts (null without ground truth), and what the mask explains of CAM and colours (null
where no label was given); see `masks.contrast`."""


def score_rows(photos: Photos, cams: Artefact, truth: Truth | None, *, seed: int) -> list[Row]:
    """One row for each photo, in random order, so that the first n are a fair sample of all."""
    rows = [
        {
            "name": photo.name,
            "image": photo.image,
            "cam": place.file,
            "row": place.row,
            "missing": place.missing,
            "truth": truth and truth.masks.get(photo.name),
        }
        for photo, place in zip(photos.photos, cam_places(cams, photos), strict=True)
    ]
    return [rows[i] for i in np.random.default_rng(seed).permutation(len(rows))]


def score_part(rows: Sequence[Row], settings: Sequence[MasksConfig], *, num_classes: int) -> list[list[Row]]:
    """For each setting, the result of each row: status, error and the columns of `SCORE_FACTS`."""
    results: list[list[Row]] = [[] for _ in settings]
    for row in rows:
        for of_setting, result in zip(results, _tried(row, settings, num_classes=num_classes), strict=True):
            of_setting.append(result)
    return results


def _tried(row: Row, settings: Sequence[MasksConfig], *, num_classes: int) -> list[Row]:
    """All settings on one image, and why one fails there: by itself, not by those that it happened to meet."""
    try:
        return _score(row, settings, num_classes=num_classes)
    except Exception as error:
        if len(settings) == 1:
            return [failed(row, error)]
        return [one for setting in settings for one in _tried(row, [setting], num_classes=num_classes)]


def _score(row: Row, settings: Sequence[MasksConfig], *, num_classes: int) -> list[Row]:
    image, stored = read_with_cam(row)
    truth = None if row["truth"] is None else read_label(row["truth"], num_classes=num_classes)
    if truth is not None:
        check_same_size(truth, image.shape[:2], path=row["truth"])
    compared = None if truth is None else Compared(truth, num_classes=num_classes)
    seen = _Seen(image, stored.cam, stored.class_ids)
    cam = full_size(stored)
    by_backend: dict[Backend, list[int]] = defaultdict(list)
    for index, setting in enumerate(settings):
        by_backend[setting.used_crf.backend].append(index)
    results: list[Row] = [{}] * len(settings)
    for backend, members in by_backend.items():
        makers = [mask_setting(settings[index]) for index in members]
        for place, made in pseudo_masks(image, cam, stored.class_ids, makers, backend=backend):
            counts = {} if compared is None else sparse(compared.with_prediction(made.mask))
            results[members[place]] = succeeded(row, counts | seen.contrasts(made.mask))
    return results


_POINTS = 1 << 14
"""Points of a photo that are looked at for contrast, about: more would cost time and change nothing."""


class _Seen:
    """What masks are compared with where there is no ground truth, on the grid of the stored CAM or a part of it."""

    def __init__(self, image: NDArray[np.uint8], cam: NDArray[np.floating], class_ids: tuple[int, ...]):
        step = max(1, math.ceil(math.sqrt(cam.shape[1] * cam.shape[2] / _POINTS)))
        height, width = (-(-side // step) for side in cam.shape[1:])
        self._with: Contrasts | None = None
        # without labels there is no grid either
        if len(cam):
            small, *maps = (
                np.asarray(Image.fromarray(one).resize((width, height), Image.Resampling.BOX))
                for one in (image, *cam.astype(np.float32))
            )
            self._with = Contrasts(small.reshape(-1, 3).T, np.stack(maps).reshape(len(cam), -1), class_ids)
            self._rows, self._columns = _centres(height, image.shape[0]), _centres(width, image.shape[1])

    def contrasts(self, mask: NDArray[np.uint8]) -> dict[str, float]:
        if self._with is None:
            return {}
        cam, colours = self._with.of(mask[self._rows[:, None], self._columns].ravel())
        return {"cam_share": cam, "colour_share": colours}


def _centres(cells: int, length: int) -> NDArray[np.intp]:
    """The pixels, of `length`, in the middle of as many equal cells."""
    return ((np.arange(cells) + 0.5) * length / cells).astype(np.intp)


def figures_of(rows: Sequence[Row], photos: Photos, *, min_images: int) -> dict[str, Any]:
    """The facts of a set of results: `metrics.scores` of the images with ground truth, and `contrast` of all."""
    matrix = total((row for row in rows if row.get("pixels")), num_classes=len(photos.classes))
    scored = [row for row in rows if row.get("truth") is not None]
    shares = [(row["cam_share"], row["colour_share"]) for row in rows if row.get("cam_share") is not None]
    facts = set_scores(matrix, scored, photos, min_images=min_images) if scored else {}
    return {
        **facts,
        "contrast": contrast(*zip(*shares, strict=True)) if shares else None,
        "images": sum(1 for row in rows if row["error"] is None),
        "scored": len(scored),
        "failed": [[row["name"], row["error"]] for row in rows if row["error"] is not None],
    }


def parts_of(rows: Sequence[Row], count: int) -> list[list[Row]]:
    """The rows in `count` parts of nearly the same size, or fewer parts of one row; in their order."""
    count = max(1, min(count, len(rows)))
    edges = [round(i * len(rows) / count) for i in range(count + 1)]
    return [list(rows[low:high]) for low, high in itertools.pairwise(edges)]


def all_failed(rows: Iterable[Row]) -> str | None:
    """The first failure's line if every image failed."""
    errors = [row["error"] for row in rows]
    return f"all {len(errors)} images failed, the first: {errors[0]}" if errors and all(errors) else None
