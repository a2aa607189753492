"""Many settings on one image against each of them alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pmm_ray.masks.baseline import baseline_mask
from pmm_ray.masks.cam import threshold_mask
from pmm_ray.masks.crf import PRESETS, CrfParams, DenseCRF
from pmm_ray.masks.cvs import smooth_checked
from pmm_ray.masks.laplacian import laplacian
from pmm_ray.masks.makers import MaskSetting, MattingSetting, pseudo_masks
from pmm_ray.masks.matting import Matting, matting_mask, merge_mattes
from pmm_ray.masks.ppg import proportional_pseudo_mask
from pmm_ray.masks.steps import finish
from pmm_ray.masks.trimap import certain_shares, crf_trimap_steps

PLAIN = MaskSetting(
    maker="ppg", cvs=True, s=0.3, t=0.05, gate=True, alpha=11, proportion=True, eps=1, tie="background",
    threshold=0.2, crf=PRESETS["ppg"],
)  # fmt: skip


def alone(image, cam, ids, setting: MaskSetting) -> np.ndarray:
    """The setting's mask by the plain functions."""
    if setting.maker == "ppg":
        names = ("cvs", "s", "t", "gate", "alpha", "proportion", "eps", "tie", "crf")
        return proportional_pseudo_mask(image, cam, ids, **{name: getattr(setting, name) for name in names})
    assert not setting.cvs
    if setting.maker == "baseline":
        return baseline_mask(image, cam, ids, alpha=setting.alpha, crf=setting.crf)
    return threshold_mask(cam, ids, threshold=setting.threshold)


def drawn(count: int) -> list[MaskSetting]:
    """Settings that differ in everything, some in the CRF's widths too."""
    rng = np.random.default_rng(0)
    settings = []
    for i in range(count):
        maker = ("ppg", "baseline", "ppg", "threshold", "ppg")[i % 5]
        crf = replace(
            PRESETS[("ppg", "irn", "ppg")[i % 3]],
            gaussian_compat=float(rng.uniform(0, 10)),
            bilateral_compat=float(rng.uniform(1, 12)),
        )
        changes = {"s": rng.uniform(0, 1), "t": rng.uniform(0, 0.3), "alpha": rng.uniform(0.5, 20), "crf": crf}
        cvs = maker == "ppg" and bool(i % 2)
        settings.append(replace(PLAIN, maker=maker, cvs=cvs, proportion=bool(i % 7), **changes))
    return settings


@pytest.mark.parametrize("classes", [0, 1, 2, 3, 5])
def test_many_settings_at_once_make_the_masks_of_each_alone(photo, classes):
    image, _ = photo(40, 56)
    rng = np.random.default_rng(classes)
    y, x = np.mgrid[:40, :56]
    centres = rng.random((classes, 2)) * (40, 56)
    cam = np.array([np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 150) for cy, cx in centres]).reshape(classes, 40, 56)
    ids, settings = list(range(9, 9 - classes, -1)), drawn(23)
    found = {index: made.mask for index, made in pseudo_masks(image, cam, ids, settings)}
    assert sorted(found) == list(range(23))
    for index, setting in enumerate(settings):
        expected = alone(image, cam, ids, setting)
        assert (found[index] == expected).mean() >= 0.999, setting
    if classes:
        assert len({mask.tobytes() for mask in found.values()}) > 10


def test_each_of_any_number_of_settings_has_its_own_kernel_weights(photo):
    image, _ = photo(40, 56)
    y, x = np.mgrid[:40, :56]
    cam = np.exp(-((y - 20) ** 2 + (x - 28) ** 2) / 150)[None]
    # eight are solved at a time, so that the ninth is alone
    settings = [replace(PLAIN, crf=replace(PLAIN.crf, gaussian_compat=float(weight))) for weight in range(0, 18, 2)]
    found = {index: made.mask for index, made in pseudo_masks(image, cam, [1], settings)}
    for index, setting in enumerate(settings):
        assert (found[index] == alone(image, cam, [1], setting)).mean() >= 0.999, index
    assert (found[0] != found[8]).mean() > 0.01


