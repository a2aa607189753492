from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pmm_ray.masks.cam import as_cam, by_class, divided_by_peak, normalise, threshold_mask

finite = hnp.arrays(
    np.float32, hnp.array_shapes(min_dims=3, max_dims=3, max_side=4), elements=st.floats(-1e6, 1e6, width=32)
)


def test_normalise_hand_worked():
    cam = np.array([[[-1.0, 0.0], [1.0, 3.0]], [[2.0, 2.0], [4.0, 3.0]]])
    expected = [[[0, 0.25], [0.5, 1]], [[0, 0], [1, 0.5]]]
    result = normalise(cam)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, np.array(expected, np.float32))


def test_normalise_makes_a_constant_channel_zero():
    cam = np.stack([np.full((2, 3), 7.0), np.zeros((2, 3)), np.full((2, 3), -1e30)])
    np.testing.assert_array_equal(normalise(cam), 0)


def test_normalise_survives_the_widest_span_of_float32():
    big = np.finfo(np.float32).max
    np.testing.assert_array_equal(normalise(np.array([[[-big, 0, big]]], np.float32)), [[[0, 0.5, 1]]])


@given(finite)
def test_normalise_is_idempotent_and_within_bounds(cam):
    once = normalise(cam)
    assert once.min() >= 0
    assert once.max() <= 1
    np.testing.assert_array_equal(normalise(once), once)


@given(finite)
def test_normalise_leaves_its_argument_alone(cam):
    before = cam.copy()
    normalise(cam)
    np.testing.assert_array_equal(cam, before)


@pytest.mark.parametrize("shape", [(0, 4, 5), (3, 0, 5)])
def test_empty_cams_are_cams(shape):
    assert normalise(np.zeros(shape)).shape == shape
    assert as_cam(np.zeros(shape)).shape == shape


@pytest.mark.parametrize(
    ("cam", "message"),
    [
        (np.zeros((4, 5)), r"\(K, H, W\)"),
        (np.full((1, 2, 2), np.nan), "NaN"),
        (np.full((1, 2, 2), np.inf), "NaN or infinite"),
        (np.full((1, 2, 2), 1.5), r"\[0, 1\], got 1.5 .. 1.5"),
        (np.full((1, 2, 2), -0.5), r"\[0, 1\]"),
        (np.array([[["a"]]]), "real numbers"),
    ],
)
def test_a_bad_cam_is_refused_in_one_line(cam, message):
    with pytest.raises(ValueError, match=message) as caught:
        as_cam(cam)
    assert "\n" not in str(caught.value)


def test_rounding_beyond_the_bounds_is_clipped():
    np.testing.assert_array_equal(as_cam(np.array([[[-1e-6, 1 + 1e-6]]])), [[[0, 1]]])


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1], "as many class ids"),
        ([0, 1], "1..254"),
        ([1, 255], "1..254"),
        ([1.0, 2.0], "integers"),
        ([4, 4], "differ"),
    ],
)
def test_bad_class_ids_are_refused(ids, message):
    with pytest.raises(ValueError, match=message):
        by_class(np.zeros((2, 3, 3)), ids)


def test_channels_are_ordered_by_id():
    cam = np.stack([np.full((1, 1), 0.9), np.full((1, 1), 0.1)])
    scores, labels = by_class(cam, [7, 2])
    np.testing.assert_array_equal(labels, [0, 2, 7])
    np.testing.assert_allclose(scores[:, 0, 0], [0.1, 0.9], rtol=1e-6)


def test_threshold_mask_hand_worked():
    cam = np.array([[[0.5, 0.1, 0.3, 0.25]], [[0.25, 0.2, 0.6, 0.0]]])
    mask = threshold_mask(cam, [9, 4], threshold=0.25)
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, [[9, 0, 4, 0]])


def test_threshold_mask_gives_equal_classes_to_the_smallest_id():
    np.testing.assert_array_equal(threshold_mask(np.full((2, 1, 1), 0.5), [9, 4], threshold=0.2), [[4]])


def test_threshold_mask_without_classes_is_background():
    np.testing.assert_array_equal(threshold_mask(np.zeros((0, 2, 3)), [], threshold=0.2), np.zeros((2, 3)))


def test_divided_by_peak_hand_worked():
    cam = np.array([[[1.0, 0.0], [4.0, 2.0]], [[0.0, 0.0], [0.0, 0.0]], [[0.0, 0.5], [0.25, 0.5]]])
    result = divided_by_peak(cam)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, [[[0.25, 0], [1, 0.5]], [[0, 0], [0, 0]], [[0, 1], [0.5, 1]]])
    assert divided_by_peak(np.zeros((0, 2, 2))).shape == (0, 2, 2)
    for wrong in (-1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match="negative values"):
            divided_by_peak(np.full((1, 1, 2), wrong))
