"""From a trimap to mattes to a mask, where the answer is known."""

from __future__ import annotations

import numpy as np
import pytest

from pmm_ray.masks.laplacian import laplacian, solve
from pmm_ray.masks.matting import Matting, matting_mask, merge_mattes

LABELS = np.array([0, 2, 5], np.uint8)
PLAIN = {"kind": "closed_form", "epsilon": 1e-4, "size": 320}


def spots(height, width, *columns):
    """A CAM (K, H, W) that is 1 at these columns and falls to 0 0.7 of the width away."""
    distance = np.abs(np.arange(width)[None] - np.array(columns)[:, None]) / (0.7 * width)
    return np.broadcast_to(np.clip(1 - distance, 0, 1)[:, None], (len(columns), height, width)).astype(np.float32)


@pytest.mark.parametrize("kind", ["closed_form", "knn", "random_walk"])
def test_a_rough_cam_becomes_the_object_to_the_pixel(photo, kind):
    image, inside = photo(24, 40)
    mask = matting_mask(image, spots(24, 40, 4), [2], kind=kind, margin=0)
    assert (mask[inside] == 2).mean() > 0.97 and (mask[~inside] == 0).mean() > 0.97


def test_so_it_does_at_a_smaller_working_size(photo):
    image, inside = photo(96, 161)
    mask = matting_mask(image, spots(96, 161, 16), [2], size=40)
    assert mask.shape == (96, 161)
    assert ((mask == 2) == inside).mean() > 0.97


def test_a_large_photo_gives_its_mattes_the_edge_that_the_small_one_lost():
    image = np.full((80, 100, 3), 40, np.uint8)
    image[:, 53:] = (220, 200, 90)  # inside a pixel of a quarter of the size
    trimap, x = np.full((80, 100), 255, np.uint8), np.full((1, 80, 100), 0.5, np.float32)
    trimap[:, :12], trimap[:, -12:] = 0, 2
    (alpha,) = Matting(image, **PLAIN | {"size": 25}).mattes(trimap, x, LABELS[:2]).alpha
    # resized without the photo, it would be between 0.1 and 0.9 for seven columns
    np.testing.assert_allclose(alpha, np.arange(100)[None].repeat(80, 0) >= 53, atol=0.05)


def test_the_classes_and_the_background_share_every_pixel_and_what_is_certain_stays(photo):
    image, _ = photo(20, 45)
    x = spots(20, 45, 3, 30)
    trimap = np.full((20, 45), 255, np.uint8)
    trimap[:, :5], trimap[:, 28:33], trimap[:, 40:] = 2, 5, 0
    mattes = Matting(image, **PLAIN).mattes(trimap, x, LABELS)
    assert not mattes.fell_back.any() and mattes.alpha.dtype == np.float32
    assert mattes.alpha.min() >= 0 and mattes.alpha.max() <= 1
    for label, alpha in zip(LABELS[1:], mattes.alpha, strict=True):
        assert (alpha[trimap == label] == 1).all()
        assert (alpha[(trimap != label) & (trimap != 255)] == 0).all()
    background = np.where(trimap == 255, 255, 5 * (trimap == 0)).astype(np.uint8)
    (rest,) = Matting(image, **PLAIN).mattes(background, x[:1], LABELS[[0, 2]]).alpha
    # none leaves [0, 1] here, so none was clipped
    assert np.abs(mattes.alpha.sum(axis=0) + rest - 1).max() < 0.01


def test_without_certain_pixels_of_a_class_or_of_the_background_the_cam_is_the_matte(photo):
    image, _ = photo(12, 15)
    x = spots(12, 15, 2, 9)
    lacking = np.full((12, 15), 255, np.uint8)
    lacking[:, :3], lacking[:, -1] = 2, 0
    mattes = Matting(image, **PLAIN).mattes(lacking, x, LABELS)
    assert mattes.fell_back.tolist() == [False, True]
    np.testing.assert_array_equal(mattes.alpha[1][lacking == 255], x[1][lacking == 255])
    assert not mattes.alpha[1][lacking != 255].any()
    lonely = np.full((12, 15), 255, np.uint8)
    lonely[:, :3] = 2
    mattes = Matting(image, **PLAIN).mattes(lonely, x[:1], LABELS[:2])
    assert mattes.fell_back.tolist() == [True] and (mattes.alpha[0][:, :3] == 1).all()
    np.testing.assert_array_equal(mattes.alpha[0][:, 3:], x[0][:, 3:])
    # two mattes of no background would add up to 1 and leave it nothing
    lonely[:, -2:] = 5
    x = x**4
    mattes = Matting(image, **PLAIN).mattes(lonely, x, LABELS)
    assert mattes.fell_back.tolist() == [True, True]
    np.testing.assert_array_equal(mattes.alpha[:, :, 3:-2], x[:, :, 3:-2])
    mask = merge_mattes(mattes.alpha, LABELS, margin=0)
    assert ((mask == 0) == (x.max(axis=0) <= 0.5))[:, 3:-2].all() and (mask == 0).any()


