"""COCO from its annotation JSON: the 80 real classes with contiguous ids, labels, and masks drawn from the polygons."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from pmm_ray.data.dataset import IGNORE, Classes, Dataset, Split, Truth
from pmm_ray.data.fingerprint import ContentHashes, fingerprint
from pmm_ray.data.images import MAX_PIXELS, write_label
from pmm_ray.data.labels import check_classes, class_id, class_name, read_labels
from pmm_ray.data.names import ImageIndex, NotFoundInFolder
from pmm_ray.data.problems import Problems, shown
from pmm_ray.data.splits import Reader, image_index, labels_file, labels_for, lookup, make_classes
from pmm_ray.errors import UserError
from pmm_ray.files import atomic_path, readable
from pmm_ray.places import below

_NAMES = (
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,"
    "parking meter,bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,"
    "suitcase,frisbee,skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,"
    "tennis racket,bottle,wine glass,cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,"
    "hot dog,pizza,donut,cake,chair,couch,potted plant,bed,dining table,toilet,tv,laptop,mouse,remote,keyboard,"
    "cell phone,microwave,oven,toaster,sink,refrigerator,book,clock,vase,scissors,teddy bear,hair drier,"
    "toothbrush"
)
COCO_CLASSES = tuple(_NAMES.split(","))
"""In the order of COCO's own ids, which have gaps (1..90); here they are 1..80."""

_VERSION = 1  # of what the cache holds and how masks are drawn
_GROUP = 64  # rows of the cache read at once
_WITHOUT_OUTLINE = "without_outline"
_SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("labels", pa.list_(pa.int32())),
        ("objects", pa.string()),
    ]
)


def read_coco(
    root: Path,
    *,
    images: str,
    val_images: str | None,
    masks: str | None,
    train_list: str | None,
    val_list: str | None,
    labels: str | None,
    classes: Sequence[str] | None,
    limit: int | None,
    negatives: bool,
    hashes: ContentHashes,
    skip: Collection[Path],
    cache: Path,
) -> Dataset:
    """Read COCO; the lists are annotation JSONs below `root`.

    `classes` None: COCO's 80; otherwise the classes to keep, by their COCO names. Labels are the classes of an image's
    annotations (crowds too), or come from a labels file. Ground truth is drawn into `cache` when it is asked for;
    `masks` None: there is none. A JSON is read once and kept in `cache` by image. Folders in `skip` hold no photos.
    """
    if train_list is None:
        raise UserError("data.train_list: coco needs an annotation JSON such as annotations/instances_train2014.json")
    names = check_classes(classes or COCO_CLASSES, "data.classes")
    reader = Reader(make_classes(names), hashes, Problems(), limit, negatives)
    folders = [(images, "data.images")]
    if val_list is not None and val_images not in (None, images):
        folders.append((str(val_images), "data.val_images"))
    indexes = [image_index(root, folder, key, reader.problems, skip=skip) for folder, key in folders]
    given = None if labels is None else labels_file(root, labels)
    train = _split(reader, "train", below(root, train_list), indexes, given, masks is not None, cache)
    val = None
    if val_list is not None:
        val = _split(reader, "val", below(root, val_list), indexes[::-1], given, masks is not None, cache)
    return Dataset(root.name, reader.classes, train, val, reader.problems.listed())


