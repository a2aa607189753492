"""CAMs -> pseudo-masks: CVS and PPG, the CRF baseline, or a plain threshold."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pmm_ray.artefacts import Artefact
from pmm_ray.cluster.worker import Row, one_by_one
from pmm_ray.config import MasksConfig
from pmm_ray.data.cams import full_size, read_cam
from pmm_ray.data.dataset import Photos
from pmm_ray.data.images import read_image, write_label
from pmm_ray.errors import UserError
from pmm_ray.masks.cvs import coefficient_of_variation
from pmm_ray.masks.makers import MaskSetting, pseudo_masks
from pmm_ray.stages.cam_files import by_place, cam_places
from pmm_ray.stages.crf import most_labels, params_of, with_crf
from pmm_ray.stages.mask_files import MASK_FACTS, MASKS, area_shares, mask_facts, mask_file
from pmm_ray.stages.row_work import work_on
from pmm_ray.stages.stage import Context, Facts

_BATCH = 16
"""Half a second's work: a batch costs an actor several milliseconds of waiting."""

Palette = tuple[tuple[int, int, int], ...]


def make_masks(*, photos: Photos, cams: Artefact, masks: MasksConfig, context: Context) -> Facts:
    """Make one palette PNG for each photo that has a CAM, on CPU actors, image by image.

    Raises:
        UserError: no image got a mask.
    """
    places = cam_places(cams, photos)
    rows = [
        {"name": photo.name, "image": photo.image, "cam": place.file, "row": place.row, "missing": place.missing}
        for photo, place in zip(photos.photos, places, strict=True)
    ]
    make = partial(_make, masks=masks, out=context.out.resolve(), palette=photos.classes.palette)
    worker = partial(one_by_one, make)
    table, failed = work_on(
        rows,
        worker if masks.maker == "threshold" else partial(with_crf, worker, masks.crf, labels=most_labels(photos)),
        facts=MASK_FACTS,
        context=context,
        at_least=_BATCH,
        key=by_place,
    )
    return {"images": len(rows) - len(failed), "failed": failed, "area": area_shares(table, photos)}


def _make(row: Row, *, masks: MasksConfig, out: Path, palette: Palette) -> dict[str, Any]:
    """Make and write the mask of one image; its facts."""
    start = time.monotonic()
    if row["missing"]:
        raise UserError(row["missing"])
    image, stored = read_image(row["image"]), read_cam(row["cam"], row["row"])
    if image.shape[:2] != (stored.height, stored.width):
        raise UserError(
            f"{row['image']}: the image is {image.shape[1]} x {image.shape[0]} pixels, its CAM was made for "
            f"{stored.width} x {stored.height}; make the CAMs again"
        )
    cam = full_size(stored)
    mask = pseudo_mask(image, cam, stored.class_ids, masks=masks)
    write_label(mask_file(out, MASKS, row["name"]), mask, palette)
    cv = coefficient_of_variation(cam, t=masks.t)
    seconds = time.monotonic() - start
    return {**mask_facts(mask, stored.class_ids), "cv": cv.tolist(), "seconds": seconds}


def pseudo_mask(
    image: NDArray[np.uint8], cam: NDArray[np.float32], class_ids: tuple[int, ...], *, masks: MasksConfig
) -> NDArray[np.uint8]:
    """The mask (H, W) uint8 that the settings ask for: image (H, W, 3) uint8 RGB, cam (K, H, W) in [0, 1]."""
    return next(pseudo_masks(image, cam, class_ids, [mask_setting(masks)], backend=masks.crf.backend))[1]


def mask_setting(masks: MasksConfig) -> MaskSetting:
    """The numbers of the mask maker that the settings ask for."""
    return MaskSetting(**masks.model_dump(exclude={"crf"}), crf=params_of(masks.crf))
