"""A segmentation network against ground truth, without masks being written: for scores between epochs."""

from __future__ import annotations

from functools import partial
from operator import itemgetter
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pmm_ray.artefacts import Artefact
from pmm_ray.cluster.worker import Row, failed, succeeded
from pmm_ray.config import PredictConfig
from pmm_ray.data.dataset import Photos, Truth
from pmm_ray.data.images import check_same_size, read_label
from pmm_ray.stages.confusion_rows import SPARSE, cells, set_scores, total, with_truth
from pmm_ray.stages.network import SegmentationWorker, network_actors, photo_rows
from pmm_ray.stages.row_work import Actors, work_on
from pmm_ray.stages.stage import MODEL, Context, Facts


def score_network(*, photos: Photos, model: Artefact, truth: Truth, predict: PredictConfig, context: Context) -> Facts:
    """mIoU of the network's argmax on the photos that have ground truth, no labels given.

    Raises:
        UserError: no photo has ground truth, or none could be predicted.
    """
    actors = network_actors(context.cluster)
    true = dict(with_truth(photos, truth))
    rows = [row | {"truth": true[row["name"]]} for row in photo_rows(photos) if row["name"] in true]
    make = partial(
        _Scorer,
        model=model.path.resolve() / MODEL,
        actors=actors,
        predict=predict,
        num_classes=len(photos.classes),
    )
    table, wrong = work_on(rows, make, facts=pa.schema(SPARSE), context=context, actors=actors, key=itemgetter("size"))
    found = [row for row in table.to_pylist() if row["pixels"] is not None]
    matrix = total(found, num_classes=len(photos.classes))
    return {**set_scores(matrix, found, photos, min_images=1), "images": len(found), "failed": wrong}


class _Scorer(SegmentationWorker):
    def __init__(self, *, model: Path, actors: Actors, predict: PredictConfig, num_classes: int):
        super().__init__(model=model, actors=actors, predict=predict, label_filter=False)
        self._num_classes = num_classes

    def work(self, rows: list[Row], images: list[NDArray[np.uint8]]) -> list[Row]:
        results = []
        for row, probabilities in zip(rows, self.probabilities(rows, images), strict=True):
            try:
                mask = probabilities.argmax(axis=0).astype(np.uint8)
                truth = read_label(row["truth"], num_classes=self._num_classes)
                check_same_size(truth, mask.shape, path=row["truth"])
                results.append(succeeded(row, cells(mask, truth, num_classes=self._num_classes)))
            except Exception as error:
                results.append(failed(row, error))
        return results
