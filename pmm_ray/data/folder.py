"""A folder of images and a file of labels."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from pmm_ray.data.dataset import Dataset
from pmm_ray.data.fingerprint import ContentHashes
from pmm_ray.data.labels import read_labels
from pmm_ray.data.names import ImageIndex, NotFoundInFolder
from pmm_ray.data.problems import Problems, shown
from pmm_ray.data.splits import Reader, image_index, labels_file, labels_for, make_classes, mask_folder, read_list
from pmm_ray.errors import UserError
from pmm_ray.places import below


def read_folder(
    root: Path,
    *,
    images: str,
    masks: str | None,
    train_list: str | None,
    val_list: str | None,
    labels: str | None,
    classes: Sequence[str] | None,
    limit: int | None,
    negatives: bool,
    hashes: ContentHashes,
    skip: Collection[Path],
) -> Dataset:
    """Read the images below `root/images`, in folders of any depth.

    `labels` is a labels file and required; `classes` None: those of the file. Without `train_list` all images are used
    for training but those in `val_list`. `masks` is a folder of ground truth named like the images, if there is one.
    Folders in `skip` hold no photos.
    """
    if labels is None:
        raise UserError("data.labels: a folder of images needs a labels file (.json, .csv, .parquet)")
    problems = Problems()
    barred = [*skip, below(root, masks)] if masks else skip
    index = image_index(root, images, "data.images", problems, skip=barred)
    given = labels_file(root, labels)
    table = read_labels(given, classes=classes)
    labels_of = labels_for(table, index, problems, given)
    truth = mask_folder(root, masks, problems)
    reader = Reader(make_classes(table.names), hashes, problems, limit, negatives)
    held_out = read_list(below(root, val_list), "data.val_list") if val_list else []
    if train_list:
        source = below(root, train_list)
        entries = read_list(source, "data.train_list")
    else:
        source, entries = index.folder, sorted(index.names.keys() - _found(index, held_out))
        if not entries:
            listed = shown(below(root, str(val_list)))
            raise UserError(f"data.val_list={listed}: names all images of {shown(source)}: leave some to train on")
    train = reader.split("train", source, entries, index, labels_of, truth)
    val = reader.split("val", below(root, val_list), held_out, index, labels_of, truth) if val_list else None
    return Dataset(root.name, reader.classes, train, val, problems.listed())


def _found(index: ImageIndex, entries: Sequence[str]) -> set[str]:
    """Relative paths of the images that entries name."""
    paths = set()
    for entry in entries:
        try:
            paths.add(index.find(entry))
        except NotFoundInFolder:
            continue
    return paths
