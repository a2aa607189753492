from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from pmm_ray.masks import crf as crf_module
from pmm_ray.masks.crf import PRESETS, CrfParams, DenseCRF, crf_on, crf_params

SIZES = [(1, 1), (1, 7), (7, 1), (2, 2), (3, 5), (16, 13)]


@pytest.mark.parametrize(
    ("preset", "gaussian", "bilateral"),
    [
        ("ppg", (3, 10), (80, 13, 10)),
        ("baseline", (3, 3), (80, 13, 10)),
        ("rrm_train", (3, 3), (80, 13, 10)),
        ("rrm_infer", (3, 3), (83, 5, 4)),
        ("segmentation", (1, 3), (67, 3, 4)),
        ("irn", (3, 3), (50, 5, 10)),
    ],
)
def test_presets_are_the_published_constants(preset, gaussian, bilateral):
    p = PRESETS[preset]
    assert (p.gaussian_sxy, p.gaussian_compat) == gaussian
    assert (p.bilateral_sxy, p.bilateral_srgb, p.bilateral_compat) == bilateral
    assert p.iterations == 10


def test_a_replacement_of_none_keeps_the_presets_number():
    assert crf_params("irn", bilateral_srgb=7, iterations=None, gaussian_compat=0) == CrfParams(
        gaussian_sxy=3, gaussian_compat=0, bilateral_sxy=50, bilateral_srgb=7, bilateral_compat=10, iterations=10
    )


@pytest.mark.parametrize("change", [{"gaussian_sxy": 0}, {"bilateral_compat": -1}, {"bilateral_srgb": math.nan}])
def test_constants_out_of_bounds_are_refused(change):
    with pytest.raises(ValueError, match="CRF widths must be above 0"):
        crf_params("ppg", **change)


def test_an_unknown_preset_is_refused_with_the_list_of_presets():
    with pytest.raises(ValueError, match="'pgp'; there are ppg, baseline"):
        crf_params("pgp")


@pytest.mark.parametrize("iterations", [0, 10])
def test_without_kernels_scores_are_only_normalised(iterations):
    image = np.random.default_rng(0).integers(0, 256, (5, 6, 3)).astype(np.uint8)
    crf = DenseCRF(image, params=crf_params("ppg", gaussian_compat=0, bilateral_compat=0, iterations=iterations))
    scores = np.random.default_rng(1).random((3, 2, 5, 6))
    np.testing.assert_allclose(crf.binary(scores), scores[:, 1] / scores.sum(1), rtol=1e-4)
    np.testing.assert_allclose(crf.multilabel(3 * scores[:, 0]), scores[:, 0] / scores[:, 0].sum(0), rtol=1e-4)


def test_scores_are_clipped_at_a_hundred_thousandth():
    crf = DenseCRF(np.zeros((1, 1, 3), np.uint8), params=crf_params("ppg", iterations=0))
    result = crf.binary(np.array([0.0, 1.0]).reshape(1, 2, 1, 1))
    assert result[0, 0, 0] == pytest.approx(1 / (1 + 1e-5), abs=3e-7)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("fill", ["black", "white", "noise"])
