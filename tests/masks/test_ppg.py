from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmm_ray.masks.crf import PRESETS, DenseCRF, crf_params
from pmm_ray.masks.ppg import merge, proportional_pseudo_mask, proportions

BLACK = np.zeros((1, 4, 3), np.uint8)
# Without a CRF and with alpha 1 the foreground's probability is x itself.
CAM = np.array([[[1.0, 0.8, 0.6, 0.2]], [[0.0, 0.6, 0.9, 0.0]]])


class FixedForeground:
    """A CRF whose answer is given: the channels in ascending order of id."""

    def __init__(self, inside):
        self.inside = np.asarray(inside, np.float32)
        self.shape = self.inside.shape[1:]

    def binary(self, scores):
        return self.inside

    def multilabel(self, probs):
        raise AssertionError("PPG solves two-label problems only")


def test_hand_worked(no_crf):
    # m = [1 1 1 0] and [0 1 1 0]; sums 2.4 and 1.5; p = x / 3.4 and x / 2.5:
    # [0.294 0.235 0.176] against [0 0.24 0.36]: the smaller object wins the second pixel.
    mask = proportional_pseudo_mask(BLACK, CAM, [3, 7], cvs=False, alpha=1, crf=no_crf((1, 4)))
    assert mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, [[3, 7, 7, 0]])


def test_hand_worked_without_proportion(no_crf):
    mask = proportional_pseudo_mask(BLACK, CAM, [3, 7], cvs=False, proportion=False, alpha=1, crf=no_crf((1, 4)))
    np.testing.assert_array_equal(mask, [[3, 3, 7, 0]])


def test_hand_worked_eps(no_crf):
    # Sums 0.9 and 0.6. eps 1: 0.9 / 1.9 = 0.47 against 0.6 / 1.6 = 0.38; eps 0: both are exactly 1, the first wins.
    # A little more of the first class elsewhere decides for the second: 0.9 / 1.5 = 0.6 against 1.
    cam = np.array([[[0.9, 0.6]], [[0.6, 0.0]]])
    paint = {"cvs": False, "alpha": 1, "crf": no_crf((1, 2))}
    image = np.zeros((1, 2, 3), np.uint8)
    np.testing.assert_array_equal(proportional_pseudo_mask(image, cam, [1, 2], eps=0, **paint), [[2, 1]])
    np.testing.assert_array_equal(proportional_pseudo_mask(image, cam, [1, 2], eps=100, **paint), [[1, 1]])


def test_hand_worked_cvs_widens_the_foreground_but_not_the_proportion(no_crf):
    # f = {0.25, 0.75}: cv 0.5, and s 1 takes square roots: 0.5 and 0.866. With alpha 2 the first pixel has
    # (1 - 0.5)^2 = 0.25 < 0.5, inside; unsmoothed (1 - 0.25)^2 = 0.5625 > 0.25, outside.
    image, cam = np.zeros((1, 2, 3), np.uint8), np.array([[[0.25, 0.75]]])
    paint = {"s": 1, "t": 0.05, "alpha": 2, "crf": no_crf((1, 2))}
    np.testing.assert_array_equal(proportional_pseudo_mask(image, cam, [5], **paint), [[5, 5]])
    np.testing.assert_array_equal(proportional_pseudo_mask(image, cam, [5], cvs=False, **paint), [[0, 5]])
    shares = proportions(cam.astype(np.float32), np.ones((1, 1, 2), bool), eps=1)
    np.testing.assert_allclose(shares, [[[0.125, 0.375]]])


def test_without_cvs_there_is_no_gate(no_crf):
    image, cam = np.zeros((1, 2, 3), np.uint8), np.array([[[0.04, 1.0]]])
    paint = {"t": 0.05, "s": 0, "alpha": 100, "crf": no_crf((1, 2))}
    np.testing.assert_array_equal(proportional_pseudo_mask(image, cam, [5], cvs=False, **paint), [[5, 5]])
    np.testing.assert_array_equal(proportional_pseudo_mask(image, cam, [5], cvs=True, gate=False, **paint), [[5, 5]])
    np.testing.assert_array_equal(proportional_pseudo_mask(image, cam, [5], cvs=True, gate=True, **paint), [[0, 5]])


@pytest.mark.parametrize("proportion", [True, False])
@pytest.mark.parametrize(("tie", "expected"), [("background", [[9, 0, 0, 0]]), ("foreground", [[9, 4, 9, 0]])])
def test_the_tie_of_a_covered_pixel_without_score_follows_its_rule(tie, expected, proportion):
    # Pixels 1 and 2 are inside a class (1: both, 2: only 9), yet score 0 in it; pixel 3 is outside all.
    crf = FixedForeground([[[0, 1, 0, 0]], [[1, 1, 1, 0]]])
    cam = np.array([[[0.5, 0, 0, 0]], [[0, 0, 0.7, 0.3]]])
    mask = proportional_pseudo_mask(BLACK, cam, [9, 4], tie=tie, proportion=proportion, cvs=False, crf=crf)
    np.testing.assert_array_equal(mask, expected)


