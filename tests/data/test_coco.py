from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from small_sets import photo

from pmm_ray.data.coco import COCO_CLASSES, draw_mask
from pmm_ray.data.images import read_label
from pmm_ray.data.load import load_dataset
from pmm_ray.errors import UserError

# pycocotools 2.0 with numpy 2: its own array type lacks a keyword.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword")


def box(top, left, bottom, right):
    return [[left, top, right, top, right, bottom, left, bottom]]


def runs(region):
    """Run lengths of a mask (H, W), column by column, zeros first: COCO's form of a crowd."""
    flat = region.ravel(order="F").astype(int)
    changes = np.flatnonzero(np.diff(np.concatenate([[0], flat]))).tolist()
    return {"counts": np.diff([0, *changes, flat.size]).tolist(), "size": list(region.shape)}


def annotation(number, image, category, segmentation, crowd=0):
    return {"id": number, "image_id": image, "category_id": category, "segmentation": segmentation, "iscrowd": crowd}


CATEGORIES = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}, {"id": 90, "name": "toothbrush"}]
CROWD = np.zeros((20, 30), bool)
CROWD[0:10, 20:30] = True


@pytest.fixture
def coco(tmp_path):
    root = tmp_path / "coco"
    images = [{"id": n, "file_name": f"{n:012d}.jpg", "height": 20, "width": 30} for n in (7, 3, 5, 9)]
    annotations = [
        annotation(1, 7, 18, box(2, 2, 6, 6)),  # the small dog first: it must still end up on top
        annotation(2, 7, 1, box(0, 0, 16, 16)),
        annotation(3, 7, 1, runs(CROWD), crowd=1),
        annotation(4, 3, 90, box(0, 0, 10, 10)),
        annotation(5, 9, 1, box(0, 0, 5, 5)),
    ]
    for title in ("train", "val"):
        for image in images[:3]:
            photo(root / title / image["file_name"], size=(20, 30))
        text = json.dumps({"images": images, "annotations": annotations, "categories": CATEGORIES})
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"{title}.json").write_text(text)
    return root


def load(root, **changes):
    settings = {"kind": "coco", "root": root, "images": "train", "val_images": "val", "cache": root.parent / "cache"}
    lists = {"train_list": "annotations/train.json", "val_list": "annotations/val.json"}
    return load_dataset(**(settings | lists | changes))


def names(split):
    return [photo.name for photo in split.photos.photos]


def test_there_are_80_classes_in_coco_s_order():
    assert len(set(COCO_CLASSES)) == 80
    assert [COCO_CLASSES.index(name) + 1 for name in ("person", "stop sign", "dog", "tv", "toothbrush")] == [
        1,
        12,
        17,
        63,
        80,
    ]


def test_labels_are_contiguous_ids_of_what_is_annotated(coco):
    data = load(coco)
    assert [(photo.name, photo.labels) for photo in data.train.photos.photos] == [
        ("000000000007", (1, 17)),
        ("000000000003", (80,)),
    ]
    assert len(data.classes) == 81


def test_an_image_without_annotation_is_left_out_of_training_but_evaluated(coco):
    data = load(coco)
    why = {problem.name: problem.why for problem in data.problems}
    assert "has no class" in why["000000000005"]
    assert "no such image" in why["000000000009.jpg"]
    assert names(data.val) == ["000000000007", "000000000003", "000000000005"]
    assert read_label(data.val.truth.masks["000000000005"]).max() == 0


def test_a_name_that_a_store_in_the_image_folder_has_too_is_still_the_photos(coco):
    (coco / "train" / "sub").mkdir()
    (coco / "train" / "000000000007.jpg").rename(coco / "train" / "sub" / "7.jpg")
    listed = coco / "annotations" / "train.json"
    listed.write_text(listed.read_text().replace("000000000007.jpg", "sub/7.jpg"))
    (coco / "labels.csv").write_text("image,label\n7,dog\n")
    store = coco / "train" / "runs"
    photo(store / "crops" / "7.jpg")
    data = load(coco, val_list=None, labels="labels.csv", cache=store / "digests")
    assert names(data.train) == ["sub/7"]