def test_one_setting_is_exactly_its_plain_function(photo):
    image, cam = photo(24, 32)[0], np.random.default_rng(0).random((2, 24, 32))
    ((index, made),) = pseudo_masks(image, cam, [3, 1], [PLAIN])
    assert index == 0
    np.testing.assert_array_equal(made.mask, proportional_pseudo_mask(image, cam, [3, 1]))


def test_a_lattice_is_built_once_for_all_settings_of_equal_widths(photo, monkeypatch):
    image, cam = photo(16, 16)[0], np.random.default_rng(0).random((1, 16, 16))
    built = []
    monkeypatch.setattr("pmm_ray.masks.makers.DenseCRF", lambda *a, **k: built.append(k["params"]) or DenseCRF(*a, **k))
    list(pseudo_masks(image, cam, [1], [replace(PLAIN, alpha=alpha) for alpha in range(1, 30)]))
    assert len(built) == 1
    wider: CrfParams = replace(PRESETS["ppg"], bilateral_srgb=20)
    list(pseudo_masks(image, cam, [1], [PLAIN, replace(PLAIN, crf=wider), replace(PLAIN, s=0)]))
    assert len(built) == 3


def test_each_problem_may_have_its_own_kernel_weights(photo):
    image, _ = photo(24, 32)
    rng = np.random.default_rng(0)
    two, many = rng.random((11, 2, 24, 32)), rng.random((5, 3, 24, 32))
    weights = np.stack([rng.uniform(0, 8, 11), rng.uniform(0, 8, 11)], axis=1)
    crf = DenseCRF(image)
    found, found_many = crf.binary(two, weights=weights), crf.multilabel(many, weights=weights[:5])
    for i, (gaussian, bilateral) in enumerate(weights):
        own = DenseCRF(image, params=replace(crf.params, gaussian_compat=gaussian, bilateral_compat=bilateral))
        np.testing.assert_allclose(found[i], own.binary(two[i : i + 1])[0], atol=1e-3)
        if i < 5:
            np.testing.assert_allclose(found_many[i], own.multilabel(many[i]), atol=1e-3)
    with pytest.raises(ValueError, match="11 CRF problems need as many pairs of finite weights"):
        crf.binary(two, weights=weights[:3])
    with pytest.raises(ValueError, match="finite weights >= 0"):
        crf.multilabel(many, weights=-weights[:5])


def test_a_cam_of_another_size_than_its_image_is_refused(photo):
    with pytest.raises(ValueError, match="resize the CAM to the image"):
        list(pseudo_masks(photo(8, 9)[0], np.zeros((1, 9, 8)), [1], [PLAIN]))


MATTING = MattingSetting(
    source="cam", high=0.6, low=0.3, foreground_alpha=4, background_alpha=32, min_probability=0.6,
    kind="closed_form", epsilon=1e-4, size=320, margin=0.1,
)  # fmt: skip
MATTED = replace(PLAIN, maker="matting", cvs=False, crf=PRESETS["rrm_train"], matting=MATTING)


def blobs(classes: int) -> np.ndarray:
    y, x = np.mgrid[:24, :32]
    centres = ((12, 6), (8, 26), (20, 18))[:classes]
    return np.array([np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 60) for cy, cx in centres]).reshape(-1, 24, 32)