def test_equal_classes_go_to_the_smallest_id(no_crf):
    mask = proportional_pseudo_mask(BLACK, np.full((2, 1, 4), 0.9), [8, 2], cvs=False, crf=no_crf((1, 4)))
    np.testing.assert_array_equal(mask, [[2, 2, 2, 2]])


def test_a_probability_of_one_half_is_background():
    crf = FixedForeground([[[0.5, 0.5000001, 0.49, 1]]])
    mask = proportional_pseudo_mask(BLACK, np.ones((1, 1, 4)), [3], crf=crf)
    np.testing.assert_array_equal(mask, [[0, 3, 0, 3]])


def test_shares_of_a_class_without_score_are_zero_even_without_eps():
    x = np.array([[[0.0, 0.4]]], np.float32)
    np.testing.assert_array_equal(proportions(x, np.zeros((1, 1, 2), bool), eps=0), 0)
    np.testing.assert_array_equal(proportions(x, np.array([[[True, False]]]), eps=0), 0)


def test_shares_of_a_huge_object_are_exact():
    # 4 million pixels: float32 counting by ones would stop at 16.7 million, float16 at 65504.
    x = np.full((1, 2000, 2000), 0.25, np.float32)
    np.testing.assert_allclose(proportions(x, np.ones(x.shape, bool), eps=0), 0.25e-6, rtol=1e-6)


def slow_ppg(image, cam, ids, crf, *, s, t, alpha, gate, eps, proportion, tie):
    """PPG one pixel at a time. `cam`: nested lists of floats; ids ascending."""
    height, width = len(cam[0]), len(cam[0][0])
    everywhere = [(y, x) for y in range(height) for x in range(width)]
    inside, score = [], []
    for channel in cam:
        foreground = [channel[y][x] for y, x in everywhere if channel[y][x] > t]
        cv = 0.0
        if foreground:
            mean = sum(foreground) / len(foreground)
            cv = math.sqrt(sum((v - mean) ** 2 for v in foreground) / len(foreground)) / mean
        pair = np.zeros((1, 2, height, width))
        for y, x in everywhere:
            v = channel[y][x]
            v = 0.0 if gate and v < t else v ** (1 - s * cv)
            pair[0, :, y, x] = (1 - v) ** alpha, v
        probability = crf.binary(pair)[0]
        member = {(y, x) for y, x in everywhere if probability[y, x] > 0.5}
        area = eps + sum(channel[y][x] for y, x in member)
        inside.append(member)
        score.append({(y, x): channel[y][x] / area if proportion else channel[y][x] for y, x in member})
    mask = np.zeros((height, width), np.uint8)
    for y, x in everywhere:
        best, label = 0.0, 0
        for k, class_id in enumerate(ids):
            if (y, x) in inside[k]:
                first_resort = tie == "foreground" and label == 0
                if first_resort or score[k][y, x] > best:
                    best, label = score[k][y, x], class_id
        mask[y, x] = label
    return mask


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("proportion", [True, False])
@pytest.mark.parametrize("tie", ["background", "foreground"])
def test_agrees_with_the_loop_over_all_pixels_and_pairs(seed, proportion, tie, photo, brute_crf):
    rng = np.random.default_rng(seed)
    image, _ = photo(6, 7, seed)
    cam = rng.random((3, 6, 7)) ** 3
    cam[cam < 0.02] = 0
    # Weak kernels: the presets make one colour one label, and masks without edges would prove little.
    crf = brute_crf(image, crf_params("ppg", gaussian_sxy=1, gaussian_compat=1, bilateral_sxy=2, bilateral_compat=1))
    numbers = {"s": 0.3, "t": 0.05, "alpha": 3 + seed, "gate": seed % 2 == 0, "eps": float(seed % 3 > 0)}
    expected = slow_ppg(image, cam.tolist(), [2, 5, 9], crf, proportion=proportion, tie=tie, **numbers)
    mask = proportional_pseudo_mask(image, cam, [2, 5, 9], crf=crf, proportion=proportion, tie=tie, **numbers)
    assert len(np.unique(expected)) > 2
    np.testing.assert_array_equal(mask, expected)


