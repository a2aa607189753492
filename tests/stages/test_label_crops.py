"""Labels of training crops."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from pmm_ray.config import CrfConfig, ReliableConfig
from pmm_ray.masks.crf import PRESETS
from pmm_ray.masks.reliable import reliable_labels
from pmm_ray.stages.label_crops import Labeller, label_crop, label_maker, masks_of

MAKE = label_maker(ReliableConfig())


def crop(seed: int = 0, side: int = 32):
    """A noisy picture (side, side, 3) of two halves, a CAM (1, side, side) not normalised, and what is photo."""
    rng = np.random.default_rng(seed)
    left = np.arange(side)[None, :, None] < side // 2
    image = np.clip(np.where(left, (200, 60, 40), (40, 90, 180)) + rng.integers(-9, 10, (side, side, 3)), 0, 255)
    cam = np.where(left[..., 0], 5.0, 0.01) * rng.uniform(0.5, 1, (side, side))
    inside = np.zeros((side, side), bool)
    inside[3:, : side - 6] = True
    return image.astype(np.uint8), cam[None].astype(np.float32), inside


def test_what_was_filled_in_is_255_and_changes_nothing_else():
    image, cam, inside = crop()
    found = label_crop(image, cam, (2,), inside, MAKE)
    assert (found.mask[~inside] == 255).all() and {0, 2} <= set(np.unique(found.mask[inside]))
    other_image, other_cam = image.copy(), cam.copy()
    other_image[~inside], other_cam[:, ~inside] = (200, 60, 40), 100.0
    again = label_crop(other_image, other_cam, (2,), inside, MAKE)
    np.testing.assert_array_equal(found.mask, again.mask)
    np.testing.assert_array_equal(found.cam, again.cam)


def test_the_labels_are_those_of_the_photo_in_it_with_its_cam_divided_by_the_maximum_there():
    image, cam, inside = crop()
    found = label_crop(image, cam, (2,), inside, MAKE)
    part = cam[:, 3:, :-6]
    expected = reliable_labels(image[3:, :-6].copy(), part / part.max(), (2,))
    np.testing.assert_array_equal(found.mask[3:, :-6], expected)
    assert found.cam[:, 3:, :-6].max() == 1 and found.cam[:, :3].max() == 0


def test_a_cam_that_is_no_number_and_a_crop_without_photo_label_nothing():
    image, cam, inside = crop()
    assert (label_crop(image, cam, (2,), np.zeros_like(inside), MAKE).mask == 255).all()
    cam[0, 9, 9] = np.nan
    assert (label_crop(image, cam, (2,), inside, MAKE).mask == 255).all()


def test_the_settings_reach_the_rule():
    image, cam, inside = crop()
    plain = label_maker(ReliableConfig(rule="crf"))
    assert (label_crop(image, cam, (2,), inside, plain).mask[inside] != 255).all()
    few = label_maker(ReliableConfig(top_share=0.01))
    shares = [(label_crop(image, cam, (2,), inside, make).mask == 2).mean() for make in (few, MAKE)]
    assert 0 < shares[0] < shares[1]


def test_every_setting_reaches_the_rule(monkeypatch):
    seen = {}

    def rule(image, cam, class_ids, **given):
        seen.update(given)
        return np.zeros(image.shape[:2], np.uint8)

    monkeypatch.setattr("pmm_ray.stages.label_crops.reliable_labels", rule)
    numbers = {
        "rule": "agreement",
        "cam_alpha": 3.0,
        "foreground_alpha": 5.0,
        "background_alpha": 7.0,
        "min_score": 0.2,
        "top_share": 0.3,
        "min_background": 0.6,
        "min_probability": 0.7,
    }
    assert all(ReliableConfig.model_fields[name].default != value for name, value in numbers.items())
    image, cam, _ = crop()
    label_maker(ReliableConfig(**numbers, crf=CrfConfig(preset="irn")))(image, cam, (2,))
    assert seen.pop("crf").params == PRESETS["irn"] and seen == numbers


def test_a_batch_on_threads_is_what_its_crops_are_one_by_one():
    crops = [crop(seed) for seed in range(5)]
    ids = [(1,), (2,), (1,), (), (3,)]
    images = torch.from_numpy(np.stack([image for image, _, _ in crops])).movedim(-1, 1)
    cams = [torch.from_numpy(cam[: len(k)]) for (_, cam, _), k in zip(crops, ids, strict=True)]
    inside = torch.from_numpy(np.stack([area for _, _, area in crops]))
    with ThreadPoolExecutor(3) as pool:
        begun = Labeller(MAKE, pool).begin(images, cams, ids, inside)
        masks = masks_of([future.result() for future in begun], torch.device("cpu"))
    assert masks.dtype == torch.int64
    for mask, (image, cam, area), k in zip(masks, crops, ids, strict=True):
        np.testing.assert_array_equal(mask, label_crop(image, cam[: len(k)], k, area, MAKE).mask)
    assert set(masks[3].unique().tolist()) == {0, 255}  # no label: background, and what was filled in
