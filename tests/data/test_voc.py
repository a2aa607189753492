from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_sets import mask, photo

from pmm_ray.data.images import read_label
from pmm_ray.data.load import load_dataset
from pmm_ray.data.voc import VOC_CLASSES
from pmm_ray.errors import UserError
from pmm_ray.files import write_atomic

TRAIN = "ImageSets/Segmentation/train.txt"


def load(folder, **changes):
    settings = {"kind": "voc", "root": folder, "labels": "labels.json", "cache": folder.parent / "cache"}
    return load_dataset(**(settings | changes))


def names(split):
    return [photo.name for photo in split.photos.photos]


def whys(dataset):
    return {problem.name: problem.why for problem in dataset.problems}


def relist(root, *lines, path=TRAIN):
    (root / path).write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_a_voc_folder_gives_photos_labels_classes_and_truth(voc_root):
    data = load(voc_root)
    assert names(data.train) == ["a", "b", "c"]
    assert [photo.labels for photo in data.train.photos.photos] == [(1,), (2, 15), (20,)]
    assert data.classes.names == ("background", *VOC_CLASSES)
    assert data.classes.palette[15] == (192, 128, 128)
    assert names(data.val) == ["v"]
    assert read_label(data.train.truth.masks["b"]).max() == 2
    assert data.train.truth.protocol == "SegmentationClass"
    assert data.name == "set"
    assert data.problems == ()


def test_paths_are_absolute_even_from_a_relative_root(voc_root, monkeypatch):
    monkeypatch.chdir(voc_root.parent)
    data = load_dataset(kind="voc", root="set", labels="labels.json", cache=voc_root.parent / "cache")
    images = [Path(photo.image) for photo in data.train.photos.photos]
    assert all(image.is_absolute() and image.exists() for image in images)
    assert all(Path(path).is_absolute() for path in data.train.truth.masks.values())


def test_photos_are_the_same_with_and_without_ground_truth(voc_root):
    with_truth = load(voc_root)
    without = load(voc_root, masks=None)
    assert without.train.truth is None and without.val.truth is None
    assert without.train.photos == with_truth.train.photos
    mask(voc_root / "SegmentationClass" / "a.png", np.zeros((6, 8)))
    changed = load(voc_root)
    assert changed.train.photos == with_truth.train.photos
    assert changed.train.truth.fingerprint != with_truth.train.truth.fingerprint
    shutil.rmtree(voc_root / "SegmentationClass")
    removed = load(voc_root)
    assert removed.train.photos == with_truth.train.photos
    assert removed.train.truth is None
    assert "no ground truth" in whys(removed)["SegmentationClass"]


def test_the_fingerprint_follows_pixels_labels_order_and_classes_but_not_the_place(voc_root):
    first = load(voc_root).train.photos.fingerprint
    shutil.copytree(voc_root, voc_root.parent / "elsewhere")
    assert load(voc_root.parent / "elsewhere").train.photos.fingerprint == first
    seen = {first}
    photo(voc_root / "JPEGImages" / "a.jpg", value=200)
    seen.add(load(voc_root).train.photos.fingerprint)
    (voc_root / "labels.json").write_text(json.dumps({"a": [2], "b": [2, 15], "c": [20], "v": [15]}))
    seen.add(load(voc_root).train.photos.fingerprint)
    relist(voc_root, "c", "b", "a")
    seen.add(load(voc_root).train.photos.fingerprint)
    seen.add(load(voc_root, classes=[f"class {n}" for n in range(20)]).train.photos.fingerprint)
    assert len(seen) == 5


def test_the_peers_lists_of_image_and_mask_are_read(voc_root):
    relist(
        voc_root,
        "/JPEGImages/a.jpg /SegmentationClassAug/a.png",
        "JPEGImages/b.jpg SegmentationClassAug/b.png",
        "/JPEGImages/c.jpg",
        "",
    )
    assert names(load(voc_root).train) == ["a", "b", "c"]


def test_lists_with_suffixes_windows_line_ends_and_a_byte_order_mark_are_read(voc_root):
    (voc_root / TRAIN).write_bytes(b"\xef\xbb\xbfa.jpg\r\nb\r\n\r\n  c.JPG  \r\n")
    data = load(voc_root)
    assert names(data.train) == ["a", "b", "c"]
    assert data.problems == ()


@pytest.mark.parametrize(
    "line",
    [
        "../outside",
        "../outside.jpg",
        "/JPEGImages/../../outside.jpg",
        "/JPEGImages/../../outside.jpg /x/y.png",
        "{outside}",
        "a/../../../outside",
    ],
)
def test_a_list_cannot_lead_out_of_the_data_set(voc_root, line):
    outside = photo(voc_root.parent / "outside.jpg")
    line = line.format(outside=outside)
    relist(voc_root, line, "a")
    data = load(voc_root)
    assert names(data.train) == ["a"]
    assert len(data.problems) == 1


