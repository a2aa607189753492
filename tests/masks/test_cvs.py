from __future__ import annotations

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from pmm_ray.masks.cvs import MIN_EXPONENT, coefficient_of_variation, smooth

cams = hnp.arrays(np.float32, hnp.array_shapes(min_dims=3, max_dims=3, max_side=5), elements=st.floats(0, 1, width=32))
shares = st.floats(0, 1)


def test_cv_hand_worked():
    # f = {0.25, 0.75}: mean 0.5, population std 0.25 (the sample's would be 0.354).
    cam = np.array([[[0.25, 0.75, 0.05, 0.0]]])
    np.testing.assert_allclose(coefficient_of_variation(cam, t=0.1), [0.5], rtol=1e-6)


def test_smooth_hand_worked():
    # cv 0.5 and s 1 make the exponent 0.5: a square root.
    cam = np.array([[[0.25, 0.75, 0.0625, 0.0]]])
    root = np.sqrt(np.float32([0.25, 0.75]))
    np.testing.assert_allclose(smooth(cam, s=1, t=0.1), [[[*root, 0, 0]]], rtol=1e-6)
    np.testing.assert_allclose(smooth(cam, s=1, t=0.1, gate=False), [[[*root, 0.25, 0]]], rtol=1e-6)


def test_a_pixel_at_t_is_no_foreground_but_passes_the_gate():
    cam = np.array([[[0.25, 0.5, 0.5]]])
    np.testing.assert_array_equal(coefficient_of_variation(cam, t=0.25), [0])
    np.testing.assert_array_equal(smooth(cam, s=0.3, t=0.25), cam)


def test_channels_do_not_see_each_other():
    cam = np.random.default_rng(0).random((3, 4, 5))
    alone = np.concatenate([smooth(channel[None], s=0.3, t=0.05) for channel in cam])
    np.testing.assert_array_equal(smooth(cam, s=0.3, t=0.05), alone)


def test_an_empty_foreground_has_cv_zero_and_stays():
    cam = np.full((1, 2, 2), 0.03, np.float32)
    np.testing.assert_array_equal(coefficient_of_variation(cam, t=0.05), [0])
    np.testing.assert_array_equal(smooth(cam, s=0.3, t=0.05, gate=False), cam)
    np.testing.assert_array_equal(smooth(cam, s=0.3, t=0.05), 0)


def test_float16_of_a_large_object_has_the_right_finite_cv():
    # 360,000 foreground pixels sum to 180,000, beyond float16's largest number, 65504.
    wide = np.random.default_rng(0).uniform(0.1, 0.9, (1, 600, 600))
    narrow = wide.astype(np.float16)
    exact = wide.std() / wide.mean()
    np.testing.assert_allclose(coefficient_of_variation(narrow, t=0.05), [exact], rtol=1e-3)
    smoothed = smooth(narrow, s=0.3, t=0.05)
    assert smoothed.dtype == np.float32
    np.testing.assert_allclose(smoothed, wide ** (1 - 0.3 * exact), rtol=2e-3)


def test_the_exponent_stops_at_its_floor():
    # One bright pixel among many faint ones: cv is about 3, so 1 - 2 cv is far below 0.
    cam = np.full((1, 10, 10), 0.01, np.float32)
    cam[0, 0, 0] = 1
    assert coefficient_of_variation(cam, t=0)[0] > 3
    result = smooth(cam, s=2, t=0)
    np.testing.assert_allclose(result, cam**MIN_EXPONENT, rtol=1e-5)
    assert result[0, 5, 5] < result[0, 0, 0]


def test_the_bound_on_cv_that_the_floor_is_argued_with():
    # The most uneven foreground in (t, 1]: values t and 1 only, with the share t / (1 + t) of ones.
    t = 0.05
    bound = (1 - t) / (2 * math.sqrt(t))
    cvs = [(1 - t) * math.sqrt(p * (1 - p)) / (t + p * (1 - t)) for p in np.linspace(0.001, 0.999, 999)]
    assert max(cvs) == pytest.approx(bound, abs=1e-3)
    assert 1 - 0.3 * bound > 0.36


def test_s_zero_without_gate_changes_nothing():
    cam = np.random.default_rng(0).random((2, 5, 5), np.float32)
    np.testing.assert_array_equal(smooth(cam, s=0, t=0.05, gate=False), cam)


@given(cams, st.floats(0, 3), shares, st.booleans())
def test_smooth_keeps_bounds_and_order_and_lowers_nothing(cam, s, t, gate):
    result = smooth(cam, s=s, t=t, gate=gate)
    assert np.isfinite(result).all()
    assert result.min() >= 0
    assert result.max() <= 1
    kept = cam >= np.float32(t) if gate else np.ones_like(cam, bool)
    assert (result[kept] >= cam[kept] * (1 - 1e-6)).all()
    assert (result[~kept] == 0).all()
    for before, after in zip(cam, result, strict=True):
        assert (np.diff(after.ravel()[np.argsort(before, axis=None)]) >= -1e-6).all()


@given(cams, shares)
def test_cv_agrees_with_the_standard_library(cam, t):
    for x, cv in zip(cam, coefficient_of_variation(cam, t=t), strict=True):
        foreground = [float(v) for v in x.ravel() if v > np.float32(t)]
        slow = statistics.pstdev(foreground) / statistics.fmean(foreground) if foreground else 0
        assert cv == pytest.approx(slow, rel=1e-4, abs=1e-6)


@given(cams)
def test_the_cam_is_not_changed(cam):
    before = cam.copy()
    cam.setflags(write=False)
    smooth(cam, s=0.3, t=0.5)
    np.testing.assert_array_equal(cam, before)


def test_no_classes_give_no_channels():
    assert smooth(np.zeros((0, 3, 4)), s=0.3, t=0.05).shape == (0, 3, 4)
    assert coefficient_of_variation(np.zeros((0, 3, 4)), t=0.05).shape == (0,)


@pytest.mark.parametrize("s", [-0.1, math.nan])
def test_a_negative_strength_is_refused(s):
    with pytest.raises(ValueError, match="s must be >= 0"):
        smooth(np.zeros((1, 2, 2)), s=s, t=0.05)