def _split(
    reader: Reader,
    title: str,
    source: Path,
    indexes: Sequence[ImageIndex],
    given: Path | None,
    with_truth: bool,
    cache: Path,
) -> Split:
    """A split of the images of the first index; the labels in `given` may be of the others' too."""
    index, others = indexes[0], indexes[1:]
    names = reader.classes.names[1:]
    identity = fingerprint(_VERSION, names, _content(source, title, reader.hashes))
    table = cache / "coco" / identity[:16] / "annotations.parquet"
    if not table.exists():
        _extract(source, names, table)
    known = pq.read_schema(readable(table)).metadata or {}
    missing, annotations = json.loads(known.get(_WITHOUT_OUTLINE.encode(), "[0, 0]"))
    if with_truth and missing:
        if missing == annotations:
            raise UserError(f"{shown(source)}: no annotation has a 'segmentation' to draw masks: set data.masks=null")
        why = f"{missing} of {annotations} annotations have no 'segmentation': their images are not scored"
        reader.problems.add(source, why, group="without an outline")
    files, labels = (pq.read_table(readable(table), columns=[c]).column(c).to_pylist() for c in ("file", "labels"))
    rows: dict[str, int] = {}
    for row, file in enumerate(files):
        try:
            rows[index.names[index.find(file)]] = row
        except NotFoundInFolder:
            continue  # noted where the split is made
    if given is None:
        labels_of = lookup({name: tuple(labels[row]) for name, row in rows.items()}, source)
    else:
        # labels that no split has are noted once
        problems = reader.problems if title == "train" else Problems()
        labels_of = labels_for(read_labels(given, classes=names), index, problems, given, others=others)
    masks = DrawnMasks(table, table.parent / "masks", rows, reader.classes)
    truth = Truth(masks, source.stem, identity) if with_truth else None
    split = reader.split(title, source, files, index, labels_of, truth)
    if split.truth is None:
        return split
    kept = {photo.name: rows[photo.name] for photo in split.photos.photos}
    return replace(split, truth=replace(split.truth, masks=replace(masks, rows=kept)))


def _content(source: Path, title: str, hashes: ContentHashes) -> str:
    content = hashes.of([str(source)])[str(source)]
    if isinstance(content, OSError):
        advice = f"set data.{title}_list to an annotation JSON"
        raise UserError(f"{shown(source)}: cannot be read ({content.strerror}): {advice}")
    return content


def _extract(source: Path, names: Sequence[str], table: Path) -> None:
    """Write what an annotation JSON says, image by image, to `table`."""
    try:
        data = json.loads(source.read_bytes())
        category = _categories(data["categories"], names, source)
        objects: dict[Any, list[tuple[int, Any]]] = {image["id"]: [] for image in data["images"]}
        present: dict[Any, set[int]] = {key: set() for key in objects}
        for annotation in data["annotations"]:
            number = category.get(annotation["category_id"])
            if number is None:
                raise UserError(
                    f"{shown(source)}: an annotation of image {shown(annotation['image_id'])} has category_id "
                    f"{shown(annotation['category_id'])}, which is not among its categories: correct the file"
                )
            if number and annotation["image_id"] in objects:
                crowd = bool(annotation.get("iscrowd", 0))
                present[annotation["image_id"]].add(number)
                objects[annotation["image_id"]].append((IGNORE if crowd else number, annotation.get("segmentation")))
        rows = [
            {
                "file": image["file_name"],
                "height": image["height"],
                "width": image["width"],
                "labels": sorted(present[image["id"]]),
                "objects": json.dumps(objects[image["id"]]),
            }
            for image in data["images"]
        ]
        with atomic_path(table) as temporary:
            facts = _SCHEMA.with_metadata({_WITHOUT_OUTLINE: _without_outline(objects.values())})
            pq.write_table(pa.Table.from_pylist(rows, facts), temporary, row_group_size=_GROUP, compression="zstd")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = f"{type(error).__name__}: {shown(error)}"
        raise UserError(f"{shown(source)}: not a COCO annotation file ({why}): replace it") from None


def _without_outline(objects: Iterable[Sequence[tuple[int, Any]]]) -> str:
    """How many annotations do not say where their object is (a box does not), and of how many, as JSON."""
    missing = [segmentation is None for listed in objects for _, segmentation in listed]
    return json.dumps([sum(missing), len(missing)])


