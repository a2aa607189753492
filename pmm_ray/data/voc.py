"""Data sets in the layout of PASCAL VOC."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath

from pmm_ray.data.dataset import Dataset
from pmm_ray.data.fingerprint import ContentHashes
from pmm_ray.data.images import IMAGE_SUFFIXES
from pmm_ray.data.labels import check_classes, class_id, read_labels
from pmm_ray.data.problems import Problems, shown
from pmm_ray.data.splits import (
    LabelsOf,
    Negative,
    NoLabels,
    Reader,
    image_index,
    labels_file,
    labels_for,
    make_classes,
    mask_folder,
    read_list,
)
from pmm_ray.errors import UserError
from pmm_ray.files import readable
from pmm_ray.places import below

_NAMES = (
    "aeroplane,bicycle,bird,boat,bottle,bus,car,cat,chair,cow,diningtable,dog,horse,motorbike,person,pottedplant,"
    "sheep,sofa,train,tvmonitor"
)
VOC_CLASSES = tuple(_NAMES.split(","))

_SUFFIX = "|".join(suffix[1:] for suffix in IMAGE_SUFFIXES)
_PAIR = re.compile(rf"(.+\.(?:{_SUFFIX}))\s+(\S.*\.png)", re.IGNORECASE)


def read_voc(
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
    """Read a data set in VOC layout; all paths are below `root`.

    A line of a list is a name with or without suffix, or the image and mask of the peers' lists
    ('/JPEGImages/x.jpg /SegmentationClassAug/x.png'), whose mask is ignored in favour of `masks`. `labels` is a labels
    file; None reads the objects in Annotations/*.xml. `classes` None: VOC's 20. Folders in `skip` hold no photos.
    """
    if train_list is None:
        raise UserError("data.train_list: a voc data set needs a list of training images (kind folder does not)")
    problems = Problems()
    names = check_classes(classes or VOC_CLASSES, "data.classes")
    index = image_index(root, images, "data.images", problems, skip=skip)
    if labels is None:
        labels_of = _annotated(root, names)
    else:
        given = labels_file(root, labels)
        labels_of = labels_for(read_labels(given, classes=names), index, problems, given)
    truth = mask_folder(root, masks, problems)
    reader = Reader(make_classes(names), hashes, problems, limit, negatives)
    splits = [
        reader.split(title, path, _entries(path, f"data.{title}_list", images), index, labels_of, truth)
        for title, where in (("train", train_list), ("val", val_list))
        if where is not None
        for path in [below(root, where)]
    ]
    return Dataset(
        name=root.name,
        classes=reader.classes,
        train=splits[0],
        val=splits[1] if len(splits) > 1 else None,
        problems=problems.listed(),
    )


def _entries(path: Path, key: str, images: str) -> list[str]:
    return [_entry(line, images) for line in read_list(path, key)]


def _entry(line: str, images: str) -> str:
    """The image a line of a list names, relative to the image folder where it is below that."""
    pair = _PAIR.fullmatch(line)
    entry = pair.group(1) if pair else line
    below = PurePosixPath(entry.removeprefix("/"))
    return str(below.relative_to(images)) if below.is_relative_to(images) else entry


def _annotated(root: Path, names: tuple[str, ...]) -> LabelsOf:
    """Labels from Annotations/<name>.xml: every object counts, difficult ones too, as in the peers' label files."""
    folder = root / "Annotations"
    if not folder.is_dir():
        there = [name for name in ("image_labels.json", "cls_labels.npy", "labels.csv") if (root / name).is_file()]
        advice = f"set data.labels={there[0]}" if there else "set data.labels to a labels file"
        raise UserError(f"{shown(folder)}: no such folder of XML annotations: {advice}")

    def labels(name: str, path: str) -> tuple[int, ...]:
        file = folder / f"{name}.xml"
        try:
            tree = ElementTree.parse(readable(file))
            objects = [(item.findtext("name") or "").strip() for item in tree.iter("object")]
            found = {class_id(name, names, f"{shown(file)} has") for name in objects}
        except FileNotFoundError:
            raise NoLabels(f"{shown(file)} does not exist: restore it, or set data.labels to a labels file") from None
        except (ElementTree.ParseError, OSError, ValueError, LookupError) as error:  # the last two: of an encoding
            raise NoLabels(f"{shown(file)} cannot be read ({shown(error)}): restore it or save it as UTF-8") from None
        except UserError as error:
            raise NoLabels(str(error)) from None
        if not found:
            raise Negative(f"{shown(file)} has no object")
        return tuple(sorted(found))

    return labels
