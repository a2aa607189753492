"""CAMs -> pseudo-masks: CVS and PPG, the CRF baseline, a plain threshold, or image matting."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pmm_ray.artefacts import Artefact
from pmm_ray.cluster.worker import Row, Worker, one_by_one
from pmm_ray.config import MasksConfig
from pmm_ray.data.cams import full_size
from pmm_ray.data.dataset import Photos
from pmm_ray.data.images import write_label
from pmm_ray.masks.cvs import coefficient_of_variation
from pmm_ray.masks.laplacian import pymatting
from pmm_ray.masks.makers import MaskSetting, MattingSetting, PseudoMask, pseudo_masks
from pmm_ray.stages.cam_files import by_place, cam_places, read_with_cam
from pmm_ray.stages.crf import compiling_first, most_labels, params_of
from pmm_ray.stages.mask_files import MASK_FACTS, MASKS, area_shares, mask_facts, mask_file
from pmm_ray.stages.row_work import work_on
from pmm_ray.stages.stage import Context, Facts

_BATCH = 16
"""Half a second's work: a batch costs an actor several milliseconds of waiting."""

Palette = tuple[tuple[int, int, int], ...]

MATTING_FACTS = pa.schema([*MASK_FACTS, ("certain", pa.list_(pa.float32())), ("fell_back", pa.list_(pa.int32()))])
"""With the maker `matting`: the share of the pixels that the trimap is certain of, of the background and then of each
of the classes; and the classes that had no matte."""


def make_masks(*, photos: Photos, cams: Artefact, masks: MasksConfig, context: Context) -> Facts:
    """Make one palette PNG for each photo that has a CAM, on CPU actors, image by image.

    With the maker `matting` the facts also have `certain`, the share of its photos' pixels that the trimap is certain
    of, of each class, of the background and of nothing ("unknown"); and `fell_back`, on how many of them a class had no
    matte.

    Raises:
        UserError: no image got a mask.
    """
    places = cam_places(cams, photos)
    rows = [
        {"name": photo.name, "image": photo.image, "cam": place.file, "row": place.row, "missing": place.missing}
        for photo, place in zip(photos.photos, places, strict=True)
    ]
    make = partial(_make, masks=masks, out=context.out.resolve(), palette=photos.classes.palette)
    worker: Callable[[], Worker] = partial(one_by_one, make)
    if masks.maker == "matting":
        worker = partial(_with_matting, worker)
    if masks.needs_crf:
        worker = partial(compiling_first, worker, masks.used_crf, labels=most_labels(photos))
    table, failed = work_on(
        rows,
        worker,
        facts=MATTING_FACTS if masks.maker == "matting" else MASK_FACTS,
        context=context,
        at_least=_BATCH if masks.maker != "matting" else 1,
        key=by_place,
    )
    facts = {"images": len(rows) - len(failed), "failed": failed, "area": area_shares(table, photos)}
    return facts | (matting_facts(table, photos) if masks.maker == "matting" else {})


def _with_matting(make_worker: Callable[[], Worker]) -> Worker:
    """A worker whose pymatting is compiled when it starts, once on each machine, while the others there wait for it."""
    pymatting()
    return make_worker()


def _make(row: Row, *, masks: MasksConfig, out: Path, palette: Palette) -> dict[str, Any]:
    """Make and write the mask of one image; its facts."""
    start = time.monotonic()
    image, stored = read_with_cam(row)
    cam = full_size(stored)
    made = made_mask(image, cam, stored.class_ids, masks=masks)
    write_label(mask_file(out, MASKS, row["name"]), made.mask, palette)
    cv = coefficient_of_variation(cam, t=masks.t)
    known = {} if made.certain is None else {"certain": list(made.certain), "fell_back": list(made.fell_back)}
    seconds = time.monotonic() - start
    return {**mask_facts(made.mask, stored.class_ids), "cv": cv.tolist(), **known, "seconds": seconds}


def made_mask(
    image: NDArray[np.uint8], cam: NDArray[np.float32], class_ids: tuple[int, ...], *, masks: MasksConfig
) -> PseudoMask:
    """What the settings ask for: image (H, W, 3) uint8 RGB, cam (K, H, W) in [0, 1]."""
    return next(pseudo_masks(image, cam, class_ids, [mask_setting(masks)], backend=masks.used_crf.backend))[1]


def mask_setting(masks: MasksConfig) -> MaskSetting:
    """The numbers of the mask maker that the settings ask for."""
    matting = MattingSetting(**masks.trimap.model_dump(exclude={"crf"}), **masks.matting.model_dump())
    return MaskSetting(
        **masks.model_dump(exclude={"crf", "trimap", "matting"}),
        crf=params_of(masks.used_crf),
        matting=matting,
    )


def matting_facts(table: pa.Table, photos: Photos) -> Facts:
    """The facts `certain` and `fell_back` from the rows' columns; see `make_masks`.

    A class's share is the mean over the photos that have it, and its own alone count. A class of no photo is left out.
    """
    shares: dict[int, list[float]] = defaultdict(list)
    unknown: list[float] = []
    lost: Counter[int] = Counter()
    for row in table.select(["classes", "certain", "fell_back"]).to_pylist():
        if row["certain"] is not None:
            # the mask's columns are by id, as the CAM's are
            for label, share in zip((0, *sorted(row["classes"])), row["certain"], strict=True):
                shares[label].append(share)
            unknown.append(1 - sum(row["certain"]))
            lost.update(row["fell_back"])
    names = photos.classes.names
    certain = {names[label]: round(fmean(found), 5) for label, found in sorted(shares.items())}
    return {
        "certain": certain | ({"unknown": round(fmean(unknown), 5)} if unknown else {}),
        "fell_back": {names[label]: lost[label] for label in sorted(shares) if label},
        "fell_back_in_all": lost.total(),
    }
