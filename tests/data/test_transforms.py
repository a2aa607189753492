import numpy as np
import pytest
import torch

from pmm_ray.data.transforms import Augment, crop_with_labels


def augment(**changes) -> Augment:
    return Augment(**({"crop": 32, "resize": (0.5, 1.5), "flip": True, "jitter": 0.0, "fill": (9, 9, 9)} | changes))


def test_mask_and_image_move_together_and_the_mask_gets_no_new_ids():
    mask = np.zeros((40, 50), np.uint8)
    mask[10:30, 20:40] = 7
    image = np.repeat(mask[:, :, None] * 30, 3, axis=2)
    for seed in range(20):
        torch.manual_seed(seed)
        crop, crop_mask = augment()(image, mask)
        assert crop.shape == (3, 32, 32) and crop_mask.shape == (32, 32) and crop.dtype == torch.uint8
        assert set(crop_mask.unique().tolist()) <= {0, 7, 255}
        inside = crop_mask != 255
        agreement = ((crop[0] > 105) == (crop_mask == 7))[inside].float().mean()
        assert agreement > 0.9  # all but the blurred rim


@pytest.mark.parametrize("sides", [(375, 500), (64, 48), (101, 101)])
def test_resized_masks_lie_where_the_image_does(sides):
    height, width = sides
    off = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        mask = np.zeros(sides, np.uint8)
        mask[rng.integers(height // 4, height // 2) :, rng.integers(width // 4, width // 2) :] = 1
        torch.manual_seed(seed)
        image, found = augment(crop=64, resize=(0.5, 1.5)).resized(200 * np.repeat(mask[..., None], 3, axis=2), mask)
        share = image[0] / 200
        off.append([share[:, -1].sum() - found[:, -1].sum(), share[-1].sum() - found[-1].sum()])
    # where the area ends down and across, in pixels: within half of one, and on neither side in the mean
    off = np.array(off)
    assert np.abs(off).max() < 0.55 and np.abs(off.mean(axis=0)).max() < 0.15


def test_a_photo_made_smaller_is_a_mean_of_its_pixels():
    image = np.zeros((128, 128, 3), np.uint8)
    image[:, ::4] = 200  # a quarter of it, between the pixels that a quarter of the size looks at
    small, _ = augment(crop=32, resize=(1.0, 1.0)).resized(image, image[..., 0])
    assert set(small[:, :, 2:-2].unique().tolist()) == {50}


def test_what_lies_beyond_the_image_is_the_mean_colour_and_ignored():
    image, mask = np.full((10, 10, 3), 200, np.uint8), np.zeros((10, 10), np.uint8)
    crop, crop_mask = augment(resize=(0.5, 0.5))(image, mask)
    assert (crop_mask == 255).sum() == 32 * 32 - 16 * 16
    assert torch.equal(crop[0] == 9, crop_mask == 255)


def test_short_side_is_in_the_range_and_both_ends_occur():
    sides = set()
    for seed in range(200):
        torch.manual_seed(seed)
        large, _ = augment(crop=32, resize=(0.9, 1.1)).resized(
            np.zeros((20, 30, 3), np.uint8), np.zeros((20, 30), np.uint8)
        )
        sides.add(min(large.shape[-2:]))
    assert min(sides) == 29 and max(sides) == 35


def seen(photo: np.ndarray, **changes) -> list[torch.Tensor]:
    """The whole photo under thirty seeds."""
    found = []
    for seed in range(30):
        torch.manual_seed(seed)
        found.append(augment(resize=(1.0, 1.0), **changes)(photo, np.zeros(photo.shape[:2], np.uint8))[0])
    return found


def test_photos_are_flipped_now_and_then_and_only_if_they_may_be():
    photo = np.zeros((32, 32, 3), np.uint8)
    photo[:, :16] = 200
    assert {image[0, 0, 0].item() for image in seen(photo, flip=True)} == {0, 200}
    assert {image[0, 0, 0].item() for image in seen(photo, flip=False)} == {200}


def test_jitter_changes_brightness_contrast_and_saturation_and_none_leaves_colours_alone():
    photo = np.zeros((32, 32, 3), np.uint8)
    photo[:, :16], photo[:, 16:] = (200, 100, 50), (100, 90, 80)
    plain = torch.from_numpy(photo).movedim(-1, 0)
    assert all(torch.equal(image, plain) for image in seen(photo, flip=False))
    found = [image.float() for image in seen(photo, flip=False, jitter=0.4)]
    means = torch.tensor([image.mean() for image in found])
    contrasts = torch.tensor([(image[0, 0, 0] - image[0, 0, 31]) / image.mean() for image in found])
    # red over blue, which brightness alone does not change
    saturations = torch.tensor([image[0, 0, 0] / image[2, 0, 0].clamp(min=1) for image in found])
    assert means.std() > 5 and contrasts.std() > 0.1 and saturations.std() > 0.5


def test_equal_seeds_give_equal_crops():
    image = np.random.default_rng(0).integers(0, 255, (50, 60, 3), dtype=np.uint8)
    crops = []
    for _ in range(2):
        torch.manual_seed(5)
        crops.append(augment(jitter=0.4)(image, np.zeros((50, 60), np.uint8))[0])
    assert torch.equal(*crops)


ROUGH = np.zeros((40, 80), np.uint8)
ROUGH[:, 70:] = 3  # at the right edge
ROUGH[0:2, 0:2] = 5  # a tiny object at the left


@pytest.mark.parametrize("seed", range(10))
def test_a_crop_keeps_exactly_the_labels_it_shows_enough_of(seed):
    torch.manual_seed(seed)
    image = np.repeat(ROUGH[:, :, None] * 40, 3, axis=2)
    cut = augment(crop=40, resize=(1.0, 1.0), flip=False)
    crop, _, kept = crop_with_labels(cut, image, (3, 5), ROUGH, share=0.1)
    columns = int((crop[0] == 120).any(dim=0).sum())
    assert (3 in kept) == (columns > 1)  # more than a tenth of ten columns
    assert (5 in kept) == bool((crop[0] == 200).any())


def test_an_object_covering_enough_of_the_crop_counts_however_little_of_it_is_inside():
    everywhere = np.full((400, 400), 3, np.uint8)
    image = np.zeros((400, 400, 3), np.uint8)
    cut = augment(crop=32, resize=(12.0, 12.0))
    assert crop_with_labels(cut, image, (3,), everywhere, share=0.5)[2] == (3,)


def test_an_object_that_covers_too_little_of_the_crop_and_has_too_little_inside_goes():
    some = np.zeros((400, 400), np.uint8)
    some[::3] = 3  # a third of any crop, which is a hundredth of all
    cut, photo = augment(crop=40, resize=(10.0, 10.0)), np.zeros((400, 400, 3), np.uint8)
    assert crop_with_labels(cut, photo, (3,), some, share=0.25)[2] == (3,)
    assert crop_with_labels(cut, photo, (3,), some, share=0.5)[2] == ()


def test_what_lies_beyond_a_small_photo_is_part_of_the_crop_that_an_object_covers():
    some = np.zeros((20, 400), np.uint8)
    some[:5] = 3  # of any crop of 40 x 40 a quarter of its half that is photo; a tenth of the object is inside
    cut, photo = augment(crop=40, resize=(0.5, 0.5)), np.zeros((20, 400, 3), np.uint8)
    kept = [crop_with_labels(cut, photo, (3,), some, share=share)[2] for share in (0.12, 0.13)]
    assert kept == [(3,), ()]


def test_a_crop_without_labels_is_drawn_again():
    half = np.zeros((40, 400), np.uint8)
    half[:, 300:] = 3
    cut, photo = augment(crop=40, resize=(1.0, 1.0)), np.zeros((40, 400, 3), np.uint8)
    kept = 0
    for seed in range(40):
        torch.manual_seed(seed)
        kept += bool(crop_with_labels(cut, photo, (3,), half, share=0.1)[2])
    # one draw finds it in a third of all cases, ten draws in 98 of 100
    assert kept >= 37


def test_a_label_the_rough_mask_shows_nowhere_stays():
    cut = augment(crop=40, resize=(1.0, 1.0))
    assert 9 in crop_with_labels(cut, np.zeros((40, 80, 3), np.uint8), (9,), ROUGH, share=0.1)[2]


def test_a_crop_that_never_finds_its_object_is_background():
    far = np.zeros((1000, 1000), np.uint8)
    far[0, 0] = 4
    torch.manual_seed(0)
    cut = augment(crop=32, resize=(1000 / 32, 1000 / 32))
    assert crop_with_labels(cut, np.zeros((1000, 1000, 3), np.uint8), (4,), far, share=0.1)[2] == ()
