"""Trimaps by hand."""

from __future__ import annotations

import numpy as np
import pytest

from pmm_ray.masks.cam import by_class
from pmm_ray.masks.crf import DenseCRF
from pmm_ray.masks.reliable import reliable_labels
from pmm_ray.masks.steps import finish
from pmm_ray.masks.trimap import cam_trimap, certain_shares, crf_trimap_steps

LABELS = np.array([0, 3, 7], np.uint8)


def test_a_cam_trimap_by_hand():
    x = np.array([[[0.9, 0.5, 0.3, 0.04, 0.0, 0.6]], [[0.2, 0.7, 0.2, 0.04, 0.0, 0.6]]], np.float32)
    #                 3: surest, 7: surest, no one, both below, both below, equal: the first
    np.testing.assert_array_equal(cam_trimap(x, LABELS, high=0.45, low=0.05), [[3, 7, 255, 0, 0, 3]])
    # at the thresholds themselves nothing is certain
    edge = np.array([[[0.45, 0.05]], [[0.0, 0.0]]], np.float32)
    np.testing.assert_array_equal(
        cam_trimap(edge, LABELS, high=float(edge[0, 0, 0]), low=float(edge[0, 0, 1])), [[255, 255]]
    )


def test_a_trimap_of_no_class_is_background():
    nothing = np.zeros((0, 2, 3), np.float32)
    assert not cam_trimap(nothing, LABELS[:1], high=0.5, low=0.1).any()
    with pytest.raises(StopIteration) as end:
        next(crf_trimap_steps(nothing, LABELS[:1], foreground_alpha=4, background_alpha=32, min_probability=0.8))
    assert end.value.value.shape == (2, 3) and not end.value.value.any()


def test_thresholds_that_cross_are_refused():
    with pytest.raises(ValueError, match=r"low 0\.6 and high 0\.5"):
        cam_trimap(np.zeros((2, 1, 1), np.float32), LABELS, high=0.5, low=0.6)


def test_shares_count_the_certain_pixels_of_each_label():
    trimap = np.array([[0, 3, 3, 255], [0, 0, 255, 255]], np.uint8)
    assert certain_shares(trimap, LABELS).tolist() == [3 / 8, 2 / 8, 0]


@pytest.mark.parametrize("classes", [1, 2])
def test_a_trimap_of_two_crfs_by_hand(classes, no_crf):
    x = np.array([[[0.05, 0.3, 0.5, 0.6, 0.9, 0.0]], [[0.0, 0.0, 0.0, 0.0, 0.0, 0.9]]], np.float32)[:classes]
    # alpha 2 leaves background the scores 0.9, 0.49, 0.25, 0.16, 0.01, alpha 8 leaves it 0.66, 0.058, 0.004, 0.001, 0:
    # background to both; only to the first, which makes no background; a class to both, with 0.67, 0.79, 0.99
    steps = crf_trimap_steps(x, LABELS[: classes + 1], foreground_alpha=2, background_alpha=8, min_probability=0.7)
    expected = [[0, 255, 255, 3, 3, 7 if classes == 2 else 0]]
    np.testing.assert_array_equal(finish(steps, no_crf((1, 6))), expected)


@pytest.mark.parametrize("classes", [1, 2])
def test_the_trimap_of_two_crfs_is_rrms_label_without_a_say_of_the_cam(photo, classes):
    image, inside = photo(24, 32)
    y, x = np.mgrid[:24, :32]
    spots = [np.exp(-((y - 12) ** 2 + (x - at) ** 2) / 90) for at in (6, 25)]
    cam = np.array(spots[:classes], np.float32)
    scores, labels = by_class(cam, [3, 7][:classes])
    steps = crf_trimap_steps(scores, labels, foreground_alpha=4, background_alpha=32, min_probability=0.8)
    crf = DenseCRF(image, preset="rrm_train")
    found = finish(steps, crf)
    # a CAM that is sure of everything leaves RRM the CRFs' labels
    sure = {"min_background": 0.0, "min_score": 0.0, "top_share": 1.0}
    labels_of_rrm = reliable_labels(image, cam, [3, 7][:classes], crf=crf, **sure)
    agreed = labels_of_rrm != 255
    assert agreed.any() and (found[agreed] == labels_of_rrm[agreed]).mean() > 0.999
    assert {*np.unique(found)} <= {0, *labels.tolist(), 255}
    assert (found[inside] == 3).mean() > 0.5