def test_odd_file_names_work_throughout(voc_root):
    odd = ["with space", "über.猫.v2", "#hash", "quote'\"", "UPPER", "sub/deep"]
    for name in odd:
        photo(voc_root / "JPEGImages" / (name + (".JPG" if name == "UPPER" else ".jpg")))
        mask(voc_root / "SegmentationClass" / f"{name}.png", np.zeros((6, 8)))
    relist(voc_root, *odd)
    (voc_root / "labels.json").write_text(json.dumps({name: [1] for name in [*odd, "v"]}))
    data = load(voc_root)
    assert names(data.train) == odd
    assert set(data.train.truth.masks) == set(odd)
    assert data.problems == ()


def test_two_images_of_one_stem_are_two_photos_when_the_list_says_which(voc_root):
    photo(voc_root / "JPEGImages" / "a.png")
    mask(voc_root / "SegmentationClass" / "a.png.png", np.zeros((6, 8)))
    relist(voc_root, "a.jpg", "a.png", "a", "b")
    (voc_root / "labels.json").write_text(json.dumps({"a.jpg": [1], "a.png": [2], "b": [3], "v": [1]}))
    data = load(voc_root)
    assert [(photo.name, photo.labels) for photo in data.train.photos.photos] == [
        ("a.jpg", (1,)),
        ("a.png", (2,)),
        ("b", (3,)),
    ]
    assert "a.jpg, a.png" in whys(data)["a"]
    assert data.train.truth.masks["a.png"].endswith("a.png.png")


def test_a_missing_image_is_left_out_and_listed(voc_root):
    relist(voc_root, "a", "gone", "c")
    data = load(voc_root)
    assert names(data.train) == ["a", "c"]
    assert "no such image" in whys(data)["gone"]


def test_a_repeated_name_is_used_once_and_listed(voc_root):
    relist(voc_root, "a", "b", "a", "a.jpg", "c")
    data = load(voc_root)
    assert names(data.train) == ["a", "b", "c"]
    assert "more than once" in whys(data)["a, a"]


def test_an_image_without_a_class_stays_out_of_training(voc_root):
    (voc_root / "labels.json").write_text(json.dumps({"a": [], "c": [3], "v": [1]}))
    data = load(voc_root)
    assert names(data.train) == ["c"]
    assert "is not in" in whys(data)["b"] and "data.negatives=true" in whys(data)["a"]


def test_an_image_that_is_labelled_as_having_no_class_may_be_trained_on(voc_root):
    (voc_root / "labels.json").write_text(json.dumps({"a": [], "c": [3], "v": [1]}))
    data = load(voc_root, negatives=True)
    assert [(photo.name, photo.labels) for photo in data.train.photos.photos] == [("a", ()), ("c", (3,))]
    assert "is not in" in whys(data)["b"]


def test_a_validation_image_without_a_class_is_evaluated_if_it_has_a_mask(voc_root):
    (voc_root / "labels.json").write_text(json.dumps({"a": [1]}))
    assert [(photo.name, photo.labels) for photo in load(voc_root).val.photos.photos] == [("v", ())]
    with pytest.raises(UserError, match=r"val\.txt: leaves no image"):
        load(voc_root, masks=None)


def test_labels_of_unknown_images_are_listed_with_the_reason_and_many_of_them_briefly(voc_root):
    labels = {"a": [1], "b": [1], "c": [1], "v": [1]} | {f"unknown{n}": [1] for n in range(50)}
    (voc_root / "labels.json").write_text(json.dumps(labels))
    problems = load(voc_root).problems
    assert [problem.name for problem in problems[:2]] == ["unknown0", "unknown1"]
    assert problems[0].why.startswith("no such image in ") and "labels.json" in problems[0].why
    assert problems[-1].name == "30 more" and len(problems) == 21


def test_a_split_of_which_nothing_is_left_says_why_of_its_own_images(voc_root):
    relist(voc_root, "a", "b", "c", "gone")
    (voc_root / "labels.json").write_text(json.dumps({"a": [1], "b": [1], "c": [1], "v": []}))
    with pytest.raises(UserError, match=r"val\.txt: leaves no image to use for val; v: has no class in"):
        load(voc_root, masks=None)


@pytest.mark.parametrize("root", ["", "set/JPEGImages"])
def test_a_root_one_folder_too_high_or_low_is_told_where_the_images_are(voc_root, root):
    with pytest.raises(UserError, match=rf"JPEGImages: no such folder: set data\.root={voc_root}, where it is"):
        load(voc_root.parent / root, cache=voc_root.parent / "elsewhere" / "cache")


def test_images_without_a_mask_are_trained_on_but_not_evaluated(voc_root):
    (voc_root / "SegmentationClass" / "b.png").unlink()
    data = load(voc_root)
    assert names(data.train) == ["a", "b", "c"]
    assert list(data.train.truth.masks) == ["a", "c"]
    assert "1 of 3 train images" in whys(data)["b"]


def test_a_broken_image_is_no_matter_of_loading(voc_root):
    (voc_root / "JPEGImages" / "b.jpg").write_bytes(b"broken")
    assert names(load(voc_root).train) == ["a", "b", "c"]


