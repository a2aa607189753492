from __future__ import annotations

import csv

import numpy as np
import pytest
from small_sets import mask, photo

from pmm_ray.data.load import load_dataset
from pmm_ray.errors import UserError


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "photos"
    for name in ("one.jpg", "sub/two.PNG", "sub/deeper/three.jpeg", "four.webp"):
        photo(root / name)
    (root / "labels.csv").write_text("image,label\none.jpg,cat\nsub/two.PNG,dog\nthree,cat\nthree,dog\nfour,cat\n")
    return root


def load(root, **changes):
    settings = {"kind": "folder", "root": root, "images": ".", "labels": "labels.csv", "cache": root.parent / "cache"}
    return load_dataset(**(settings | {"masks": None, "train_list": None, "val_list": None} | changes))


def names(split):
    return [photo.name for photo in split.photos.photos]


def test_all_images_below_the_folder_are_read_with_the_classes_of_the_labels_file(folder):
    data = load(folder)
    found = {photo.name: photo.labels for photo in data.train.photos.photos}
    assert found == {"one": (1,), "sub/two": (2,), "sub/deeper/three": (1, 2), "four": (1,)}
    assert data.classes.names == ("background", "cat", "dog")
    assert data.train.truth is None and data.val is None
    assert data.problems == ()


def test_the_order_does_not_depend_on_the_file_system(folder):
    assert names(load(folder).train) == ["four", "one", "sub/deeper/three", "sub/two"]


def test_validation_images_are_not_trained_on(folder):
    (folder / "val.txt").write_text("one\nsub/two\n")
    data = load(folder, val_list="val.txt")
    assert names(data.train) == ["four", "sub/deeper/three"]
    assert names(data.val) == ["one", "sub/two"]


def test_masks_may_lie_among_the_images_and_are_not_taken_for_photos(folder):
    mask(folder / "truth" / "one.png", np.ones((6, 8)))
    mask(folder / "truth" / "sub" / "two.png", np.ones((6, 8)))
    data = load(folder, masks="truth")
    assert names(data.train) == names(load(folder).train)
    assert list(data.train.truth.masks) == ["one", "sub/two"]


@pytest.mark.parametrize("linked", [False, True])
def test_what_runs_leave_in_a_store_among_the_images_is_not_taken_for_photos(folder, tmp_path, linked):
    first = load(folder, cache=folder / "runs" / "digests")
    for name in ("one.png", "sub/two.png", "three.png"):
        mask(folder / "runs" / "make_masks" / "0123" / "masks" / name, np.ones((6, 8)))
    if linked:
        (tmp_path / "link").symlink_to(folder)
    again = load(folder, images=str(tmp_path / "link") if linked else ".", cache=folder / "runs" / "digests")
    assert again.train.photos.fingerprint == first.train.photos.fingerprint and again.problems == ()


def test_the_folder_of_images_is_no_store(folder):
    with pytest.raises(
        UserError, match=rf"^store={folder}: is the folder of the images.* such as store={folder}/runs$"
    ):
        load(folder, cache=folder / "digests")


def test_images_without_a_label_are_listed_and_many_of_them_briefly(folder):
    for number in range(100):
        photo(folder / f"extra{number:03d}.jpg")
    data = load(folder)
    assert len(data.train.photos) == 4
    assert len(data.problems) == 21
    assert data.problems[-1].name == "80 more"


def test_a_name_with_a_line_break_works_and_is_shown_escaped(folder):
    photo(folder / "we\nird.jpg")
    photo(folder / "un\nlabelled.jpg")
    with (folder / "labels.csv").open("a", newline="") as file:
        csv.writer(file).writerow(["we\nird.jpg", "dog"])
    data = load(folder)
    assert "we\nird" in names(data.train)
    (problem,) = data.problems
    assert problem.name == "'un\\nlabelled'"


