"""What may be wrong with a data set though it can be read: told at the beginning, not after hours of training."""

from __future__ import annotations

import numpy as np

from pmm_ray.data.dataset import IGNORE, Dataset, Photo, Problem, Split
from pmm_ray.data.images import ImageError, check_same_size, image_size, read_label
from pmm_ray.data.problems import Problems, some
from pmm_ray.places import is_url

_MASKS = 20
"""So many masks of a split are looked at, spread over it."""

_PIXELS = 20_000_000
"""No further one after so many pixels: loading is to stay quick."""


def remarks(data: Dataset) -> tuple[Problem, ...]:
    """One line for each thing that deserves a look. Of the files only some masks on a disk are opened."""
    notes = Problems()
    _lists(data, notes)
    _labels(data, notes)
    for split in (data.train, data.val):
        if split is not None:
            _masks(split, len(data.classes), notes)
    return notes.listed()


def _lists(data: Dataset, notes: Problems) -> None:
    trained_on = {photo.image for photo in data.train.photos.photos}
    both = [photo.name for photo in (data.val.photos.photos if data.val else ()) if photo.image in trained_on]
    if both:
        why = (
            f"{len(both)} of data.val_list are in data.train_list too: the score of val is too good: take them off one"
        )
        notes.add(some(both), why, group="in both lists")


def _labels(data: Dataset, notes: Problems) -> None:
    photos = data.train.photos.photos
    counts = np.bincount([label for photo in photos for label in photo.labels], minlength=len(data.classes))
    never = [name for name, count in zip(data.classes.names[1:], counts[1:], strict=True) if count == 0]
    always = [name for name, count in zip(data.classes.names[1:], counts[1:], strict=True) if count == len(photos)]
    if never:
        why = "no training photo has this label, so it cannot be learned: correct the labels or data.classes"
        notes.add(some(never, 8), why, group="classes without a photo")
    if always:
        why = "every training photo has this label, so its CAMs tell little: add photos without it, of background "
        why += "alone with data.negatives=true"
        notes.add(some(always, 8), why, group="classes of all photos")


def _masks(split: Split, num_classes: int, notes: Problems) -> None:
    looked, pixels = 0, 0
    ids: set[int] = set()
    faults: list[str] = []
    for photo, path in _sample(split):
        if pixels > _PIXELS:
            break
        looked += 1
        try:
            mask = read_label(path, num_classes=num_classes)
            pixels += mask.size
            ids |= set(np.flatnonzero(np.bincount(mask.ravel())).tolist())
            if (size := _size(photo)) is not None:
                check_same_size(mask, size, path=path)
        except ImageError as error:
            faults.append(str(error))
    if ids == {0, IGNORE}:
        why = f"hold nothing but 0 and {IGNORE}, where {IGNORE} means 'ignore': write 1, 2, ... for the classes"
        notes.add(f"{split.name} masks", why, group="masks of 0 and 255")
    if faults:
        why = f"{len(faults)} of {looked} that were looked at cannot be scored, as {faults[0]}"
        notes.add(f"{split.name} masks", why, group="masks that cannot be scored")


def _sample(split: Split) -> list[tuple[Photo, str]]:
    """Photos and their masks, as far as these are files of this machine."""
    masks = split.truth.masks if split.truth is not None else {}
    if not isinstance(masks, dict):  # made when asked for
        return []
    have = [photo for photo in split.photos.photos if photo.name in masks and not is_url(masks[photo.name])]
    chosen = np.unique(np.linspace(0, len(have) - 1, min(len(have), _MASKS)).round().astype(int))
    return [(have[number], masks[have[number].name]) for number in chosen]


def _size(photo: Photo) -> tuple[int, int] | None:
    try:
        return None if is_url(photo.image) else image_size(photo.image)
    except ImageError:
        return None  # the photo is to blame, and will be where it is used
