"""Ground truth -> masks, only to train the labelled upper bound."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

from pmm_ray.cluster.worker import Row, one_by_one
from pmm_ray.data.dataset import Photos, Truth
from pmm_ray.data.images import check_same_size, image_size, read_label, write_label
from pmm_ray.errors import UserError
from pmm_ray.stages.make_masks import Palette
from pmm_ray.stages.mask_files import MASK_FACTS, MASKS, mask_facts, mask_file
from pmm_ray.stages.row_work import work_on
from pmm_ray.stages.stage import Context, Facts


def truth_masks(*, photos: Photos, truth: Truth, context: Context) -> Facts:
    """Copy the ground truth of each photo into a mask artefact. What is trained on it is an upper bound, no result.

    Raises:
        UserError: no image has ground truth that can be used.
    """
    rows = [{"name": photo.name, "image": photo.image, "truth": truth.masks.get(photo.name)} for photo in photos.photos]
    _, failed = work_on(
        rows,
        partial(one_by_one, partial(_copy, out=context.out.resolve(), palette=photos.classes.palette)),
        facts=MASK_FACTS,
        context=context,
        at_least=16,
    )
    return {"images": len(rows) - len(failed), "failed": failed, "protocol": truth.protocol}


def _copy(row: Row, *, out: Path, palette: Palette) -> dict[str, Any]:
    start = time.monotonic()
    if row["truth"] is None:
        raise UserError("it has no ground truth; leave it off the list or add its mask")
    mask = read_label(row["truth"], num_classes=len(palette))
    check_same_size(mask, image_size(row["image"]), path=row["truth"])
    write_label(mask_file(out, MASKS, row["name"]), mask, palette)
    return mask_facts(mask) | {"seconds": time.monotonic() - start}
