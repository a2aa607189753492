from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pmm_ray.masks.contrast import Contrasts, Explained, contrast


def test_explained_variance_hand_worked():
    # Mean 2; total 4 + 1 + 1 + 4 = 10. Segments {0, 1} and {3, 4}: means 0.5 and 3.5, between 4 * 1.5^2 = 9.
    values = Explained(np.array([[0.0, 1, 3, 4]]))
    assert values.by(np.array([0, 0, 1, 1])) == pytest.approx(0.9)
    # Another channel of the same pixels that the segments explain wholly: between 9 + 4, total 10 + 4.
    both = Explained(np.array([[0.0, 1, 3, 4], [0, 0, 2, 2]]))
    assert both.by(np.array([0, 0, 1, 1])) == pytest.approx(13 / 14)


def test_one_segment_explains_nothing_and_constant_values_are_explained_by_nothing():
    assert Explained(np.array([[0.0, 1, 3, 4]])).by(np.array([7, 7, 7, 7])) == pytest.approx(0)
    assert Explained(np.ones((3, 4))).by(np.array([0, 1, 0, 1])) == 0


@given(st.integers(0, 2**32 - 1))
def test_it_is_a_share_that_finer_segments_do_not_lower(seed):
    rng = np.random.default_rng(seed)
    values, coarse = Explained(rng.random((2, 40))), rng.integers(0, 3, 40)
    fine = 3 * coarse + rng.integers(0, 3, 40)
    assert 0 <= values.by(coarse) <= values.by(fine) + 1e-12
    assert values.by(fine) <= 1


def test_each_class_parts_its_own_cam_and_colours_see_all_segments():
    colours = np.array([[0.0, 0, 9, 9, 5, 5]] * 3)
    cam = np.array([[1.0, 1, 0, 0, 0, 0], [0, 0, 0.5, 1, 0, 0]])
    scored = Contrasts(colours, cam, [4, 2])
    perfect = scored.of(np.array([4, 4, 2, 2, 0, 0], np.uint8))
    # The second CAM: mean 0.25, total 0.875; its segment's mean is 0.75: between 2 * 0.25 + 4 * 0.0625 = 0.75.
    assert perfect == pytest.approx(((1 + 0.75 / 0.875) / 2, 1))
    # A class of which there is nothing explains nothing.
    without = scored.of(np.array([4, 4, 0, 0, 0, 0], np.uint8))
    assert without[0] == pytest.approx(0.5)
    assert without[1] < 1


def test_to_be_undecided_explains_nothing():
    # as above, total 10; the segments {0} and {3, 4} explain 4 + 4.5, of three pixels in four
    values = Explained(np.array([[0.0, 1, 3, 4]]))
    assert values.by(np.array([0, 255, 1, 1], np.uint8)) == pytest.approx(0.75 * 0.85)
    assert values.by(np.array([255, 255, 1, 1], np.uint8)) == 0
    assert values.by(np.array([255] * 4, np.uint8)) == 0
    colours, cam = np.array([[0.0, 1, 3, 4]] * 3), np.array([[0.0, 0, 1, 1]])
    scored = Contrasts(colours, cam, [1])
    decided, undecided = (scored.of(np.array(mask, np.uint8)) for mask in ([0, 0, 1, 1], [0, 255, 1, 1]))
    assert undecided[0] < decided[0] == 1 and undecided[1] < decided[1]
    # not to decide where the class is does not find it
    assert scored.of(np.array([0, 0, 255, 255], np.uint8)) == (0, 0)


def test_the_score_of_a_set_is_the_geometric_mean_of_two_means():
    assert contrast([0.5, 0.7], [0.1, 0.2]) == pytest.approx(np.sqrt(0.6 * 0.15))
    assert contrast([], []) is None
    assert contrast([0.9], [0.0]) == 0
