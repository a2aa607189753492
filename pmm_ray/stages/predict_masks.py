"""A segmentation network -> masks of photos: averaged softmax, label filter, dense CRF."""

from __future__ import annotations

import time
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pmm_ray.artefacts import Artefact
from pmm_ray.cluster.worker import Row, failed, succeeded
from pmm_ray.config import CrfConfig, PredictConfig
from pmm_ray.data.dataset import Photos
from pmm_ray.data.images import write_label
from pmm_ray.stages.crf import compiling_first, dense_crf, most_labels
from pmm_ray.stages.mask_files import MASK_FACTS, MASKS, RAW, area_shares, mask_facts, mask_file
from pmm_ray.stages.network import SegmentationWorker, network_actors, photo_rows
from pmm_ray.stages.row_work import Actors, work_on
from pmm_ray.stages.stage import MODEL, Context, Facts

_ACTORS_PER_GPU_WITH_CRF = 4


def predict_masks(
    *,
    photos: Photos,
    model: Artefact,
    predict: PredictConfig,
    label_filter: bool,
    crf: CrfConfig | None,
    context: Context,
) -> Facts:
    """Write each photo's prediction below `raw/`, and below `masks/` after the CRF (without one: the same again).

    With `label_filter` only the background and the classes of the image-level labels are kept and their probabilities
    made to sum to 1 before anything else.

    Raises:
        UserError: no image got a mask.
    """
    return write_masks(
        photos=photos,
        model=model.path.resolve() / MODEL,
        predict=predict,
        label_filter=label_filter,
        crf=crf,
        raw=True,
        context=context,
    )


def write_masks(
    *,
    photos: Photos,
    model: Path,
    predict: PredictConfig,
    label_filter: bool,
    crf: CrfConfig | None,
    raw: bool,
    context: Context,
) -> Facts:
    """What the stage does, with a model file wherever it is; without `raw` there is no such folder.

    Raises:
        UserError: no image got a mask.
    """
    actors = network_actors(context.cluster, per_gpu=1 if crf is None else _ACTORS_PER_GPU_WITH_CRF)
    rows = photo_rows(photos)
    worker = partial(
        _Predictor,
        model=model,
        actors=actors,
        predict=predict,
        label_filter=label_filter,
        crf=crf,
        raw=raw,
        out=context.out.resolve(),
        palette=photos.classes.palette,
    )
    labels = most_labels(photos) if label_filter else len(photos.classes)
    table, wrong = work_on(
        rows,
        worker if crf is None else partial(compiling_first, worker, crf, labels=labels),
        facts=MASK_FACTS,
        context=context,
        actors=actors,
        key=itemgetter("size"),
    )
    return {"images": len(rows) - len(wrong), "failed": wrong, "area": area_shares(table, photos)}


class _Predictor(SegmentationWorker):
    def __init__(
        self,
        *,
        model: Path,
        actors: Actors,
        predict: PredictConfig,
        label_filter: bool,
        crf: CrfConfig | None,
        raw: bool,
        out: Path,
        palette: tuple[tuple[int, int, int], ...],
    ):
        super().__init__(model=model, actors=actors, predict=predict, label_filter=label_filter)
        self._crf, self._raw, self._out, self._palette = crf, raw, out, palette

    def work(self, rows: list[Row], images: list[NDArray[np.uint8]]) -> list[Row]:
        start = time.monotonic()
        found = self.probabilities(rows, images)
        shared = (time.monotonic() - start) / len(rows)
        results = []
        for row, image, probabilities in zip(rows, images, found, strict=True):
            begun = time.monotonic()
            try:
                facts = self._write(row, image, probabilities)
            except Exception as error:
                results.append(failed(row, error))
                continue
            results.append(succeeded(row, facts | {"seconds": shared + time.monotonic() - begun}))
        return results

    def _write(self, row: Row, image: NDArray[np.uint8], probabilities: NDArray[np.float32]) -> dict[str, Any]:
        if not np.isfinite(probabilities).all():
            raise ValueError(f"the network's prediction is not finite: lower {self.rate}")
        kept = self.kept(row)
        ids = np.arange(len(probabilities), dtype=np.uint8) if kept is None else np.array(kept, np.uint8)
        probabilities /= np.maximum(probabilities.sum(axis=0), np.finfo(np.float32).tiny)
        mask = ids[probabilities.argmax(axis=0)]
        if self._raw:
            write_label(mask_file(self._out, RAW, row["name"]), mask, self._palette)
        if self._crf is not None:
            mask = ids[dense_crf(image, self._crf).multilabel(probabilities).argmax(axis=0)]
        write_label(mask_file(self._out, MASKS, row["name"]), mask, self._palette)
        return mask_facts(mask, kept)