@pytest.mark.parametrize("iterations", [0, 1, 2, 10])
def test_every_size_and_kind_of_image_gives_probabilities(size, fill, iterations):
    rng = np.random.default_rng(0)
    image = np.full((*size, 3), 255 if fill == "white" else 0, np.uint8)
    if fill == "noise":
        image = rng.integers(0, 256, (*size, 3)).astype(np.uint8)
    crf = DenseCRF(image, params=crf_params("ppg", iterations=iterations))
    one = crf.binary(rng.random((2, 2, *size)))
    many = crf.multilabel(rng.random((4, *size)))
    assert one.shape == (2, *size)
    assert many.shape == (4, *size)
    assert one.dtype == many.dtype == np.float32
    for result in (one, many):
        assert np.isfinite(result).all()
        assert result.min() >= 0
        assert result.max() <= 1 + 1e-6
    np.testing.assert_allclose(many.sum(0), 1, rtol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_flat_scores_stay_flat(size):
    crf = DenseCRF(np.full((*size, 3), 90, np.uint8))
    np.testing.assert_allclose(crf.binary(np.full((1, 2, *size), 0.3)), 0.5, atol=1e-6)
    np.testing.assert_allclose(crf.multilabel(np.ones((4, *size))), 0.25, atol=1e-6)


def test_no_problems_and_one_label():
    crf = DenseCRF(np.zeros((3, 4, 3), np.uint8))
    assert crf.binary(np.zeros((0, 2, 3, 4))).shape == (0, 3, 4)
    assert crf.filter(np.zeros((0, 3, 4))).shape == (0, 3, 4)
    np.testing.assert_array_equal(crf.multilabel(np.full((1, 3, 4), 0.2)), 1)


def test_kernels_shared_between_problems_change_nothing(photo):
    image, _ = photo(12, 17)
    scores = np.random.default_rng(0).random((3, 2, 12, 17))
    shared = DenseCRF(image)
    together = shared.binary(scores)
    alone = np.concatenate([DenseCRF(image).binary(problem[None]) for problem in scores])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    np.testing.assert_array_equal(shared.binary(scores), together)
    np.testing.assert_allclose(shared.multilabel(scores[0])[1], together[0], atol=1e-5)


def test_exchanging_background_and_foreground_exchanges_probabilities(photo):
    image, _ = photo(9, 9)
    scores = np.random.default_rng(0).random((2, 2, 9, 9))
    crf = DenseCRF(image)
    np.testing.assert_allclose(crf.binary(scores[:, ::-1]), 1 - crf.binary(scores), atol=1e-5)


@pytest.mark.parametrize("preset", PRESETS)
def test_masks_agree_with_all_pairs_mean_field(preset, photo, brute_crf):
    # The lattice approximates the kernels, so it is the decision that must agree, wherever that is not on the fence.
    image, _ = photo(6, 6)
    scores = np.random.default_rng(0).uniform(0.05, 1, (4, 2, 6, 6))
    exact = brute_crf(image, PRESETS[preset]).binary(scores)
    fast = DenseCRF(image, preset=preset).binary(scores)
    sure = np.abs(exact - 0.5) > 0.1
    assert sure.mean() > 0.9
    np.testing.assert_array_equal(fast[sure] > 0.5, exact[sure] > 0.5)


def test_the_crf_moves_a_seed_to_the_edge_of_its_colour(photo):
    image, inside = photo(24, 24)
    foreground = np.where(np.arange(24)[None, :].repeat(24, 0) < 8, 0.9, 0.3)
    refined = DenseCRF(image).binary(np.stack([1 - foreground, foreground])[None])[0]
    np.testing.assert_array_equal(refined > 0.5, inside)


def test_views_that_cannot_be_written_are_fine_and_stay_as_they_are(photo):
    image, _ = photo(8, 10)
    transposed = np.asfortranarray(image)
    scores = np.random.default_rng(0).random((8, 10, 2, 3)).transpose(3, 2, 0, 1)
    before = scores.copy()
    for array in (image, transposed, scores):
        array.setflags(write=False)
    np.testing.assert_array_equal(DenseCRF(transposed).binary(scores), DenseCRF(image).binary(before))
    np.testing.assert_array_equal(scores, before)


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 5), np.uint8), np.zeros((4, 5, 4), np.uint8), np.zeros((4, 5, 3)), np.zeros((0, 5, 3), np.uint8)],
)
def test_an_image_that_is_not_rgb_uint8_is_refused(image):
    with pytest.raises(ValueError, match=r"\(H, W, 3\) uint8 RGB"):
        DenseCRF(image)


def test_what_happens_to_the_image_later_does_not_matter(photo):
    image, _ = photo(8, 10)
    scores = np.random.default_rng(0).random((1, 2, 8, 10))
    expected = DenseCRF(image).binary(scores)
    crf = DenseCRF(image)
    image[:] = 0
    np.testing.assert_array_equal(crf.binary(scores), expected)


