"""One way to any data set."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pmm_ray.data.dataset import Dataset
from pmm_ray.data.fingerprint import ContentHashes
from pmm_ray.data.remarks import remarks
from pmm_ray.errors import UserError
from pmm_ray.files import make_folder, writing
from pmm_ray.places import Remote, below, place


def load_dataset(
    *,
    kind: str,
    root: str | Path,
    cache: Path,
    images: str = "JPEGImages",
    val_images: str | None = None,
    masks: str | None = "SegmentationClass",
    train_list: str | None = "ImageSets/Segmentation/train.txt",
    val_list: str | None = "ImageSets/Segmentation/val.txt",
    labels: str | None = None,
    classes: Sequence[str] | None = None,
    limit: int | None = None,
    negatives: bool = False,
    shapes: Mapping[str, Any] | Iterable[tuple[str, Any]] = (),
) -> Dataset:
    """Read a data set of `kind` 'shapes', 'voc', 'coco' or 'folder'; the fields are those of the section `data`.

    No photo is decoded here: a broken one shows where it is used. Of masks some are, see `remarks`. Files are hashed,
    which `cache` remembers, so that loading again is quick. The folder around `cache` is the store, which may lie among
    the images. `shapes` holds the numbers for drawing the embedded data set, which is drawn if it is not there. What
    cannot be used is left out and listed in `problems`, what may be wrong in `notes`.

    Raises:
        UserError: the data set cannot be read at all, or nothing of it is left; or the store cannot be written to.
    """
    root, cache = place(root).resolve(), place(cache).absolute()
    store = cache.parent
    if store in (below(root, images).resolve(), below(root, val_images or images).resolve()):
        advice = f"give it one of its own, such as store={store / 'runs'}"
        raise UserError(f"store={store}: is the folder of the images, where photos and results would mix: {advice}")
    with writing(f"store={store}"):
        make_folder(cache)
        if not isinstance(cache, Remote):
            tempfile.TemporaryFile(dir=cache).close()
    common: dict[str, Any] = {
        "images": images,
        "masks": masks,
        "train_list": train_list,
        "val_list": val_list,
        "labels": labels,
        "classes": classes,
        "limit": limit,
        "negatives": negatives,
        "skip": [store],  # it holds masks and pictures, named like the photos
        "hashes": ContentHashes.below(root, cache=cache),
    }
    data = _read(kind, root, cache=cache, val_images=val_images, shapes=shapes, common=common)
    return replace(data, notes=remarks(data))


def _read(
    kind: str,
    root: Path,
    *,
    cache: Path,
    val_images: str | None,
    shapes: Mapping[str, Any] | Iterable[tuple[str, Any]],
    common: dict[str, Any],
) -> Dataset:
    if kind == "coco":
        from pmm_ray.data.coco import read_coco

        return read_coco(root, val_images=val_images, cache=cache, **common)
    if kind == "folder":
        from pmm_ray.data.folder import read_folder

        return read_folder(root, **common)
    from pmm_ray.data.voc import read_voc

    if kind == "voc":
        return read_voc(root, **common)
    if kind == "shapes":
        from pmm_ray.data.shapes import draw

        with writing(f"data.root={root}"):
            draw(root, **dict(shapes))
        drawn = json.loads((root / "classes.json").read_text())["names"]
        given = {"labels": common["labels"] or "image_labels.json", "classes": common["classes"] or drawn}
        return read_voc(root, **common | given)
    raise UserError(f"data.kind: {kind!r} is none of shapes, voc, coco, folder")