def test_a_class_whose_equations_are_not_solved_has_the_cam_and_the_others_do_not(photo, monkeypatch):
    image, _ = photo(12, 15)
    x = spots(12, 15, 2, 9)
    trimap = np.full((12, 15), 255, np.uint8)
    trimap[:, :3], trimap[:, 8], trimap[:, -1] = 2, 5, 0
    whole = Matting(image, **PLAIN).mattes(trimap, x, LABELS)

    def failing(matrix, known, values, start):
        found, solved = solve(matrix, known, values, start)
        return np.stack([start[0], *found[1:]]), solved & [False, True]

    monkeypatch.setattr("pmm_ray.masks.matting.solve", failing)
    mattes = Matting(image, **PLAIN).mattes(trimap, x, LABELS)
    assert mattes.fell_back.tolist() == [True, False]
    np.testing.assert_array_equal(mattes.alpha[0][trimap == 255], x[0][trimap == 255])
    np.testing.assert_array_equal(mattes.alpha[1], whole.alpha[1])


def test_mattes_are_merged_by_hand():
    alpha = np.array([[[0.9, 0.2, 0.52, 0.5, 0.1]], [[0.0, 0.7, 0.5, 0.0, 0.1]]], np.float32)
    # best two: 0.9 0.1; 0.7 0.3; 0.52 0.5; 0.5 0.5; 0.9 0.1
    np.testing.assert_array_equal(merge_mattes(alpha, LABELS, margin=0.1), [[2, 5, 255, 255, 0]])
    np.testing.assert_array_equal(merge_mattes(alpha, LABELS, margin=0), [[2, 5, 2, 0, 0]])
    np.testing.assert_array_equal(merge_mattes(alpha, LABELS, margin=0.5), [[2, 255, 255, 255, 0]])
    assert not merge_mattes(alpha[:0], LABELS[:1], margin=0.1).any()
    with pytest.raises(ValueError, match="margin"):
        merge_mattes(alpha, LABELS, margin=1.5)


def test_no_class_is_all_background_and_the_order_of_the_channels_does_not_matter(photo):
    image, _ = photo(15, 24)
    assert not matting_mask(image, np.zeros((0, 15, 24)), []).any()
    x = spots(15, 24, 4, 20)
    np.testing.assert_array_equal(matting_mask(image, x, [2, 5]), matting_mask(image, x[::-1], [5, 2]))


@pytest.mark.parametrize("kind", ["closed_form", "knn", "random_walk"])
@pytest.mark.parametrize("shape", [(1, 1), (2, 50), (50, 1), (3, 3), (4, 4)])
def test_a_photo_that_is_hardly_one_does_not_stop_it(shape, kind):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    cam = np.random.default_rng(1).random((2, *shape))
    assert matting_mask(image, cam, [1, 2], size=16, kind=kind).shape == shape


def test_a_class_certain_in_one_pixel_is_not_lost_at_a_smaller_size(photo):
    image, _ = photo(64, 64)
    trimap = np.full((64, 64), 255, np.uint8)
    trimap[:, -8:] = 0
    trimap[21, 20] = 3  # between the rows and columns that a quarter of the size looks at
    matting = Matting(image, **{**PLAIN, "size": 16})
    mattes = matting.mattes(trimap, np.zeros((1, 64, 64), np.float32), np.array([0, 3], np.uint8))
    assert not mattes.fell_back.any() and mattes.alpha[0, 21, 20] == 1


def test_a_pixel_at_a_smaller_size_is_not_taken_from_a_class_that_has_no_other(photo):
    image, _ = photo(64, 64)
    trimap = np.full((64, 64), 255, np.uint8)
    trimap[2, 2], trimap[0, :2] = 2, 5  # in one cell of 4 x 4, of which the smaller size sees the first
    trimap[20, 20], trimap[-2:] = 5, 0
    x = np.zeros((2, 64, 64), np.float32)
    matting = Matting(image, **PLAIN | {"size": 16})
    assert not matting.mattes(trimap, x, LABELS).fell_back.any()
    # two that the smaller size does not see: of the background there has to be some
    trimap[20, 20], trimap[-2:], trimap[42, 42] = 255, 255, 2
    trimap[40, 40] = 0
    assert matting.mattes(trimap, x, LABELS).fell_back.tolist() == [False, True]


def test_one_laplacian_serves_every_trimap(photo, monkeypatch):
    made = []
    monkeypatch.setattr("pmm_ray.masks.matting.laplacian", lambda *a, **k: made.append(k) or laplacian(*a, **k))
    image, _ = photo(12, 16)
    matting, x = Matting(image, **PLAIN), spots(12, 16, 3)
    for edge in (2, 4, 6):
        trimap = np.full((12, 16), 255, np.uint8)
        trimap[:, :edge], trimap[:, -2:] = 2, 0
        matting.mattes(trimap, x, LABELS[:2])
    assert len(made) == 1


def test_a_cam_of_another_size_and_a_size_too_small_are_refused(photo):
    with pytest.raises(ValueError, match="resize the CAM to the image"):
        matting_mask(photo(8, 9)[0], np.zeros((1, 9, 8)), [1])
    with pytest.raises(ValueError, match="at least 16"):
        matting_mask(photo(8, 9)[0], np.zeros((1, 8, 9)), [1], size=8)
    with pytest.raises(ValueError, match="an epsilon of at least 1e-06, got 320 and 1e-07"):
        matting_mask(photo(8, 9)[0], np.zeros((1, 8, 9)), [1], epsilon=1e-7)