def test_a_name_that_a_store_in_the_image_folder_has_too_is_still_the_photos(voc_root):
    photo(voc_root / "JPEGImages" / "sub" / "z.jpg")
    relist(voc_root, "sub/z")
    (voc_root / "labels.json").write_text(json.dumps({"z": [1]}))
    store = voc_root / "JPEGImages" / "runs"
    photo(store / "crops" / "z.jpg")
    assert names(load(voc_root, val_list=None, cache=store / "digests").train) == ["sub/z"]


def test_a_limit_keeps_the_first_images_that_can_be_used(voc_root):
    relist(voc_root, "gone", "a", "b", "c")
    assert names(load(voc_root, limit=2).train) == ["a", "b"]


def test_labels_from_the_xml_annotations(voc_root):
    folder = voc_root / "Annotations"
    folder.mkdir()

    def annotate(name, *objects):
        parts = "<part><name>head</name></part>"
        listed = "".join(f"<object><name>{o}</name><difficult>1</difficult>{parts}</object>" for o in objects)
        (folder / f"{name}.xml").write_text(f"<annotation><filename>{name}.jpg</filename>{listed}</annotation>")

    annotate("a", "dog", "cat", "dog")
    annotate("b", "dgo")
    (folder / "c.xml").write_text("<annotation>")
    annotate("v", "person")
    data = load(voc_root, labels=None)
    assert [(photo.name, photo.labels) for photo in data.train.photos.photos] == [("a", (8, 12))]
    assert "did you mean dog?" in whys(data)["b"]
    assert "c.xml cannot be read" in whys(data)["c"]
    annotate("c")
    assert "no object" in whys(load(voc_root, labels=None))["c"]
    (folder / "c.xml").unlink()
    assert "does not exist" in whys(load(voc_root, labels=None))["c"]


@pytest.mark.parametrize("encoding", ["gbk", "foo", "utf-16"])
def test_annotations_in_an_encoding_that_cannot_be_read_cost_their_image_only(voc_root, encoding):
    text = "<annotation><object><name>dog</name></object></annotation>"
    for name in ("a", "b", "c", "v"):
        write_atomic(voc_root / "Annotations" / f"{name}.xml", text)
    write_atomic(voc_root / "Annotations" / "b.xml", f'<?xml version="1.0" encoding="{encoding}"?>{text}')
    data = load(voc_root, labels=None)
    assert names(data.train) == ["a", "c"]
    assert "b.xml cannot be read" in whys(data)["b"] and "UTF-8" in whys(data)["b"]


def test_labels_from_the_peers_npy(voc_root):
    ids = {"a": [1], "b": [2, 15], "c": [20], "v": [15]}
    np.save(voc_root / "cls_labels.npy", {n: np.isin(np.arange(1, 21), i).astype(np.float32) for n, i in ids.items()})
    assert load(voc_root, labels="cls_labels.npy").train.photos == load(voc_root).train.photos


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"root": Path("/no/such/place")}, r"/no/such/place: no such folder: set data\.root"),
        ({"images": "Images"}, r"Images: no such folder: set data\.images"),
        ({"train_list": "absent.txt"}, r"absent\.txt: no such list: set data\.train_list"),
        ({"val_list": "absent.txt"}, r"absent\.txt: no such list: set data\.val_list"),
        ({"train_list": "empty.txt"}, r"empty\.txt: is empty"),
        ({"train_list": "gone.txt"}, r"gone\.txt: leaves no image to use for train; x: no such image"),
        ({"train_list": None}, r"data\.train_list"),
        ({"labels": "absent.json"}, r"absent\.json: no such labels file: set data\.labels"),
        ({"labels": None}, r"Annotations: no such folder of XML annotations: set data\.labels"),
        ({"classes": ["person", "animal"]}, r"b has class 15.*1\.\.2"),
        ({"kind": "vok"}, r"data\.kind"),
    ],
)
def test_what_stops_a_run_is_one_line_with_file_and_mend(voc_root, changes, message):
    (voc_root / "empty.txt").write_text("\n \n")
    (voc_root / "gone.txt").write_text("x\ny\n")
    with pytest.raises(UserError, match=message) as caught:
        load(voc_root, **changes)
    assert "\n" not in str(caught.value)


def test_real_photos_as_20_classes_and_as_4_groups(shared, tmp_path):
    root = shared / "minivoc"
    twenty = load(root, labels="image_labels.json", cache=tmp_path)
    four = load(
        root,
        labels="image_labels4.json",
        masks="SegmentationClass4",
        classes=["person", "animal", "vehicle", "indoor"],
        cache=tmp_path,
    )
    for data in (twenty, four):
        assert (len(data.train.photos), len(data.val.photos)) == (233, 115)
        assert len(data.train.truth.masks) == 233
        assert data.problems == ()
    assert len(twenty.classes) == 21 and len(four.classes) == 5
    assert twenty.train.photos.fingerprint != four.train.photos.fingerprint
    for data in (twenty, four):
        for shot in data.train.photos.photos[::40]:
            ids = set(np.unique(read_label(data.train.truth.masks[shot.name]))) - {0, 255}
            assert ids <= set(shot.labels)
            with Image.open(shot.image) as image:
                assert max(image.size) <= 320
