"""The engine's filters and mean field against slow ones: all pairs of pixels, and float64 on the same lattices."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pmm_ray.masks.crf import PRESETS, CrfParams, DenseCRF, crf_params
from pmm_ray.masks.lattice import build, colour_features
from pmm_ray.masks.meanfield import kernel
from pmm_ray.masks.workspace import Workspace

KERNELS = ["gaussian", "bilateral"]


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.fixture(params=["photo", "noise", "constant"])
def picture(request, photo):
    """A maker of pictures of one kind."""

    def make(height, width):
        if request.param == "photo":
            return photo(height, width)[0]
        return noise(height, width) if request.param == "noise" else np.full((height, width, 3), 90, np.uint8)

    return make


def all_pairs(image, params: CrfParams, which):
    """(N, N) exp(-|f_i - f_j|^2 / 2)."""
    height, width = image.shape[:2]
    features = []
    for y in range(height):
        for x in range(width):
            if which == "gaussian":
                features.append((y / params.gaussian_sxy, x / params.gaussian_sxy))
            else:
                colour = (int(v) / params.bilateral_srgb for v in image[y, x])
                features.append((y / params.bilateral_sxy, x / params.bilateral_sxy, *colour))
    f = np.array(features)
    return np.exp(-((f[:, None] - f[None]) ** 2).sum(-1) / 2)


# Filters


@pytest.mark.parametrize("which", KERNELS)
@pytest.mark.parametrize("preset", ["ppg", "rrm_infer", "segmentation"])
def test_the_normalised_filter_is_near_that_of_all_pairs(which, preset, picture):
    """Between any two pixels within 0.1 of the exact affinity, itself at most 1; on values in [0, 1] within 0.06."""
    image, values = picture(6, 6), np.random.default_rng(3).random((4, 6, 6))
    k = all_pairs(image, PRESETS[preset], which)
    k /= np.sqrt(np.outer(k.sum(1), k.sum(1)))
    crf = DenseCRF(image, preset=preset)
    columns = crf.filter(np.eye(36).reshape(36, 6, 6), kernel=which, normalised=True).reshape(36, 36).T
    np.testing.assert_allclose(columns, k, atol=0.1)
    exact = (values.reshape(4, -1) @ k.T).reshape(values.shape)
    np.testing.assert_allclose(crf.filter(values, kernel=which, normalised=True), exact, atol=0.06)


@pytest.mark.parametrize("which", KERNELS)
def test_the_plain_filter_loses_up_to_three_fifths_of_the_exact_sums(which, picture):
    # blurring from vertices to vertices that no point lies near loses their share; normalising makes up for it
    image = picture(6, 6)
    ratio = DenseCRF(image).filter(np.ones((1, 6, 6)), kernel=which).ravel() / all_pairs(
        image, PRESETS["ppg"], which
    ).sum(1)
    assert ratio.min() > 0.4
    assert ratio.max() < 1


@pytest.mark.parametrize("which", KERNELS)
@pytest.mark.parametrize("channels", [1, 3, 8, 9])
def test_filters_agree_with_float64_on_the_same_lattice(which, channels, picture, fresh_lattices, double_filter):
    image, values = picture(13, 21), np.random.default_rng(0).normal(size=(channels, 13, 21))
    slow = double_filter(fresh_lattices(image, PRESETS["ppg"])[which], 13 * 21)
    crf, flat = DenseCRF(image), values.reshape(channels, -1)
    for fast, exact in (
        (crf.filter(values, kernel=which), slow),
        (crf.filter(values, kernel=which, normalised=True), slow.normalised),
    ):
        assert fast.dtype == np.float32
        # signs cancel in sums: what counts is their size without
        np.testing.assert_allclose(fast.reshape(channels, -1), exact(flat), atol=1e-6 * exact(np.abs(flat)).max())


@pytest.mark.parametrize("which", KERNELS)
@pytest.mark.parametrize("normalised", [False, True])
def test_filters_are_linear(which, normalised, picture):
    crf = DenseCRF(picture(9, 14))
    a, b = np.random.default_rng(0).random((2, 1, 9, 14))

    def filtered(values):
        return crf.filter(values, kernel=which, normalised=normalised)

    np.testing.assert_allclose(
        filtered(3 * a - 2 * b), 3 * filtered(a) - 2 * filtered(b), atol=1e-5 * filtered(a).max()
    )
    np.testing.assert_array_equal(filtered(0 * a), 0)


@pytest.mark.parametrize("which", KERNELS)
@pytest.mark.parametrize("normalised", [False, True])
def test_filters_are_symmetric_within_two_per_cent(which, normalised, picture):
    # not exactly: where vertices are missing, blurs along two directions do not commute
    crf = DenseCRF(picture(20, 27))
    a, b = np.random.default_rng(0).random((2, 1, 20, 27))
    one = (a * crf.filter(b, kernel=which, normalised=normalised)).sum()
    other = (b * crf.filter(a, kernel=which, normalised=normalised)).sum()
    assert one == pytest.approx(other, rel=0.02)


@pytest.mark.parametrize("which", KERNELS)
@pytest.mark.parametrize("normalised", [False, True])
def test_filters_keep_values_from_0_up(which, normalised, picture):
    values = np.random.default_rng(0).random((2, 12, 12)) * (np.random.default_rng(1).random((2, 12, 12)) < 0.1)
    assert DenseCRF(picture(12, 12)).filter(values, kernel=which, normalised=normalised).min() > -1e-6


@pytest.mark.parametrize("which", KERNELS)
def test_the_root_of_the_plain_sums_is_what_normalising_preserves(which, picture):
    # D K D (1 / D) = D (K 1) = D / D^2
    crf = DenseCRF(picture(11, 18))
    roots = np.sqrt(crf.filter(np.ones((1, 11, 18)), kernel=which))
    assert roots.max() > 1.1 or which == "bilateral"
    np.testing.assert_allclose(crf.filter(roots, kernel=which, normalised=True), roots, rtol=1e-5)


def test_a_pixel_far_from_all_others_keeps_its_value():
    params = crf_params("ppg", bilateral_srgb=2)
    image = np.array([[[0, 0, 0], [255, 0, 0], [0, 255, 0], [255, 255, 255]]], np.uint8)
    values = np.array([[[1.0, -2.0, 3.0, 5.0]]])
    np.testing.assert_allclose(DenseCRF(image, params=params).filter(values, normalised=True), values, rtol=1e-5)


def test_kernels_can_be_asked_for_by_name_and_differ():
    values = np.random.default_rng(0).random((2, 6, 6))
    crf = DenseCRF(noise(6, 6))
    np.testing.assert_array_equal(crf.filter(values), crf.filter(values, kernel="bilateral"))
    assert np.abs(crf.filter(values) - crf.filter(values, kernel="gaussian")).max() > 1
    assert crf.filter(values[:0]).shape == (0, 6, 6)


def test_what_cannot_be_filtered_is_refused():
    crf = DenseCRF(noise(2, 3))
    for shape in [(2, 3), (1, 3, 2), (1, 1, 2, 3)]:
        with pytest.raises(ValueError, match=r"values to filter must be \(C, 2, 3\)"):
            crf.filter(np.zeros(shape))
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="must be finite"):
            crf.filter(np.full((1, 2, 3), bad))
    with pytest.raises(ValueError, match="no kernel 'box'"):
        crf.filter(np.zeros((1, 2, 3)), kernel="box")


def test_the_kernels_norm_is_one_over_the_root_of_its_sums(fresh_lattices, double_filter):
    image = noise(7, 9)
    slow = double_filter(fresh_lattices(image, PRESETS["ppg"])["bilateral"], 63)
    work = Workspace()
    made = kernel(build(colour_features(image, sxy=80, srgb=13, workspace=work), 63, work), workspace=work)
    np.testing.assert_allclose(made.norm[:63], slow.norm, rtol=1e-5)


# Mean field


@pytest.mark.parametrize("preset", ["ppg", "rrm_infer", "segmentation"])
@pytest.mark.parametrize("iterations", [1, 2, 10])
def test_two_labels_agree_with_float64(preset, iterations, picture, double_crf):
    image, scores = picture(23, 34), np.random.default_rng(0).random((9, 2, 23, 34))
    params = crf_params(preset, iterations=iterations)
    exact = double_crf(image, params).binary(scores)
    np.testing.assert_allclose(DenseCRF(image, params=params).binary(scores), exact, atol=1e-3)
    if iterations < 10:
        np.testing.assert_allclose(DenseCRF(image, params=params).binary(scores), exact, atol=1e-4)


@pytest.mark.parametrize("labels", [1, 2, 3, 5, 8, 21, 33])
@pytest.mark.parametrize("iterations", [1, 10])
def test_many_labels_agree_with_float64(labels, iterations, picture, double_crf):
    image, scores = picture(16, 19), np.random.default_rng(labels).random((labels, 16, 19)) ** 3
    params = crf_params("baseline", iterations=iterations)
    fast = DenseCRF(image, params=params).multilabel(scores)
    np.testing.assert_allclose(fast, double_crf(image, params).multilabel(scores), atol=1e-3)
    np.testing.assert_allclose(fast.sum(0), 1, atol=1e-5)


@pytest.mark.parametrize("preset", ["ppg", "rrm_infer"])
@pytest.mark.parametrize("height", [1, 7, 40])
def test_a_problem_does_not_depend_on_those_beside_it(preset, height, picture):
    """Within 1e-3: a point is left alone while none of its problems moves by 1e-5, and small moves grow at fronts."""
    crf = DenseCRF(picture(height, 23), preset=preset)
    scores = np.random.default_rng(height).random((17, 2, height, 23))
    alone = np.concatenate([crf.binary(problem[None]) for problem in scores])
    for together in (2, 3, 4, 5, 6, 7, 8, 9, 17):
        np.testing.assert_allclose(crf.binary(scores[:together]), alone[:together], atol=1e-3)


def test_equal_problems_have_equal_answers():
    scores = np.random.default_rng(0).random((1, 2, 15, 22)).repeat(11, 0)
    answers = DenseCRF(noise(15, 22)).binary(scores)
    # problems 8 to 10 are solved four at a time, the others eight
    np.testing.assert_array_equal(answers[1:8], answers[:7])
    np.testing.assert_array_equal(answers[9:], answers[8:10])
    np.testing.assert_allclose(answers[8], answers[0], atol=1e-5)


@pytest.mark.parametrize("preset", PRESETS)
def test_two_labels_are_many_labels(preset, picture):
    crf = DenseCRF(picture(14, 25), preset=preset)
    scores = np.random.default_rng(0).random((2, 14, 25))
    both = crf.multilabel(scores)
    np.testing.assert_allclose(both[1], crf.binary(scores[None])[0], atol=1e-3)
    np.testing.assert_allclose(both[0], 1 - both[1], atol=1e-5)


@pytest.mark.parametrize("labels", [3, 8, 21])
def test_exchanging_labels_exchanges_probabilities(labels, picture):
    crf = DenseCRF(picture(12, 17))
    scores, order = np.random.default_rng(0).random((labels, 12, 17)), np.random.default_rng(1).permutation(labels)
    np.testing.assert_allclose(crf.multilabel(scores[order]), crf.multilabel(scores)[order], atol=1e-3)


def test_exchanging_problems_exchanges_answers(picture):
    crf = DenseCRF(picture(12, 17))
    scores, order = np.random.default_rng(0).random((8, 2, 12, 17)), np.random.default_rng(1).permutation(8)
    np.testing.assert_array_equal(crf.binary(scores[order]), crf.binary(scores)[order])


@pytest.mark.parametrize("labels", [1, 2, 5, 21])
def test_no_iterations_leave_normalised_scores(labels):
    crf = DenseCRF(noise(6, 7), params=crf_params("ppg", iterations=0))
    scores = np.random.default_rng(0).uniform(0.01, 1, (labels, 6, 7))
    np.testing.assert_allclose(crf.multilabel(scores), scores / scores.sum(0), rtol=1e-4)
    pairs = np.stack([scores, scores[::-1] ** 2], 1)
    np.testing.assert_allclose(crf.binary(pairs), pairs[:, 1] / pairs.sum(1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("left_out", KERNELS)
def test_a_kernel_of_weight_0_has_no_say(left_out):
    name = {"gaussian": "gaussian_sxy", "bilateral": "bilateral_srgb"}[left_out]
    widths = [{name: 1}, {name: 60}]
    scores, image = np.random.default_rng(0).random((2, 2, 9, 13)), noise(9, 13)

    def solve(**changes):
        crf = DenseCRF(image, params=crf_params("rrm_infer", **changes))
        return crf.binary(scores), crf.multilabel(scores[0])

    without = [solve(**{f"{left_out}_compat": 0}, **width) for width in widths]
    for one, other in zip(*without, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    for one, other in zip(solve(**widths[0]), solve(**widths[1]), strict=True):
        assert np.abs(one - other).max() > 0.01


def test_hand_worked_step_of_one_pixel():
    # One pixel is its own only neighbour: either filter gives its value back, and one iteration from score ratio 3 is
    # s = tanh((log 3 + (1 + 3) tanh(log 3 / 2)) / 2) with tanh(log 3 / 2) = 1/2.
    params = crf_params("ppg", iterations=1, gaussian_compat=1, bilateral_compat=3)
    crf = DenseCRF(np.full((1, 1, 3), 70, np.uint8), params=params)
    logit = math.log(3) + (1 + 3) * 0.5
    result = crf.binary(np.array([0.2, 0.6]).reshape(1, 2, 1, 1))
    assert result.item() == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-6)


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-6, 1.0, 1e6, 1e30, 3e38])
def test_scores_of_any_scale_give_probabilities(scale):
    crf = DenseCRF(noise(8, 9))
    scores = np.random.default_rng(0).random((3, 2, 8, 9)) * scale
    scores[:, 0, 0], scores[:, 1, 1] = 0, 0
    for result in (crf.binary(scores), crf.multilabel(scores[0]), crf.multilabel(scores[:, 1])):
        assert np.isfinite(result).all()
        assert result.min() >= 0
        assert result.max() <= 1 + 1e-6


def test_scores_below_the_floor_are_all_the_same():
    crf = DenseCRF(noise(8, 9))
    scores = np.random.default_rng(0).random((2, 2, 8, 9)) * 1e-5
    np.testing.assert_allclose(crf.binary(scores), 0.5, atol=1e-6)
    np.testing.assert_allclose(crf.multilabel(scores[0]), 0.5, atol=1e-6)


def test_strong_kernels_do_not_overflow():
    crf = DenseCRF(noise(8, 9), params=crf_params("ppg", gaussian_compat=1e4, bilateral_compat=1e6))
    scores = np.random.default_rng(0).random((3, 2, 8, 9))
    for result in (crf.binary(scores), crf.multilabel(scores[:, 0])):
        assert np.isfinite(result).all()
