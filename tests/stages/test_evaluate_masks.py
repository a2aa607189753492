"""Scores of masks, by hand."""

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from stage_kit import context, draw, mask_artefact, scene

from pmm_ray.data.dataset import Photo, Photos, Truth
from pmm_ray.errors import UserError
from pmm_ray.stages.confusion_rows import cells, set_scores, total, with_truth
from pmm_ray.stages.evaluate_masks import _compare, evaluate_masks
from pmm_ray.stages.mask_files import area_shares, mask_errors, mask_facts, mask_paths


@pytest.mark.ray
def test_scores_by_hand_with_missing_masks_and_wrong_sizes_listed(tmp_path, ray_session):
    # 40 x 60 = 2400 pixels each. "a": class 1 is 10 x 10, half of it found. "b": all right, one row is 255 in truth.
    truth_a, truth_b = scene((1, 0, 0, 10, 10)), scene((2, 0, 0, 20, 20))
    photos, truth = draw(tmp_path, {"a": truth_a, "b": truth_b, "c": truth_a, "d": truth_a})
    ignored = truth_b.copy()
    ignored[39] = 255
    Image.fromarray(ignored).save(truth.masks["b"])
    blind = Photo("e", photos.photos[0].image, (1,))
    photos = Photos((*photos.photos, blind), photos.classes, "photos")
    wrong = truth_b.copy()
    wrong[39] = 2  # where it does not count
    made = {"a": scene((1, 0, 0, 5, 10)), "b": wrong, "d": truth_a[:20], "e": truth_a}
    masks = mask_artefact(tmp_path / "masks", made, errors={"c": "no CAM"})

    facts = evaluate_masks(
        photos=photos,
        masks=masks,
        folder="masks",
        truth=truth,
        min_images=1,
        protocol="set, truth, no CRF",
        context=context(tmp_path / "out"),
    )
    background = (2300 + 1940) / (2300 + 1940 + 50)
    assert facts["iou"] == {
        "background": pytest.approx(background),
        "red": pytest.approx(0.5),
        "blue": pytest.approx(1.0),
    }
    assert facts["miou"] == pytest.approx((background + 1.5) / 3)
    assert facts["accuracy"] == pytest.approx((2300 + 50 + 1940 + 400) / (2400 + 2340))
    assert facts["protocol"] == "set, truth, no CRF"
    assert (facts["images"], facts["without_truth"]) == (2, 1)
    why = dict(facts["failed"])
    assert why["c"] == "it has no mask: no CAM"
    assert "60 x 40" in why["d"]
    assert "60 x 20" in why["d"]

    table = pq.read_table(tmp_path / "out" / "scores.parquet").to_pylist()
    assert [row["name"] for row in table] == ["a", "b"]
    assert table[0]["area"] == [50]
    assert table[0]["height"] == 40
    seen = dict(zip(zip(table[0]["truth"], table[0]["predicted"], strict=True), table[0]["pixels"], strict=True))
    assert seen == {(0, 0): 2300, (1, 0): 50, (1, 1): 50}


def test_scores_along_outlines_by_hand(tmp_path):
    truth_mask = scene((1, 10, 10, 30, 50))
    photos, truth = draw(tmp_path, {"a": truth_mask})
    ragged = truth_mask.copy()
    ragged[8:10, 10:50:2] = 1
    given = {"photos": photos, "masks": mask_artefact(tmp_path / "masks", {"a": ragged}), "folder": "masks",
             "truth": truth, "min_images": 1, "protocol": "p"}  # fmt: skip
    facts = evaluate_masks(**given, boundary=0.03, context=context(tmp_path / "out", mask_workers=0))
    # as in test_metrics: 40 wrong pixels, 252 and 224 in the band
    assert facts["miou_boundary"] == pytest.approx(((252 - 40) / 252 + 224 / 264) / 2)
    assert facts["boundary"] == 0.03
    (row,) = pq.read_table(tmp_path / "out" / "scores.parquet").to_pylist()
    assert sum(row["band_pixels"]) == 252 + 224 and sum(row["pixels"]) == 2400
    plain = evaluate_masks(**given, context=context(tmp_path / "plain", mask_workers=0))
    assert plain["miou"] == facts["miou"] and "miou_boundary" not in plain


def test_sparse_counts_add_up_to_the_whole_matrix():
    rng = np.random.default_rng(0)
    pairs = [rng.integers(0, 3, (2, 10, 10), dtype=np.uint8) for _ in range(3)]
    matrix = total((cells(pred, truth, num_classes=3) for pred, truth in pairs), num_classes=3)
    for t in range(3):
        for p in range(3):
            assert matrix[t, p] == sum(((pred == p) & (truth == t)).sum() for pred, truth in pairs)