def test_masks_have_the_smaller_instance_on_top_and_crowds_ignored(coco):
    truth = load(coco).train.truth
    found = read_label(truth.masks["000000000007"])
    wanted = np.zeros((20, 30), np.uint8)
    wanted[CROWD] = 255
    wanted[0:16, 0:16] = 1
    wanted[2:6, 2:6] = 17
    np.testing.assert_array_equal(found, wanted)


def test_a_crowd_does_not_hide_an_instance():
    everywhere = runs(np.ones((8, 8), bool))
    found = draw_mask([(3, box(0, 0, 8, 4)), (255, everywhere)], height=8, width=8)
    assert (found[:, :4] == 3).all() and (found[:, 4:] == 255).all()


def test_compressed_run_lengths_and_several_polygons_are_drawn():
    region = np.zeros((9, 7), bool)
    region[2:5, 3:6] = True
    packed = coco_mask.encode(np.asfortranarray(region.astype(np.uint8)))
    packed["counts"] = packed["counts"].decode()
    np.testing.assert_array_equal(draw_mask([(4, packed)], height=9, width=7), region * 4)
    two = draw_mask([(4, box(0, 0, 2, 2) + box(6, 4, 8, 6))], height=9, width=7)
    assert two.sum() == 8 * 4 and two[0, 0] == two[7, 5] == 4


def test_degenerate_polygons_enclose_nothing():
    for segmentation in ([], [[1, 1]], [[0, 0, 5, 5]], [[1, 1, 2, 2, 3]]):
        assert draw_mask([(1, segmentation)], height=8, width=8).max() == 0


@pytest.mark.parametrize(
    "segmentation",
    [
        *({"counts": [10**9], "size": [8, 8]}, {"counts": [60], "size": [8, 8]}, {"counts": [100], "size": [10, 10]}),
        *({"counts": [64]}, {"size": [8, 8]}, [["a", 1, 2, 3, 4, 5]], 7),
    ],
)
def test_outlines_that_do_not_fit_the_image_are_refused(segmentation):
    with pytest.raises(UserError, match="annotation JSON"):
        draw_mask([(1, segmentation)], height=8, width=8)


def test_run_lengths_of_another_number_of_pixels_say_both_numbers():
    with pytest.raises(UserError, match="counts add up to 60 in an image of 64 pixels"):
        draw_mask([(1, {"counts": [60], "size": [8, 8]})], height=8, width=8)


@pytest.mark.parametrize("outline", [{}, {"segmentation": None}])
def test_boxes_alone_do_for_labels_and_not_for_masks(coco, outline):
    path = coco / "annotations" / "train.json"
    whole = json.loads(path.read_text())
    for item in whole["annotations"]:
        del item["segmentation"]
        item.update(outline)
    path.write_text(json.dumps(whole))
    data = load(coco, masks=None, val_list=None)
    assert [photo.labels for photo in data.train.photos.photos] == [(1, 17), (80,)]
    for _ in range(2):  # parsed, and remembered
        with pytest.raises(UserError, match=r"train\.json: no annotation has a 'segmentation'.*data\.masks=null"):
            load(coco, val_list=None)


def test_an_annotation_without_an_outline_costs_its_image_only(coco):
    path = coco / "annotations" / "train.json"
    whole = json.loads(path.read_text())
    del whole["annotations"][3]["segmentation"]
    path.write_text(json.dumps(whole))
    data = load(coco, val_list=None)
    assert {1, 17} < set(np.unique(read_label(data.train.truth.masks["000000000007"])))
    assert set(np.unique(read_label(data.train.truth.masks["000000000003"]))) == {255}
    assert any("1 of 5 annotations have no 'segmentation'" in problem.why for problem in data.problems)