def test_images_of_one_size_share_the_kernel_in_position(photo):
    crf_module._gaussian_kernel.cache_clear()
    scores = np.random.default_rng(0).random((1, 2, 8, 11))
    for seed in range(3):
        DenseCRF(photo(8, 11, seed)[0]).binary(scores)
    DenseCRF(photo(11, 8)[0]).binary(scores.transpose(0, 1, 3, 2))
    assert crf_module._gaussian_kernel.cache_info()[:2] == (2, 2)


def test_kernels_of_enormous_images_are_not_kept(photo, monkeypatch):
    image, _ = photo(8, 11)
    scores = np.random.default_rng(0).random((1, 2, 8, 11))
    expected = DenseCRF(image).binary(scores)
    monkeypatch.setattr(crf_module, "_CACHED_PIXELS", 87)
    crf_module._gaussian_kernel.cache_clear()
    np.testing.assert_array_equal(DenseCRF(image).binary(scores), expected)
    assert crf_module._gaussian_kernel.cache_info().currsize == 0


@pytest.mark.parametrize(("labels", "problems"), [(8, 1), (5, 3), (19, 8)])
def test_compiling_ahead_leaves_nothing_to_compile(labels, problems):
    script = f"""
import numpy as np
from pmm_ray.masks import lattice, meanfield
from pmm_ray.masks.crf import DenseCRF, compile_engine
def compiled():
    each = [*vars(lattice).values(), *vars(meanfield).values()]
    return sum(len(function.signatures) for function in each if hasattr(function, "signatures"))
before = compiled()
compile_engine(labels={labels}, problems={problems})
ready = compiled()
crf = DenseCRF(np.zeros((20, 31, 3), np.uint8), preset="rrm_infer")
for count in range(1, 18):
    crf.binary(np.ones((count, 2, 20, 31)))
for labels in range(1, {labels} + 1):
    for problems in range(1, {problems} + 1):
        crf.multilabel(np.ones((problems, labels, 20, 31)))
print(before, ready > 0, compiled() - ready)
"""
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["0", "True", "0"]


def test_a_backend_that_is_not_installed_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    with pytest.raises(ImportError, match="pip install pydensecrf2"):
        DenseCRF(np.zeros((2, 2, 3), np.uint8), backend="pydensecrf")


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="no CRF backend 'gpu'"):
        DenseCRF(np.zeros((2, 2, 3), np.uint8), backend="gpu")


def test_scores_of_another_shape_are_refused():
    crf = DenseCRF(np.zeros((2, 3, 3), np.uint8))
    for shape in [(2, 2, 3), (1, 3, 2, 3), (1, 2, 3, 2)]:
        with pytest.raises(ValueError, match=r"must be \(K, 2, 2, 3\)"):
            crf.binary(np.zeros(shape))
    for shape in [(0, 2, 3), (2, 3, 2), (2, 3)]:
        with pytest.raises(ValueError, match=r"must be \(L, 2, 3\)"):
            crf.multilabel(np.zeros(shape))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.1])
def test_scores_that_are_no_scores_are_refused(bad):
    crf = DenseCRF(np.zeros((2, 3, 3), np.uint8))
    with pytest.raises(ValueError, match="finite and non-negative"):
        crf.multilabel(np.full((2, 2, 3), bad))


def test_a_crf_may_be_named_given_by_constants_or_ready_made():
    image = np.zeros((2, 3, 3), np.uint8)
    assert crf_on(image, "irn", shape=(2, 3)).params == PRESETS["irn"]
    assert crf_on(image, PRESETS["irn"], shape=(2, 3)).params == PRESETS["irn"]
    ready = DenseCRF(image)
    assert crf_on(image, ready, shape=(2, 3)) is ready


def test_sizes_that_differ_are_both_named():
    image = np.zeros((2, 3, 3), np.uint8)
    with pytest.raises(ValueError, match="the CAM is 4 x 5 pixels, its image 2 x 3"):
        crf_on(image, "ppg", shape=(4, 5))
    with pytest.raises(ValueError, match="the CAM is 2 x 3 pixels, but the CRF was made of an image of 4 x 5"):
        crf_on(image, DenseCRF(np.zeros((4, 5, 3), np.uint8)), shape=(2, 3))
