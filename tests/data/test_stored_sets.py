"""A data set in object storage is the data set that it is on a disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from small_sets import mask, photo

from pmm_ray.data.dataset import Split
from pmm_ray.data.images import ImageError, image_size, read_image, read_label
from pmm_ray.data.load import load_dataset
from pmm_ray.data.npy import read_npy_dict
from pmm_ray.errors import UserError
from pmm_ray.files import write_atomic
from pmm_ray.places import Remote, StorageError

SMALL = {"train": 3, "val": 1, "seed": 3, "part_share": 0.12, "cooccurrence": 0.6}


def stored(folder: Path, url: Remote) -> Remote:
    """A copy of the folder in object storage."""
    for file in folder.rglob("*"):
        if file.is_file():
            write_atomic(url / file.relative_to(folder).as_posix(), file.read_bytes())
    return url


def same(split: Split, other: Split) -> bool:
    """Whether two splits are the same but for where their files are."""
    fingerprints = [(each.photos.fingerprint, each.truth and each.truth.fingerprint) for each in (split, other)]
    names = [[(photo.name, photo.labels) for photo in each.photos.photos] for each in (split, other)]
    return fingerprints[0] == fingerprints[1] and names[0] == names[1]


def voc(root, cache, **changes):
    given = {"kind": "voc", "root": root, "labels": "labels.json", "cache": cache} | changes
    return load_dataset(**{name: str(value) if name == "root" else value for name, value in given.items()})


def test_photos_labels_and_truth_are_those_on_the_disk(voc_root, bucket, tmp_path):
    there = voc(stored(voc_root, bucket / "set"), bucket / "cache")
    here = voc(voc_root, tmp_path / "cache")
    assert same(there.train, here.train) and same(there.val, here.val)
    assert (there.name, there.problems) == ("set", here.problems)
    first = there.train.photos.photos[0]
    assert first.image == f"{bucket}/set/JPEGImages/a.jpg"
    np.testing.assert_array_equal(read_image(first.image), read_image(voc_root / "JPEGImages" / "a.jpg"))
    assert image_size(first.image) == (6, 8) and read_label(there.train.truth.masks["a"]).max() == 1


def test_labels_and_lists_may_be_elsewhere(voc_root, bucket, tmp_path):
    url = stored(voc_root, bucket)
    here = voc(voc_root, tmp_path / "cache")
    mixed = voc(voc_root, tmp_path / "cache", labels=f"{url}/labels.json", masks=f"{url}/SegmentationClass")
    assert mixed.train.photos == here.train.photos
    assert mixed.train.truth.masks["a"] == f"{url}/SegmentationClass/a.png"
    assert same(voc(url, tmp_path / "cache", labels=str(voc_root / "labels.json")).train, here.train)


def test_annotations_in_xml_are_read(voc_root, bucket, tmp_path):
    for name, label in (("a", "cat"), ("b", "dog"), ("c", "car"), ("v", "cat")):
        xml = f"<annotation><object><name>{label}</name></object></annotation>"
        write_atomic(voc_root / "Annotations" / f"{name}.xml", xml)
    there = voc(stored(voc_root, bucket), bucket / "cache", labels=None)
    assert same(there.train, voc(voc_root, tmp_path / "cache", labels=None).train)


def test_a_second_load_reads_no_image_and_a_changed_one_is_noticed(voc_root, bucket, monkeypatch):
    url = stored(voc_root, bucket / "set")
    first, read, read_bytes = voc(url, bucket / "cache"), [], Remote.read_bytes
    monkeypatch.setattr(Remote, "read_bytes", lambda self: read.append(self.name) or read_bytes(self))
    assert voc(url, bucket / "cache") == first
    assert not [name for name in read if name.endswith((".jpg", ".png"))]
    photo(voc_root / "JPEGImages" / "b.jpg", value=200)
    stored(voc_root / "JPEGImages", url / "JPEGImages")
    assert voc(url, bucket / "cache").train.photos.fingerprint != first.train.photos.fingerprint


def test_folders_are_walked_without_hidden_ones_and_the_masks(tmp_path, bucket):
    root = tmp_path / "set"
    for name in ("a/x.jpg", "b/y.JPG", ".thumbs/x.jpg", "b/.hidden.jpg"):
        photo(root / name)
    mask(root / "truth" / "a" / "x.png", np.ones((6, 8)))
    (root / "labels.csv").write_text("image,label\na/x,cat\ny,dog\n")
    given = {"kind": "folder", "images": ".", "masks": "truth", "labels": "labels.csv", "train_list": None}
    given |= {"val_list": None, "cache": tmp_path / "cache"}
    there = load_dataset(root=str(stored(root, bucket)), **given)
    assert [shot.name for shot in there.train.photos.photos] == ["a/x", "b/y"]
    assert same(there.train, load_dataset(root=root, **given).train)


# pycocotools 2.0 with numpy 2: its own array type lacks a keyword.
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")
def test_coco_masks_are_drawn_beside_the_artefacts(tmp_path, bucket):
    root = tmp_path / "coco"
    photo(root / "train" / "1.jpg", size=(20, 30))
    box = [[2, 2, 6, 2, 6, 6, 2, 6]]
    annotation = {"image_id": 1, "category_id": 18, "segmentation": box, "iscrowd": 0}
    image = {"id": 1, "file_name": "1.jpg", "height": 20, "width": 30}
    found = {"images": [image], "annotations": [annotation], "categories": [{"id": 18, "name": "dog"}]}
    (root / "a.json").write_text(json.dumps(found))
    given = {"kind": "coco", "images": "train", "train_list": "a.json", "val_list": None, "classes": ("dog",)}
    there = load_dataset(root=str(stored(root, bucket / "set")), cache=bucket / "cache", **given)
    assert same(there.train, load_dataset(root=root, cache=tmp_path / "cache", **given).train)
    path = there.train.truth.masks["1"]
    assert path.startswith(f"{bucket}/cache/coco/") and read_label(path).sum() == 16
    assert there.train.truth.masks["1"] == path


def test_the_embedded_set_can_be_drawn_there(tmp_path, bucket):
    there = load_dataset(kind="shapes", root=f"{bucket}/shapes", shapes=SMALL, cache=bucket / "cache")
    here = load_dataset(kind="shapes", root=tmp_path / "shapes", shapes=SMALL, cache=tmp_path / "cache")
    assert same(there.train, here.train) and same(there.val, here.val)
    with pytest.raises(UserError, match="was drawn with train 3"):
        load_dataset(kind="shapes", root=f"{bucket}/shapes", shapes=SMALL | {"train": 4}, cache=bucket / "cache")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"root": "s3://no-such-bucket/set"}, "s3://no-such-bucket/set: no such folder: set data.root"),
        ({"images": "nowhere"}, "nowhere: no such folder: set data.images"),
        ({"labels": "nowhere.csv"}, "nowhere.csv: no such labels file"),
        ({"train_list": "nowhere.txt"}, "nowhere.txt: no such list: set data.train_list"),
    ],
)
def test_what_is_missing_is_named_with_its_setting(voc_root, bucket, tmp_path, changes, says):
    with pytest.raises(UserError, match=says):
        voc(**({"root": stored(voc_root, bucket), "cache": tmp_path} | changes))


def test_a_missing_object_is_its_images_fault_and_a_silent_store_is_not(bucket, monkeypatch):
    with pytest.raises(ImageError, match=r"s3://.*x\.jpg: no such file"):
        read_image(f"{bucket}/x.jpg")
    with pytest.raises(UserError, match=r"x\.npy: cannot be read \(No such file or directory\)"):
        read_npy_dict(f"{bucket}/x.npy")
    silence = lambda self: (_ for _ in ()).throw(StorageError("no answer"))  # noqa: E731
    monkeypatch.setattr(Remote, "read_bytes", silence)
    for read in (read_image, read_npy_dict):
        with pytest.raises(StorageError, match="no answer"):
            read(f"{bucket}/x.jpg")