def test_a_folder_needs_labels_and_images(folder, tmp_path):
    with pytest.raises(UserError, match=r"data\.labels"):
        load(folder, labels=None)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "labels.csv").write_text("image,label\na,cat\n")
    with pytest.raises(UserError, match=r"empty: holds no image \(.*\.jpg.*\): set data\.images"):
        load(tmp_path / "empty")
    with pytest.raises(UserError, match=r"JPEGImages: no such folder.*'\.'"):
        load(folder, images="JPEGImages")


def test_a_folder_of_photos_that_are_not_read_says_so(tmp_path):
    (tmp_path / "x.HEIC").write_bytes(b"x")
    (tmp_path / "labels.csv").write_text("image,label\nx.HEIC,cat\n")
    with pytest.raises(UserError, match=r"holds no image .*x\.HEIC: \.heic files are not read: convert them"):
        load(tmp_path, cache=tmp_path / "runs" / "digests")


def test_each_label_without_an_image_is_told_with_its_reason(folder):
    photo(folder / "sub" / "one.jpg")
    (folder / "raw.cr2").write_bytes(b"x")
    (folder / "labels.csv").write_text(
        f"image,label\none.jpg,cat\n{folder}/sub/one.jpg,dog\nsub\\two.PNG,dog\nfour,cat\nthree,cat\n"
        "raw.cr2,cat\n/elsewhere/five.jpg,cat\nsix,dog\n"
    )
    data = load(folder)
    assert {photo.name: photo.labels for photo in data.train.photos.photos} == {
        **{"one": (1,), "sub/one": (2,), "sub/two": (2,), "four": (1,), "sub/deeper/three": (1,)}
    }
    whys = {problem.name: problem.why for problem in data.problems}
    assert whys["raw.cr2"].startswith(".cr2 files are not read")
    assert whys["/elsewhere/five.jpg"].startswith("leads out of")
    assert whys["six"].startswith("no such image in")
    assert len(data.problems) == 3  # the raw file is told of once


def test_labels_that_match_no_image_name_the_setting_and_the_file(folder):
    (folder / "labels.csv").write_text("image,label\nx1,cat\nx2,dog\n")
    said = rf"^data\.labels={folder}/labels\.csv: its names match no image of {folder}: .* such as four\.webp"
    with pytest.raises(UserError, match=said + r" \(x1: no such image in [^:]*$"):
        load(folder)


def test_a_validation_list_of_all_photos_leaves_none_to_train_on(folder):
    (folder / "val.txt").write_text("one\nsub/two\nsub/deeper/three\nfour\n")
    with pytest.raises(UserError, match=r"^data\.val_list=.*val\.txt: names all images of .*: leave some to train on"):
        load(folder, val_list="val.txt")


@pytest.mark.parametrize("root", ["..", "sub"])
def test_a_root_one_folder_too_high_or_low_is_told_where_the_labels_are(folder, root):
    with pytest.raises(UserError, match=rf"labels\.csv: no such labels file: set data\.root={folder}, where it is"):
        load((folder / root).resolve(), cache=folder.parent / "elsewhere" / "cache")
    with pytest.raises(UserError, match=r"photos: labels are read from .*: set data\.labels"):
        load(folder, labels=".")


@pytest.mark.parametrize("table", ["image,crack\none,1\nfour,0\n", "image,label\none,crack\nfour,background\n"])
def test_photos_of_one_class_and_of_none_can_be_told_apart(folder, table):
    (folder / "labels.csv").write_text(table)
    assert names(load(folder).train) == ["one"]
    assert "data.negatives=true" in {problem.name: problem.why for problem in load(folder).problems}["four"]
    data = load(folder, negatives=True)
    assert {photo.name: photo.labels for photo in data.train.photos.photos} == {"four": (), "one": (1,)}
    assert "four" not in {problem.name for problem in data.problems} and not data.notes


def test_given_classes_fix_names_and_order(folder):
    data = load(folder, classes=["dog", "cat", "horse"])
    assert data.classes.names == ("background", "dog", "cat", "horse")
    assert data.train.photos.photos[0].labels == (2,)
    with pytest.raises(UserError, match=r"labels\.csv: .*class cat"):
        load(folder, classes=["dog", "horse"])