@st.composite
def problems(draw):
    height, width = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    ids = draw(st.lists(st.integers(1, 254), unique=True, max_size=4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    image = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    cam = rng.random((len(ids), height, width)).astype(draw(st.sampled_from([np.float16, np.float32, np.float64])))
    # Coarse values make ties and zeros common.
    return image, np.round(cam * 4) / 4 if draw(st.booleans()) else cam, ids


options = st.fixed_dictionaries(
    {
        "s": st.floats(0, 2),
        "t": st.floats(0, 1),
        "alpha": st.floats(0.1, 40),
        "gate": st.booleans(),
        "cvs": st.booleans(),
        "proportion": st.booleans(),
        "eps": st.sampled_from([0.0, 1.0]),
        "tie": st.sampled_from(["background", "foreground"]),
    }
)


@settings(deadline=None, max_examples=60)
@given(problems(), options)
def test_the_mask_holds_background_and_given_classes_only(problem, option):
    image, cam, ids = problem
    mask = proportional_pseudo_mask(image, cam, ids, **option)
    assert mask.shape == image.shape[:2]
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) <= {0, *ids}


@settings(deadline=None, max_examples=40)
@given(problems(), options, st.randoms(use_true_random=False))
def test_the_order_of_the_channels_does_not_matter(problem, option, random):
    image, cam, ids = problem
    order = list(range(len(ids)))
    random.shuffle(order)
    shuffled = proportional_pseudo_mask(image, cam[order], [ids[k] for k in order], **option)
    np.testing.assert_array_equal(shuffled, proportional_pseudo_mask(image, cam, ids, **option))


@settings(deadline=None, max_examples=40)
@given(problems(), options)
def test_the_tie_rules_differ_only_where_the_score_is_zero(problem, option):
    image, cam, ids = problem
    background = proportional_pseudo_mask(image, cam, ids, **{**option, "tie": "background"})
    foreground = proportional_pseudo_mask(image, cam, ids, **{**option, "tie": "foreground"})
    differ = background != foreground
    assert (background[differ] == 0).all()
    for k, class_id in enumerate(ids):
        assert (cam[k][differ & (foreground == class_id)] == 0).all()


@settings(deadline=None, max_examples=40)
@given(problems(), options)
def test_arguments_are_left_alone_and_may_be_read_only(problem, option):
    image, cam, ids = problem
    copies = image.copy(), cam.copy(), list(ids)
    image.setflags(write=False)
    cam.setflags(write=False)
    proportional_pseudo_mask(image, cam, ids, **option)
    np.testing.assert_array_equal(image, copies[0])
    np.testing.assert_array_equal(cam, copies[1])
    assert ids == copies[2]


def test_one_class_needs_no_proportion(photo):
    image, _ = photo(16, 16)
    cam = np.random.default_rng(0).uniform(0.01, 1, (1, 16, 16))
    with_shares = proportional_pseudo_mask(image, cam, [1])
    np.testing.assert_array_equal(with_shares, proportional_pseudo_mask(image, cam, [1], proportion=False))


def test_the_crf_may_be_shared_named_or_given_by_constants(photo):
    image, _ = photo(16, 16)
    cam = np.random.default_rng(0).random((2, 16, 16))
    by_default = proportional_pseudo_mask(image, cam, [1, 2])
    for crf in ("ppg", PRESETS["ppg"], DenseCRF(image)):
        np.testing.assert_array_equal(proportional_pseudo_mask(image, cam, [1, 2], crf=crf), by_default)


def test_float16_cams_of_large_objects_give_the_mask_of_float32(photo):
    image, _ = photo(300, 300)
    wide = np.random.default_rng(0).uniform(0.3, 1, (1, 300, 300)).astype(np.float16)
    assert float(wide.sum(dtype=np.float64)) > 5e4
    settings_ = {"crf": "ppg", "s": 0.3, "t": 0.05}
    narrow_mask = proportional_pseudo_mask(image, wide, [1], **settings_)
    np.testing.assert_array_equal(
        narrow_mask, proportional_pseudo_mask(image, wide.astype(np.float32), [1], **settings_)
    )
    assert (narrow_mask == 1).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (7, 6)])
def test_any_size_of_a_constant_image_works(size):
    image = np.full((*size, 3), 128, np.uint8)
    np.testing.assert_array_equal(proportional_pseudo_mask(image, np.ones((1, *size)), [3]), np.full(size, 3))
    np.testing.assert_array_equal(proportional_pseudo_mask(image, np.zeros((1, *size)), [3]), np.zeros(size))


def test_without_classes_all_is_background():
    for tie in ("background", "foreground"):
        mask = proportional_pseudo_mask(np.zeros((3, 4, 3), np.uint8), np.zeros((0, 3, 4)), [], tie=tie)
        np.testing.assert_array_equal(mask, np.zeros((3, 4)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cam": np.zeros((1, 4, 3))}, "the CAM is 4 x 3 pixels, its image 3 x 4"),
        ({"cam": np.full((1, 3, 4), np.nan)}, "NaN"),
        ({"cam": np.full((1, 3, 4), 3.0)}, r"\[0, 1\]"),
        ({"class_ids": [1, 2]}, "as many class ids"),
        ({"class_ids": [0]}, "1..254"),
        ({"alpha": 0}, "alpha must be above 0"),
        ({"eps": -1}, "eps must be >= 0"),
        ({"s": -1}, "s must be >= 0"),
        ({"tie": "both"}, "tie must be"),
        ({"crf": "PPG"}, "no CRF preset"),
    ],
)
def test_bad_input_is_refused(change, message):
    arguments = {"image": np.zeros((3, 4, 3), np.uint8), "cam": np.zeros((1, 3, 4)), "class_ids": [1], **change}
    with pytest.raises(ValueError, match=message):
        proportional_pseudo_mask(**arguments)


def test_merge_of_nothing_is_background():
    np.testing.assert_array_equal(merge(np.zeros((0, 2, 2), bool), np.zeros((0, 2, 2), np.float32)), 0)