def _categories(categories: Sequence[Mapping[str, Any]], names: Sequence[str], source: Path) -> dict[Any, int]:
    """COCO's category id -> id 1..C here, or 0 for a category that is not among `names`."""
    theirs = [class_name(str(category["name"])) for category in categories]
    if tuple(names) == COCO_CLASSES:
        for name in theirs:
            class_id(name, names, f"{shown(source)} has (set data.classes if it is not COCO)")
    else:
        for name in names:
            class_id(name, theirs, f"data.classes: {shown(source)} lacks")
    ids = {name: number for number, name in enumerate(names, 1)}
    return {category["id"]: ids.get(name, 0) for category, name in zip(categories, theirs, strict=True)}


@dataclass(frozen=True)
class DrawnMasks(Mapping[str, str]):
    """name -> path of a label PNG, which is drawn into `folder` when it is first asked for. Pickles small."""

    table: Path
    folder: Path
    rows: Mapping[str, int]
    classes: Classes

    def __getitem__(self, name: str) -> str:
        row = self.rows[name]
        path = self.folder / f"{name}.png"
        if not path.exists():
            facts = _group(self.table, row // _GROUP)[row % _GROUP]
            mask = draw_mask(json.loads(facts["objects"]), height=facts["height"], width=facts["width"])
            write_label(path, mask, self.classes.palette)
        return str(path)

    def __contains__(self, name: object) -> bool:
        return name in self.rows

    def __iter__(self) -> Iterator[str]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)


@lru_cache(maxsize=2)
def _group(table: Path, number: int) -> list[dict[str, Any]]:
    with table.open("rb") as opened, pq.ParquetFile(opened) as file:
        return file.read_row_group(number, columns=["height", "width", "objects"]).to_pylist()


def draw_mask(objects: Sequence[tuple[int, Any]], *, height: int, width: int) -> NDArray[np.uint8]:
    """Mask (H, W) uint8 of (id, COCO segmentation) objects: the smaller on top; crowds (id 255) below all of them.

    A crowd's region often reaches over objects that have an outline of their own; what is known about those is kept.
    With an object that has no outline (None) the whole image is 255.

    Raises:
        UserError: a segmentation that does not fit the image.
    """
    if not 0 < height * width <= MAX_PIXELS:
        raise UserError(f"an annotated image of {width} x {height} pixels: correct the annotation JSON")
    # where an object without an outline is nobody knows
    if any(segmentation is None for _, segmentation in objects):
        return np.full((height, width), IGNORE, np.uint8)
    try:
        regions = [(number, _region(segmentation, height, width)) for number, segmentation in objects]
    except (ValueError, TypeError, LookupError) as error:
        why = f"an annotation whose segmentation cannot be drawn ({shown(error)})"
        raise UserError(f"{why}: correct the annotation JSON") from None
    mask = np.zeros((height, width), np.uint8)
    for number, region in sorted(regions, key=lambda item: (item[0] != IGNORE, -int(item[1].sum()))):
        mask[region] = number
    return mask


def _region(segmentation: Any, height: int, width: int) -> NDArray[np.bool_]:
    """A COCO segmentation (polygons, or run lengths) as (H, W) bool."""
    if isinstance(segmentation, list):
        # Fewer than three corners enclose nothing, and pycocotools takes four numbers for a box.
        polygons = [polygon[: len(polygon) // 2 * 2] for polygon in segmentation if len(polygon) >= 6]
        if not polygons:
            return np.zeros((height, width), bool)
        return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))).astype(bool)
    counts, size = segmentation["counts"], list(segmentation["size"])
    if size != [height, width]:
        sizes = f"of size {size} in an image of {[height, width]}"
        raise UserError(f"a run-length annotation {sizes} (height, width): correct the annotation JSON")
    if isinstance(counts, list) and sum(counts) != height * width:
        sums = f"whose counts add up to {sum(counts)} in an image of {height * width} pixels"
        raise UserError(f"a run-length annotation {sums}: correct the annotation JSON")
    runs = coco_mask.frPyObjects(segmentation, height, width) if isinstance(counts, list) else segmentation
    return coco_mask.decode(runs).astype(bool)