@pytest.mark.parametrize("classes", [0, 1, 3])
def test_matting_among_many_settings_makes_the_mask_it_makes_alone(photo, classes):
    image, cam, ids = photo(24, 32)[0], blobs(classes).astype(np.float32), [3, 5, 9][:classes]
    numbers = {"foreground_alpha": 1, "background_alpha": 9, "min_probability": 0.97}
    of_crf = replace(MATTED, cvs=True, s=0.9, t=0.1, matting=replace(MATTING, source="crf", **numbers))
    settings = [PLAIN, MATTED, of_crf, replace(PLAIN, maker="baseline", cvs=False, crf=PRESETS["rrm_train"]),
                replace(MATTED, matting=replace(MATTING, high=0.8, kind="random_walk", margin=0)),
                replace(MATTED, matting=replace(MATTING, size=16)),
                replace(MATTED, matting=replace(MATTING, epsilon=0.1))]  # fmt: skip
    found = dict(pseudo_masks(image, cam, ids, settings))
    assert sorted(found) == list(range(7))
    options = {"high": 0.6, "low": 0.3}
    np.testing.assert_array_equal(found[1].mask, matting_mask(image, cam, ids, **options))
    np.testing.assert_array_equal(
        found[4].mask, matting_mask(image, cam, ids, high=0.8, low=0.3, kind="random_walk", margin=0)
    )
    np.testing.assert_array_equal(found[5].mask, matting_mask(image, cam, ids, **options, size=16))
    np.testing.assert_array_equal(found[6].mask, matting_mask(image, cam, ids, **options, epsilon=0.1))
    labels = np.array([0, *ids], np.uint8)
    smoothed = smooth_checked(cam, s=0.9, t=0.1, gate=True)
    trimap = finish(crf_trimap_steps(smoothed, labels, **numbers), DenseCRF(image, preset="rrm_train"))
    mattes = Matting(image, kind="closed_form", epsilon=1e-4, size=320).mattes(trimap, smoothed, labels)
    expected = merge_mattes(mattes.alpha, labels, margin=0.1)
    assert (found[2].mask == expected).mean() > 0.99 and (found[2].trimap == trimap).mean() > 0.99
    assert found[2].certain == pytest.approx(certain_shares(trimap, labels).tolist(), abs=0.01)
    assert found[2].fell_back == tuple(labels[1:][mattes.fell_back].tolist())
    assert found[0].certain is None and found[3].certain is None and len(found[1].certain) == classes + 1


def test_matting_settings_that_differ_in_the_trimap_share_one_laplacian_and_need_no_lattice(photo, monkeypatch):
    image, cam, made, lattices = photo(24, 32)[0], blobs(2), [], []
    monkeypatch.setattr("pmm_ray.masks.matting.laplacian", lambda *a, **k: made.append(k) or laplacian(*a, **k))
    monkeypatch.setattr("pmm_ray.masks.makers.DenseCRF", lambda *a, **k: lattices.append(k) or DenseCRF(*a, **k))
    highs = [replace(MATTED, matting=replace(MATTING, high=high)) for high in (0.5, 0.6, 0.7, 0.8)]
    list(pseudo_masks(image, cam, [1, 2], [*highs, replace(MATTED, cvs=True)]))
    assert (len(made), len(lattices)) == (1, 0)
    knn = replace(MATTED, matting=replace(MATTING, kind="knn"))
    list(pseudo_masks(image, cam, [1, 2], [MATTED, knn, replace(MATTED, matting=replace(MATTING, source="crf"))]))
    assert (len(made), len(lattices)) == (3, 1)


def test_numbers_of_matting_do_not_matter_to_another_maker(photo):
    image, cam = photo(24, 32)[0], blobs(2).astype(np.float32)
    found = dict(pseudo_masks(image, cam, [1, 2], [PLAIN, replace(PLAIN, matting=MATTING)]))
    np.testing.assert_array_equal(found[0].mask, found[1].mask)
    assert found[1].certain is None


def test_a_class_that_falls_back_is_named(photo):
    image, cam = photo(24, 32)[0], np.stack([blobs(1)[0], 0.5 * blobs(1)[0]])
    ((_, made),) = pseudo_masks(image, cam, [9, 4], [MATTED])
    assert made.fell_back == (4,)
    with pytest.raises(ValueError, match="needs a MattingSetting"):
        replace(PLAIN, maker="matting")
    with pytest.raises(ValueError, match="resize the CAM to the image"):
        list(pseudo_masks(photo(8, 9)[0], np.zeros((1, 9, 8)), [1], [MATTED]))
