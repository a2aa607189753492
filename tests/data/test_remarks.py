"""What is told of a data set that can be read and may be wrong."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from small_sets import mask, photo

from pmm_ray.data.images import ImageError, read_label
from pmm_ray.data.load import load_dataset
from pmm_ray.data.remarks import remarks


@pytest.fixture
def two(tmp_path):
    """Photos a, b, c of a cat, a dog, both; v and w for validation; masks that hold what the labels say."""
    labels = {"a": [1], "b": [2], "c": [1, 2], "v": [1], "w": [2]}
    for name, ids in labels.items():
        photo(tmp_path / "set" / "photos" / f"{name}.jpg", value=40 + 10 * ord(name) % 200)
        drawn = np.zeros((6, 8))
        drawn[0], drawn[1], drawn[2] = ids[0], ids[-1], 255
        mask(tmp_path / "set" / "masks" / f"{name}.png", drawn)
    (tmp_path / "set" / "labels.json").write_text(json.dumps(labels))
    (tmp_path / "set" / "train.txt").write_text("a\nb\nc\n")
    (tmp_path / "set" / "val.txt").write_text("v\nw\n")
    return tmp_path / "set"


def load(root, **changes):
    settings = {"kind": "folder", "root": root, "images": "photos", "masks": "masks", "labels": "labels.json"}
    settings |= {"train_list": "train.txt", "val_list": "val.txt", "classes": ["cat", "dog"]}
    return load_dataset(**(settings | {"cache": root.parent / "runs" / "digests"} | changes))


def told(root, **changes):
    return {note.name: note.why for note in load(root, **changes).notes}


def test_of_good_data_nothing_is_told_and_of_bad_data_all_stays_in(two):
    good = load(two)
    assert good.notes == good.problems == ()
    mask(two / "masks" / "a.png", np.full((6, 8), 9))
    (two / "val.txt").write_text("v\nw\na\n")
    bad = load(two)
    assert len(bad.notes) == 3 and bad.problems == ()
    assert bad.train.photos == good.train.photos and len(bad.val.photos) == 3
    assert set(bad.train.truth.masks) == {"a", "b", "c"}


def test_photos_of_both_lists_are_one_line_with_their_number(two):
    (two / "val.txt").write_text("v\na\nc\n")
    assert told(two) == {
        "a, c": "2 of data.val_list are in data.train_list too: the score of val is too good: take them off one"
    }


def test_masks_drawn_in_0_and_255_are_told_of(two):
    for name in ("a", "b", "c"):
        mask(two / "masks" / f"{name}.png", np.eye(6, 8) * 255)
    assert told(two) == {
        "train masks": "hold nothing but 0 and 255, where 255 means 'ignore': write 1, 2, ... for the classes"
    }
    mask(two / "masks" / "c.png", np.eye(6, 8) * 2)
    assert told(two) == {}


@pytest.mark.parametrize(
    ("drawn", "why"),
    [
        (np.full((6, 8), 3), r"b.png: the mask holds id 3; its ids must be 0..2 or 255: .*data.classes"),
        (np.ones((3, 4)), "b.png: the mask is 4 x 3 pixels"),
        (np.ones((6, 8, 3)), "b.png: a mask must be a palette or grey image"),
    ],
)
def test_masks_that_cannot_be_scored_are_told_before_anything_is_trained(two, drawn, why):
    mask(two / "masks" / "b.png", drawn)
    (note,) = load(two).notes
    assert note.name == "train masks"
    assert note.why.startswith("1 of 3 that were looked at cannot be scored, as ")
    assert re.search(why, note.why)


def test_few_masks_are_looked_at_spread_over_the_split_and_fewer_large_ones(two, monkeypatch):
    names = [f"n{number:03d}" for number in range(100)]
    for name in names:
        photo(two / "photos" / f"{name}.jpg")
        mask(two / "masks" / f"{name}.png", np.ones((6, 8)))
    (two / "labels.json").write_text(json.dumps({name: [1 + (name == "n000")] for name in names}))
    (two / "train.txt").write_text("\n".join(names))
    data = load(two, val_list=None)
    opened = []
    monkeypatch.setattr(
        "pmm_ray.data.remarks.read_label", lambda path, **more: opened.append(path) or read_label(path, **more)
    )
    assert remarks(data) == ()
    assert len(opened) == 20 and opened[0].endswith("n000.png") and opened[-1].endswith("n099.png")
    opened.clear()
    monkeypatch.setattr("pmm_ray.data.remarks._PIXELS", 100)
    remarks(data)
    assert len(opened) == 3


def test_classes_of_no_photo_and_of_all_are_told_of(two):
    (two / "labels.json").write_text(json.dumps({"a": [1], "b": [1], "c": [1, 2], "v": [3], "w": [2]}))
    notes = told(two, classes=["cat", "dog", "horse", "cow"], masks=None)
    assert notes["horse, cow"].startswith("no training photo has this label")
    assert notes["cat"].startswith("every training photo has this label")
    assert len(notes) == 2


def test_an_id_of_no_class_names_the_file_only_where_classes_are_given(tmp_path):
    path = mask(tmp_path / "m.png", np.array([[0, 2, 255]]))
    np.testing.assert_array_equal(read_label(path), read_label(path, num_classes=3))
    with pytest.raises(ImageError, match=r"m\.png: the mask holds id 2; its ids must be 0\.\.1 or 255"):
        read_label(path, num_classes=2)
