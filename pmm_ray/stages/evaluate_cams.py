"""CAMs against ground truth: the curve of mIoU over thresholds, and its best point."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pyarrow as pa

from pmm_ray.artefacts import Artefact
from pmm_ray.cluster.journal import OK
from pmm_ray.cluster.worker import Row, one_by_one
from pmm_ray.data.cams import full_size, read_cam
from pmm_ray.data.dataset import Photos, Truth
from pmm_ray.data.images import check_same_size, read_label
from pmm_ray.errors import UserError
from pmm_ray.masks.cam import threshold_mask
from pmm_ray.report.curves import threshold_curve
from pmm_ray.stages.cam_files import by_place, cam_places
from pmm_ray.stages.confusion_rows import BAND, SPARSE, band_scores, compared, set_scores, total, with_truth
from pmm_ray.stages.row_work import work_on
from pmm_ray.stages.stage import Context, Facts

_FACTS = pa.schema([(name, pa.list_(kind)) for name, kind in (*SPARSE, *BAND)])


def evaluate_cams(
    *,
    photos: Photos,
    cams: Artefact,
    truth: Truth,
    thresholds: Sequence[float],
    min_images: int,
    context: Context,
    boundary: float = 0.0,
) -> Facts:
    """Score argmax over [threshold, cam] at each threshold; figures are given at the best one.

    The best threshold is chosen on the ground truth it is scored on, as papers do, and the protocol says so. An image
    without a CAM is left out, counted and listed. `rows.parquet` has each image's confusion counts per threshold. With
    `boundary` there is also the mIoU along outlines at that threshold, see `evaluate_masks`.

    Raises:
        UserError: no photo has ground truth, or none a CAM.
    """
    places = dict(zip((photo.name for photo in photos.photos), cam_places(cams, photos), strict=True))
    rows = [
        {"name": name, "truth": true, "cam": place.file, "row": place.row, "missing": place.missing}
        for name, true in with_truth(photos, truth)
        for place in [places[name]]
    ]
    table, failed = work_on(
        rows,
        partial(
            one_by_one,
            partial(_compare, thresholds=tuple(thresholds), num_classes=len(photos.classes), boundary=boundary),
        ),
        facts=_FACTS,
        context=context,
        at_least=16,
        key=by_place,
    )
    found = [row for row in table.to_pylist() if row["status"] == OK]
    curve = []
    for k in range(len(thresholds)):
        counts = _at(found, k, SPARSE)
        curve.append(set_scores(total(counts, num_classes=len(photos.classes)), counts, photos, min_images=min_images))
    of_threshold = {threshold: figures["miou"] for threshold, figures in zip(thresholds, curve, strict=True)}
    picture = context.out / "curve.png"
    threshold_curve({"CAM": of_threshold}, picture, title=context.title)
    context.log.picture(picture, "curve.png")
    best = max(range(len(thresholds)), key=lambda k: curve[k]["miou"] or 0.0)
    return {
        **curve[best],
        **(band_scores(_at(found, best, BAND), photos, boundary=boundary) if boundary else {}),
        "curve": {f"{threshold:g}": miou for threshold, miou in of_threshold.items()},
        "best_threshold": thresholds[best],
        "images": len(found),
        "without_truth": len(photos) - len(rows),
        "failed": failed,
        "min_images": min_images,
        "protocol": f"CAMs of the photos' own labels, {truth.protocol}, no CRF, 255 of it left out, "
        "threshold chosen on this ground truth",
    }


def _compare(row: Row, *, thresholds: Sequence[float], num_classes: int, boundary: float) -> dict[str, Any]:
    """The confusion counts of one image: for each of their columns a list of one list per threshold."""
    if row["missing"]:
        raise UserError(row["missing"])
    stored, truth = read_cam(row["cam"], row["row"]), read_label(row["truth"], num_classes=num_classes)
    check_same_size(truth, (stored.height, stored.width), path=row["truth"])
    cam = full_size(stored)
    masks = (threshold_mask(cam, stored.class_ids, threshold=threshold) for threshold in thresholds)
    found = list(compared(masks, truth, num_classes=num_classes, boundary=boundary))
    return {name: [each[name] for each in found] for name in found[0]}


def _at(rows: list[Row], k: int, columns: Sequence[tuple[str, Any]]) -> list[Row]:
    """The rows' counts at threshold number k."""
    return [{name: row[name][k] for name, _ in columns} for row in rows]