def test_frequent_classes_are_told_by_labels_or_without_any_by_the_truth(tmp_path):
    photos, _ = draw(tmp_path, {"a": scene((1, 0, 0, 9, 9)), "b": scene((1, 0, 0, 9, 9), (2, 20, 20, 30, 30))})
    rows = [cells(mask, mask, num_classes=3) for mask in (scene((1, 0, 0, 9, 9)), scene((2, 0, 0, 9, 9)))]
    rows[0] = cells(scene(), scene((1, 0, 0, 9, 9)), num_classes=3)
    matrix = total(rows, num_classes=3)
    labelled = set_scores(matrix, rows, photos, min_images=2)
    background = (2319 + 2319) / (2319 + 2400)
    assert labelled["miou_frequent"] == pytest.approx((background + 0) / 2)  # classes 0 and 1
    unlabelled = Photos(tuple(Photo(p.name, p.image, ()) for p in photos.photos), photos.classes, "x")
    assert set_scores(matrix, rows, unlabelled, min_images=2)["miou_frequent"] == pytest.approx(background)
    assert set_scores(matrix, rows, unlabelled, min_images=1)["miou_frequent"] == labelled["miou"]


def test_no_ground_truth_at_all_is_an_error_that_says_where_to_look(tmp_path):
    photos, _ = draw(tmp_path, {"a": scene()})
    with pytest.raises(UserError, match=r"none of the 1 images has ground truth in Seg.*data\.masks"):
        with_truth(photos, Truth({"b": "b.png"}, "SegmentationClass", "x"))


def test_a_class_that_does_not_exist_is_an_error_of_that_image(tmp_path):
    for name, value in (("mask", 0), ("truth", 7)):
        Image.fromarray(np.full((4, 4), value, np.uint8)).save(tmp_path / f"{name}.png")
    row = {"missing": None, "mask": str(tmp_path / "mask.png"), "truth": str(tmp_path / "truth.png")}
    with pytest.raises(UserError, match=r"truth\.png: the mask holds id 7; .* 0\.\.2 or 255: .*data\.classes"):
        _compare(row, num_classes=3, boundary=0.0)


def test_mask_files_of_the_images_that_worked(tmp_path):
    made = mask_artefact(tmp_path, {"a/b.c": scene()}, errors={"d": "why"})
    assert mask_paths(made) == {"a/b.c": tmp_path / "masks" / "a" / "b.c.png"}
    assert mask_paths(made, "raw") == {"a/b.c": tmp_path / "raw" / "a" / "b.c.png"}
    assert mask_paths(made)["a/b.c"].exists()
    assert mask_errors(made) == {"d": "why"}


def test_areas_count_every_pixel_once(tmp_path):
    mask = scene((1, 0, 0, 10, 10), (255, 20, 0, 21, 60))
    facts = mask_facts(mask)
    assert (facts["classes"], facts["area"]) == ([1], [100])
    assert (facts["background_area"], facts["ignored_area"]) == (2240, 60)
    assert mask_facts(mask, (1, 2))["area"] == [100, 0]
    photos, _ = draw(tmp_path, {"a": scene()})
    table = pq.read_table(mask_artefact(tmp_path / "m", {"a": mask}, errors={"b": "x"}).path / "rows.parquet")
    assert area_shares(table, photos) == {"background": 0.95726, "red": 0.04274, "blue": 0.0}


def test_the_masks_of_the_folder_that_was_asked_for_are_scored_and_each_row_is_its_own_images(tmp_path):
    scene_a = scene((1, 0, 0, 10, 10))
    photos, truth = draw(tmp_path, {"z": scene_a, "a": scene_a, "b": scene((2, 0, 0, 20, 20))})
    masks = mask_artefact(tmp_path / "masks", {"a": scene_a, "b": scene()}, errors={"z": "no CAM"})
    (masks.path / "raw").mkdir()
    for name, content in (("a", scene()), ("b", scene((2, 0, 0, 20, 20)))):
        Image.fromarray(content).save(masks.path / "raw" / f"{name}.png")
    given = {"photos": photos, "masks": masks, "truth": truth, "min_images": 1, "protocol": "p"}
    found = {
        folder: evaluate_masks(**given, folder=folder, context=context(tmp_path / f"of {folder}", mask_workers=0))[
            "iou"
        ]
        for folder in ("masks", "raw")
    }
    assert (found["masks"]["red"], found["masks"]["blue"]) == (1, 0)
    assert (found["raw"]["red"], found["raw"]["blue"]) == (0, 1)
    # the one before them has failed
    table = pq.read_table(tmp_path / "of masks" / "scores.parquet").to_pylist()
    assert [(row["name"], row["classes"]) for row in table] == [("a", [1]), ("b", [])]
