from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pmm_ray.metrics import confusion, iou, near_outlines, scores

NAMES = ["background", "cat", "dog"]
masks = hnp.array_shapes(min_dims=2, max_dims=2, max_side=6).flatmap(
    lambda shape: st.tuples(*[hnp.arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 2, 255]))] * 2)
)


def test_confusion_hand_worked():
    truth = np.array([[0, 0, 1, 1], [2, 2, 255, 255]], np.uint8)
    pred = np.array([[0, 1, 1, 255], [2, 0, 2, 255]], np.uint8)
    matrix = confusion(pred, truth, num_classes=3)
    assert matrix.dtype == np.int64
    np.testing.assert_array_equal(matrix, [[1, 1, 0, 0], [0, 1, 0, 1], [1, 0, 1, 0]])


def test_scores_hand_worked():
    # IoU: 1 / (2 + 2 - 1), 1 / (2 + 2 - 1) with one of cat's pixels undecided, 1 / (2 + 1 - 1).
    matrix = [[1, 1, 0, 0], [0, 1, 0, 1], [1, 0, 1, 0]]
    result = scores(matrix, NAMES, [0, 9, 2], min_images=8)
    assert result["iou"] == pytest.approx({"background": 1 / 3, "cat": 1 / 3, "dog": 1 / 2})
    assert result["miou"] == pytest.approx(7 / 18)
    assert result["miou_frequent"] == pytest.approx(1 / 3)
    assert result["accuracy"] == pytest.approx(3 / 6)


def test_undecided_pixels_never_raise_a_score():
    truth = np.array([[0, 0, 1, 1]], np.uint8)
    right_half = scores(confusion(np.array([[0, 255, 1, 255]]), truth, num_classes=2), NAMES[:2])
    assert right_half["miou"] == 0.5
    assert right_half["accuracy"] == 0.5


def test_a_class_that_the_truth_does_not_hold_is_left_out_even_if_predicted():
    truth = np.array([[0, 0, 1, 255]], np.uint8)
    pred = np.array([[0, 2, 1, 2]], np.uint8)
    result = scores(confusion(pred, truth, num_classes=3), NAMES, [4, 8, 8])
    assert result["iou"]["dog"] is None
    assert result["miou"] == pytest.approx((0.5 + 1) / 2)
    assert result["miou_frequent"] == result["miou"]


def test_the_background_is_always_frequent_and_no_counts_give_no_frequent_mean():
    matrix = np.diag([5, 5, 5])
    assert scores(matrix, NAMES, [0, 0, 0])["miou_frequent"] == 1
    assert scores(matrix, NAMES)["miou_frequent"] is None


def test_without_counted_pixels_every_figure_is_none():
    empty = confusion(np.zeros((0, 4), np.uint8), np.zeros((0, 4), np.uint8), num_classes=3)
    result = scores(empty, NAMES, [1, 9, 9])
    assert result == {
        "miou": None,
        "miou_frequent": None,
        "accuracy": None,
        "iou": {"background": None, "cat": None, "dog": None},
    }
    assert json.loads(json.dumps(result)) == result


def slow_iou(pred, truth, label):
    both = either = held = 0
    for p, t in zip(pred.ravel().tolist(), truth.ravel().tolist(), strict=True):
        if t == 255:
            continue
        held += t == label
        both += p == t == label
        either += label in (p, t)
    return both / either if held else math.nan


@given(masks)
def test_iou_agrees_with_counting_pixel_by_pixel(pair):
    pred, truth = pair
    expected = [slow_iou(pred, truth, label) for label in range(3)]
    np.testing.assert_allclose(iou(confusion(pred, truth, num_classes=3)), expected)


@given(masks)
def test_every_counted_pixel_is_in_the_matrix_once(pair):
    pred, truth = pair
    matrix = confusion(pred, truth, num_classes=3)
    assert matrix.sum() == (truth != 255).sum()
    np.testing.assert_array_equal(matrix.sum(1), [(truth == label).sum() for label in range(3)])


@given(masks, masks)
def test_the_matrix_of_a_set_is_the_sum_over_its_images(first, second):
    both = [np.concatenate([a.ravel(), b.ravel()])[None] for a, b in zip(first, second, strict=True)]
    total = confusion(*first, num_classes=3) + confusion(*second, num_classes=3)
    np.testing.assert_array_equal(total, confusion(*both, num_classes=3))


