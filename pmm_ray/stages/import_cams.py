"""CAMs made elsewhere -> CAMs: the `.npy` dictionaries of PMM, IRN and their kin."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from pmm_ray.artefacts import Folder
from pmm_ray.cluster.worker import Row, failed, succeeded
from pmm_ray.data.cams import Cam, read_npy_cam
from pmm_ray.data.dataset import Photos
from pmm_ray.data.images import image_size
from pmm_ray.errors import UserError
from pmm_ray.masks.cam import normalise
from pmm_ray.stages.cam_files import CAM_FACTS, remove_strays, write_shard
from pmm_ray.stages.row_work import work_on
from pmm_ray.stages.stage import Context, Facts

_SHARD = 32
_ASPECT = 0.03


def import_cams(*, photos: Photos, folder: Folder, context: Context) -> Facts:
    """Take over `<folder>/<name>.npy`, {0-based class: (h, w) map}, for each photo.

    Only classes that the image-level labels name are kept. Maps in [0, 1] are taken as they are; others are normalised
    (eq. 1). They may be smaller or larger than the image if they have its shape.

    Raises:
        UserError: no image got a CAM.
    """
    rows = [
        {
            "name": photo.name,
            "image": photo.image,
            "labels": photo.labels,
            "npy": str(folder.path / f"{photo.name}.npy"),
        }
        for photo in photos.photos
    ]
    table, wrong = work_on(
        rows,
        partial(_Importer, context.out.resolve(), len(photos.classes) - 1),
        facts=CAM_FACTS,
        context=context,
        at_least=_SHARD,
    )
    remove_strays(context.out, table)
    return {"images": len(rows) - len(wrong), "failed": wrong}


class _Importer:
    def __init__(self, out: Path, num_classes: int):
        self._out, self._num_classes = out, num_classes

    def __call__(self, rows: list[Row]) -> list[Row]:
        results: list[Row] = []
        cams: list[Cam] = []
        for row in rows:
            try:
                cam, peak = _read(row, self._num_classes)
            except Exception as error:
                results.append(failed(row, error))
                continue
            facts = {"row": len(cams), "classes": cam.class_ids, "peak": peak, "height": cam.height, "width": cam.width}
            results.append(succeeded(row, facts))
            cams.append(cam)
        if cams:
            shard = write_shard(self._out, cams)
            results = [result | {"shard": shard} if "row" in result else result for result in results]
        return results


def _read(row: Row, num_classes: int) -> tuple[Cam, list[float]]:
    maps = read_npy_cam(row["npy"], num_classes)
    wanted = row["labels"]
    if missing := [label for label in wanted if label - 1 not in maps]:
        held = ", ".join(str(key + 1) for key in maps) or "none"
        raise UserError(
            f"{row['npy']}: no map for class {missing[0]}, which the image-level labels name; it holds classes {held} "
            "(its keys + 1): look whether keys and labels count the same classes"
        )
    cam = np.stack([maps[label - 1] for label in wanted])
    height, width = image_size(row["image"])
    if abs(cam.shape[1] * width / (cam.shape[2] * height) - 1) > max(_ASPECT, 1 / min(cam.shape[1:])):
        raise UserError(
            f"{row['npy']}: the maps are {cam.shape[2]} x {cam.shape[1]}, the image {width} x {height}, another shape; "
            "the maps belong to another image, or to one turned or cut"
        )
    peak = [float(value) for value in cam.max(axis=(1, 2))]
    if cam.min() < 0 or cam.max() > 1:
        cam = normalise(cam)
    return Cam(row["name"], tuple(wanted), cam.astype(np.float16), height, width), peak
