from __future__ import annotations

import numpy as np
import pytest

from pmm_ray.masks.baseline import baseline_mask
from pmm_ray.masks.crf import PRESETS, DenseCRF, crf_params


def test_hand_worked_without_smoothing(no_crf):
    # alpha 2: background scores (1 - max)^2 = 0.25, 0.64, 0.49, 0.36.
    cam = np.array([[[0.5, 0.2, 0.3, 0.4]], [[0.1, 0.0, 0.2, 0.35]]])
    mask = baseline_mask(np.zeros((1, 4, 3), np.uint8), cam, [6, 3], alpha=2, crf=no_crf((1, 4)))
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, [[6, 0, 0, 6]])


def test_hand_worked_with_one_class_whose_tie_is_background(no_crf):
    # alpha 1: background scores 0.25, 0.5, 0.5625
    image, cam = np.zeros((1, 3, 3), np.uint8), np.array([[[0.75, 0.5, 0.4375]]])
    np.testing.assert_array_equal(baseline_mask(image, cam, [6], alpha=1, crf=no_crf((1, 3))), [[6, 0, 0]])


def test_equal_classes_go_to_the_smallest_id(no_crf):
    mask = baseline_mask(np.zeros((1, 1, 3), np.uint8), np.full((2, 1, 1), 0.9), [6, 3], alpha=4, crf=no_crf((1, 1)))
    np.testing.assert_array_equal(mask, [[3]])


def test_agrees_with_all_pairs_mean_field_in_loops(photo, brute_crf):
    image, _ = photo(6, 6)
    cam = np.random.default_rng(3).random((2, 6, 6)) ** 2
    crf = brute_crf(
        image, crf_params("baseline", gaussian_sxy=1, gaussian_compat=1, bilateral_sxy=2, bilateral_compat=1)
    )
    expected = np.zeros((6, 6), np.uint8)
    scores = np.zeros((3, 6, 6))
    for y in range(6):
        for x in range(6):
            scores[0, y, x] = (1 - max(cam[0, y, x], cam[1, y, x])) ** 8
            scores[1:, y, x] = cam[:, y, x]
    probability = crf.multilabel(scores)
    for y in range(6):
        for x in range(6):
            expected[y, x] = (0, 5, 9)[max(range(3), key=lambda label: probability[label, y, x])]
    assert len(np.unique(expected)) > 2
    np.testing.assert_array_equal(baseline_mask(image, cam, [5, 9], alpha=8, crf=crf), expected)


def test_a_larger_alpha_leaves_less_background(photo):
    image, _ = photo(16, 16)
    cam = np.random.default_rng(0).random((2, 16, 16)) * 0.6
    share = [(baseline_mask(image, cam, [1, 2], alpha=alpha) == 0).mean() for alpha in (0.5, 1, 2, 4, 8, 32)]
    assert share == sorted(share, reverse=True)
    assert share[0] > share[-1]


def test_the_order_of_the_channels_does_not_matter(photo):
    image, _ = photo(16, 16)
    cam = np.random.default_rng(0).random((3, 16, 16))
    np.testing.assert_array_equal(
        baseline_mask(image, cam, [4, 1, 9], alpha=8), baseline_mask(image, cam[[1, 2, 0]], [1, 9, 4], alpha=8)
    )


def test_the_default_preset_is_the_baselines(photo):
    image, _ = photo(12, 12)
    cam = np.random.default_rng(0).random((2, 12, 12))
    by_default = baseline_mask(image, cam, [1, 2], alpha=4)
    np.testing.assert_array_equal(by_default, baseline_mask(image, cam, [1, 2], alpha=4, crf=PRESETS["baseline"]))
    ready = DenseCRF(image, preset="baseline")
    np.testing.assert_array_equal(by_default, baseline_mask(image, cam, [1, 2], alpha=4, crf=ready))


def test_without_classes_all_is_background():
    mask = baseline_mask(np.zeros((3, 4, 3), np.uint8), np.zeros((0, 3, 4)), [], alpha=8)
    np.testing.assert_array_equal(mask, np.zeros((3, 4)))


def test_bad_input_is_refused():
    image = np.zeros((3, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="the CAM is 4 x 3 pixels, its image 3 x 4"):
        baseline_mask(image, np.zeros((1, 4, 3)), [1], alpha=8)
    with pytest.raises(ValueError, match="alpha must be above 0"):
        baseline_mask(image, np.zeros((1, 3, 4)), [1], alpha=0)