def test_masks_are_drawn_only_when_asked_for_and_once(coco):
    truth = load(coco).train.truth
    folder = next((coco.parent / "cache" / "coco").iterdir()) / "masks"
    assert not folder.exists()
    assert (
        "000000000007" in truth.masks
        and len(truth.masks) == 2
        and list(truth.masks) == ["000000000007", "000000000003"]
    )
    assert not folder.exists()
    path = truth.masks["000000000007"]
    written = [file.stat().st_mtime_ns for file in folder.iterdir()]
    assert truth.masks["000000000007"] == path
    assert [file.stat().st_mtime_ns for file in folder.iterdir()] == written
    with pytest.raises(KeyError):
        truth.masks["000000000009"]


def test_truth_travels_to_other_processes(coco):
    truth = load(coco).train.truth
    again = pickle.loads(pickle.dumps(truth))
    assert again.masks["000000000003"] == truth.masks["000000000003"]
    assert again.fingerprint == truth.fingerprint


def test_without_masks_there_is_no_truth_and_the_photos_are_the_same(coco):
    data = load(coco, masks=None)
    assert data.train.truth is None
    assert data.train.photos == load(coco).train.photos


def test_a_second_load_does_not_parse_the_annotations_again(coco, monkeypatch):
    first = load(coco)
    monkeypatch.setattr("pmm_ray.data.coco._extract", lambda *_: pytest.fail("parsed again"))
    assert load(coco).train.photos == first.train.photos


def test_chosen_classes_leave_the_others_as_background(coco):
    data = load(coco, classes=["dog"])
    assert names(data.train) == ["000000000007"]
    assert set(np.unique(read_label(data.train.truth.masks["000000000007"]))) == {0, 1}
    with pytest.raises(UserError, match=r"data\.classes: .*dgo.*did you mean dog\?"):
        load(coco, classes=["dgo"])


def test_a_labels_file_may_replace_the_annotations(coco):
    (coco / "labels.json").write_text(json.dumps({"000000000007": ["cat"]}))
    data = load(coco, labels="labels.json")
    assert [photo.labels for photo in data.train.photos.photos] == [(16,)]


def test_labels_of_the_other_split_are_not_unknown_and_those_of_none_are_told_once(coco):
    photo(coco / "val" / "only_val.jpg", size=(20, 30))
    path = coco / "annotations" / "val.json"
    path.write_text(path.read_text().replace("000000000007.jpg", "only_val.jpg"))
    labels = {"000000000007": ["cat"], "only_val": ["dog"], "nowhere": ["dog"]}
    (coco / "labels.json").write_text(json.dumps(labels))
    told = [problem.name for problem in load(coco, labels="labels.json").problems if "labels.json" in problem.why]
    assert told.count("nowhere") == 1 and "only_val" not in told


def test_file_names_in_the_annotations_cannot_lead_elsewhere(coco):
    photo(coco / "outside.jpg")
    path = coco / "annotations" / "train.json"
    path.write_text(path.read_text().replace("000000000003.jpg", "../outside.jpg"))
    data = load(coco)
    assert names(data.train) == ["000000000007"]
    assert any(problem.name == "../outside.jpg" for problem in data.problems)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "not a COCO annotation file"),
        ("{}", "not a COCO annotation file .KeyError: 'categories'"),
        ("no", "not a COCO annotation file"),
        (
            '{"images": [], "annotations": [], "categories": [{"id": 1, "name": "widget"}]}',
            r"class widget.*set data\.classes|set data\.classes.*widget",
        ),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "dog"}]}', "at least one image"),
        (
            '{"images": [], "annotations": [{"image_id": 5, "category_id": 99}], "categories": []}',
            "an annotation of image 5 has category_id 99, which is not among its categories",
        ),
    ],
)
def test_a_json_that_is_no_annotation_file_is_named(coco, text, message):
    (coco / "annotations" / "train.json").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load(coco)
    assert "train.json" in str(caught.value)


def test_a_missing_json_names_the_setting(coco):
    with pytest.raises(UserError, match=r"absent\.json: .*set data\.train_list"):
        load(coco, train_list="absent.json")
