"""Masks against ground truth: mIoU, per-class IoU, accuracy, and each image's confusion counts."""

from __future__ import annotations

from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pmm_ray.artefacts import Artefact
from pmm_ray.cluster.journal import OK, ROWS_FILE, write_table
from pmm_ray.cluster.worker import Row, one_by_one
from pmm_ray.data.dataset import Photos, Truth
from pmm_ray.data.images import check_same_size, read_label
from pmm_ray.errors import UserError
from pmm_ray.files import readable
from pmm_ray.report.curves import class_bars
from pmm_ray.stages.confusion_rows import BAND, SPARSE, band_scores, compared, set_scores, total, with_truth
from pmm_ray.stages.mask_files import mask_errors, mask_paths
from pmm_ray.stages.row_work import work_on
from pmm_ray.stages.stage import Context, Facts

SCORES_FILE = "scores.parquet"


def evaluate_masks(
    *,
    photos: Photos,
    masks: Artefact,
    folder: str,
    truth: Truth,
    min_images: int,
    protocol: str,
    context: Context,
    boundary: float = 0.0,
) -> Facts:
    """Score the masks below `folder` ('masks' or 'raw') of the photos that have ground truth.

    An image without a mask is left out of the score, counted and listed. `scores.parquet` has one row for each scored
    image: the mask's facts and its confusion counts.

    With `boundary`, a share of the diagonal, also in a band of that width along the outlines of the ground truth, see
    `metrics.near_outlines`: the facts then have the mIoU there, `miou_boundary`, and the width.

    Raises:
        UserError: no photo has ground truth, or none a mask.
    """
    paths, errors = mask_paths(masks, folder), mask_errors(masks)
    rows = []
    for name, true in with_truth(photos, truth):
        path = paths.get(name)
        missing = None if path else f"it has no mask: {errors.get(name, 'the masks were made from another list')}"
        rows.append({"name": name, "mask": path and str(path.resolve()), "truth": true, "missing": missing})
    table, failed = work_on(
        rows,
        partial(one_by_one, partial(_compare, num_classes=len(photos.classes), boundary=boundary)),
        facts=pa.schema([*SPARSE, *BAND]),
        context=context,
        at_least=32,
    )
    scored = table.filter(pc.equal(table["status"], OK))
    write_table(_joined(scored, masks), context.out / SCORES_FILE)
    found = scored.to_pylist()
    matrix = total(found, num_classes=len(photos.classes))
    figures = set_scores(matrix, found, photos, min_images=min_images)
    picture = context.out / "iou.png"
    class_bars({context.title: figures["iou"]}, picture, title=context.title)
    context.log.picture(picture, "iou.png")
    return {
        **figures,
        **(band_scores(found, photos, boundary=boundary) if boundary else {}),
        "images": len(found),
        "without_truth": len(photos) - len(rows),
        "failed": failed,
        "min_images": min_images,
        "protocol": protocol,
    }


def _compare(row: Row, *, num_classes: int, boundary: float) -> dict[str, Any]:
    if row["missing"]:
        raise UserError(row["missing"])
    mask, truth = read_label(row["mask"]), read_label(row["truth"], num_classes=num_classes)
    check_same_size(truth, mask.shape, path=row["truth"])
    return next(compared([mask], truth, num_classes=num_classes, boundary=boundary))


def _joined(scored: pa.Table, masks: Artefact) -> pa.Table:
    """The masks' facts beside the confusion counts, in the order of `scored`."""
    facts = pq.read_table(readable(masks.path / ROWS_FILE))
    place = {name: row for row, name in enumerate(facts["name"].to_pylist())}
    table = facts.take(pa.array([place[name] for name in scored["name"].to_pylist()], pa.int64()))
    for name, _ in (*SPARSE, *BAND):
        table = table.append_column(name, scored[name])
    return table