@given(masks)
def test_a_perfect_prediction_scores_one(pair):
    truth = pair[1]
    result = scores(confusion(truth, truth, num_classes=3), NAMES)
    assert result["miou"] in (1, None)
    assert result["accuracy"] in (1, None)


def test_large_ids_and_other_integer_types_are_counted():
    pred, truth = np.array([[80, 255]], np.int32), np.array([[80, 80]], np.uint16)
    matrix = confusion(pred, truth, num_classes=81)
    assert matrix[80, 80] == 1
    assert matrix[80, 81] == 1


def test_sizes_that_differ_are_both_named():
    with pytest.raises(ValueError, match="the prediction is 2 x 3 pixels, its ground truth 3 x 2"):
        confusion(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8), num_classes=2)


@pytest.mark.parametrize(
    ("pred", "truth", "message"),
    [
        ([[3]], [[0]], r"the prediction holds id 3; ids must be 0..2 or 255"),
        ([[0]], [[7]], r"the ground truth holds id 7"),
        ([[-1]], [[0]], r"the prediction holds id -1"),
        ([[9]], [[255]], r"the prediction holds id 9"),
        ([[0.0]], [[0]], "must hold integers"),
    ],
)
def test_a_class_that_does_not_exist_is_refused(pred, truth, message):
    with pytest.raises(ValueError, match=message):
        confusion(np.array(pred), np.array(truth), num_classes=3)


def test_parts_that_do_not_fit_together_are_refused():
    with pytest.raises(ValueError, match="as many different names"):
        scores(np.eye(3), ["a", "b"])
    with pytest.raises(ValueError, match="as many different names"):
        scores(np.eye(3), ["a", "b", "b"])
    with pytest.raises(ValueError, match="as many image counts"):
        scores(np.eye(3), NAMES, [1, 2])
    with pytest.raises(ValueError, match=r"\(C, C\) or \(C, C \+ 1\)"):
        iou(np.zeros((3, 5)))


def test_the_band_along_outlines_by_hand():
    # 6 x 8 has a diagonal of 10: shares are tenths of pixels
    truth = np.zeros((6, 8), np.uint8)
    truth[:, 4:] = 1
    narrow = near_outlines(truth, width=0.1)
    np.testing.assert_array_equal(narrow, np.array([[255, 255, 255, 0, 1, 255, 255, 255]] * 6))
    np.testing.assert_array_equal(near_outlines(truth, width=0.2), [[255, 255, 0, 0, 1, 1, 255, 255]] * 6)
    np.testing.assert_array_equal(near_outlines(truth, width=0.001), narrow)
    assert truth.max() == 1


def test_the_undecided_border_is_on_neither_side_of_an_outline():
    truth = np.array([[0, 0, 0, 255, 255, 1, 1, 1]] * 6, np.uint8)
    np.testing.assert_array_equal(near_outlines(truth, width=0.2), [[255, 0, 0, 255, 255, 1, 1, 255]] * 6)


def test_a_corner_has_a_round_band():
    truth = np.zeros((30, 40), np.uint8)
    truth[10:, 10:] = 2
    band = near_outlines(truth, width=0.1)  # 5 pixels of a diagonal of 50
    # the corner's own outline pixels are (9, 10) and (10, 9), not (9, 9), which meets nothing but its like
    assert band[9, 5] == 0 and band[9, 4] == 255 and band[9, 9] == 0 and band[5, 5] == 255
    assert band[14, 14] == 2 and band[15, 15] == 255


def test_a_photo_of_one_thing_has_no_outline_and_a_width_of_nothing_is_refused():
    assert (near_outlines(np.ones((3, 3), np.uint8), width=0.5) == 255).all()
    with pytest.raises(ValueError, match="width above 0"):
        near_outlines(np.ones((3, 3), np.uint8), width=0)


def test_a_mask_with_a_ragged_edge_loses_more_along_outlines_than_in_all():
    truth = np.zeros((40, 60), np.uint8)
    truth[10:30, 10:50] = 1
    ragged = truth.copy()
    ragged[8:10, 10:50:2] = 1
    found = [
        scores(confusion(ragged, one, num_classes=2), NAMES[:2])["miou"]
        for one in (truth, near_outlines(truth, width=0.03))
    ]
    # 40 wrong pixels; the band is 2 wide: 252 pixels of the background, 224 of the object
    band = [(252 - 40) / 252, 224 / 264]
    assert found[1] == pytest.approx(sum(band) / 2)
    assert found[0] == pytest.approx(((1600 - 40) / 1600 + 800 / 840) / 2)
