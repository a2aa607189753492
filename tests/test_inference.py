"""Averaging over scales, mirror images and crops."""

import weakref

import pytest
import torch
from torch.nn import functional as F

from pmm_ray.inference import View, average, crop_starts, crop_views, scaled_size, shrunk, whole_views
from pmm_ray.nets.inputs import resize

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def photo(height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


def pooled(batch: torch.Tensor) -> torch.Tensor:
    """A network that treats left and right alike: maps of a quarter of the size, two channels."""
    small = F.avg_pool2d(batch, 4)
    return torch.stack([small.mean(dim=1), small.amax(dim=1)], dim=1)


def run(forward, images, views, targets=None, channels=None, batch_size=4, **numbers):
    return average(
        forward,
        images,
        views,
        channels=channels or [None] * len(images),
        targets=targets or [tuple(image.shape[1:]) for image in images],
        batch_size=batch_size,
        **{**PLAIN, **numbers},
    )


def test_scale_1_is_the_images_own_size_or_its_short_side_is_given():
    assert scaled_size((100, 150), scale=1.0, short_side=None) == (100, 150)
    assert scaled_size((100, 150), scale=1.5, short_side=None) == (150, 225)
    assert scaled_size((100, 150), scale=1.0, short_side=50) == (50, 75)
    assert scaled_size((150, 100), scale=2.0, short_side=50) == (150, 100)


def test_only_a_photo_whose_short_side_is_beyond_the_limit_is_shrunk():
    for size in ((40, 60), (60, 40), (30, 400)):
        image = photo(*size)
        assert shrunk(image, max_short_side=40) is image and shrunk(image, max_short_side=None) is image
    assert shrunk(photo(80, 120), max_short_side=40).shape == (3, 40, 60)
    assert shrunk(photo(121, 80), max_short_side=40).shape == (3, 60, 40)


def test_a_shrunk_photo_lies_where_the_photo_lies_and_is_not_aliased():
    across = (torch.arange(160.0) + 0.5).expand(3, 120, -1)
    found = shrunk(across.byte(), max_short_side=30)
    assert found.dtype == torch.uint8
    # away from the sides, where the filter is cut off
    expected = (torch.arange(40.0) + 0.5) * 4
    torch.testing.assert_close(found[0, 15, 2:-2].float(), expected[2:-2], rtol=0, atol=1.0)
    board = (torch.arange(120)[:, None] + torch.arange(160)) % 2 * 255
    grey = shrunk(board.expand(3, -1, -1).byte(), max_short_side=30).float()
    torch.testing.assert_close(grey, torch.full_like(grey, 127.5), rtol=0, atol=3.0)


def test_one_scale_of_a_mirror_symmetric_network_is_the_network_itself():
    image = photo(32, 48)
    views = whole_views(0, (32, 48), scales=(1.0,), flip=True)
    (found,) = run(pooled, [image], views, targets=[(8, 12)])
    torch.testing.assert_close(found, pooled(image[None].float() / 255)[0])


def test_several_scales_are_the_mean_of_each_resized_to_the_target():
    image = photo(32, 48)
    views = whole_views(0, (32, 48), scales=(0.5, 1.0, 2.0), flip=True)
    (found,) = run(pooled, [image], views, targets=[(16, 24)])
    expected = torch.zeros(2, 16, 24)
    for height, width in ((16, 24), (32, 48), (64, 96)):
        small = height < 32
        scaled = F.interpolate(image[None].float() / 255, (height, width), mode="bilinear", antialias=small)
        expected += F.interpolate(pooled(scaled), (16, 24), mode="bilinear")[0] / 3
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("size", [(4, 16), (16, 4)])
def test_maps_that_shrink_along_one_side_only_are_not_aliased(size):
    for start in range(4):  # plain interpolation would see every other one of these rows and columns, or none
        lines = torch.zeros(1, 1, 16, 16)
        lines[:, :, start::4, start::4] = 1.0
        assert float(resize(lines, size).mean()) == pytest.approx(1 / 16, rel=0.2)


def test_a_one_sided_network_is_made_symmetric_by_the_mirror_image():
    def leftmost(batch):
        ramp = torch.linspace(0, 1, batch.shape[-1]).expand(len(batch), 1, batch.shape[-2], -1)
        return ramp

    views = whole_views(0, (8, 10), scales=(1.0,), flip=True)
    (found,) = run(leftmost, [photo(8, 10)], views)
    torch.testing.assert_close(found, torch.full((1, 8, 10), 0.5))


@pytest.mark.parametrize(("height", "width"), [(100, 150), (30, 200), (64, 64), (31, 17)])
@pytest.mark.parametrize("stride", [24, 64, 100])
def test_crops_cover_every_pixel_and_stay_inside(height, width, stride):
    views = crop_views(0, (height, width), scales=(1.0, 1.7), flip=False, window=64, stride=stride)
    for scale in (0, 1):
        mine = [view for view in views if view.scale == scale]
        covered = torch.zeros(mine[0].size, dtype=torch.bool)
        for view in mine:
            bottom, right = view.top + 64, view.left + 64
            assert bottom <= max(64, view.size[0])
            assert right <= max(64, view.size[1])
            covered[view.top : bottom, view.left : right] = True
        assert covered.all()


def test_the_last_crop_ends_where_the_side_ends():
    assert crop_starts(500, window=448, stride=300) == [0, 52]
    assert crop_starts(1500, window=448, stride=300) == [0, 300, 600, 900, 1052]
    assert crop_starts(448, window=448, stride=300) == [0]
    assert crop_starts(748, window=448, stride=300) == [0, 300]
    assert crop_starts(200, window=448, stride=300) == [0]


def test_a_voc_photo_in_the_published_multi_crop_mode_has_174_views():
    scales = tuple(0.75 + 0.25 * k for k in range(10))
    views = crop_views(0, (375, 500), scales=scales, flip=True, window=448, stride=300)
    assert len(views) == 174


def test_a_constant_network_gives_a_constant_whatever_the_overlap():
    def constant(batch):
        return batch.new_full((len(batch), 1, 4, 4), 3.25)

    views = crop_views(0, (50, 70), scales=(0.5, 1.0, 2.0), flip=True, window=32, stride=20)
    (found,) = run(constant, [photo(50, 70)], views, targets=[(13, 18)])
    torch.testing.assert_close(found, torch.full((1, 13, 18), 3.25))


def test_crops_of_a_pointwise_network_agree_with_the_whole_image():
    def pointwise(batch):
        return batch.mean(dim=1, keepdim=True)

    image = photo(50, 70)
    crops = crop_views(0, (50, 70), scales=(1.0,), flip=True, window=32, stride=20)
    (found,) = run(pointwise, [image], crops)
    torch.testing.assert_close(found, (image.float() / 255).mean(dim=0, keepdim=True))


def test_each_scale_counts_the_same_however_many_crops_it_has():
    def side(batch):
        """0 on the image, which is black, at scale 1 (padded: the window is larger), 1 without padding."""
        padded = (batch[:, :, -1, -1] == 5).all(dim=1).float()
        return (1 - padded)[:, None, None, None].expand(-1, 1, *batch.shape[-2:])

    image = torch.zeros(3, 20, 20, dtype=torch.uint8)
    views = crop_views(0, (20, 20), scales=(1.0, 3.0), flip=False, window=32, stride=16)
    assert sum(view.scale == 0 for view in views) == 1
    assert sum(view.scale == 1 for view in views) == 9
    # Mean -5: the image's black becomes 5, padding stays 0.
    (found,) = run(side, [image], views, mean=(-5.0,) * 3)
    # Scale 1 ends in padding (0, so the answer is 1), scale 3 in black (5, so it is 0).
    torch.testing.assert_close(found, torch.full((1, 20, 20), 0.5))


def test_only_the_wanted_channels_come_back_in_their_order():
    image = photo(16, 16)
    views = whole_views(0, (16, 16), scales=(1.0,), flip=False)
    both = run(pooled, [image], views)[0]
    (swapped,) = run(pooled, [image], views, channels=[[1, 0]])
    (second,) = run(pooled, [image], views, channels=[[1]])
    (none,) = run(pooled, [image], views, channels=[[]])
    torch.testing.assert_close(swapped, both[[1, 0]])
    torch.testing.assert_close(second, both[1:])
    assert none.shape == (0, 16, 16)


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_results_do_not_depend_on_what_shares_a_batch(batch_size):
    images = [photo(32, 48, 1), photo(48, 32, 2), photo(32, 48, 3)]
    sizes = [tuple(image.shape[1:]) for image in images]
    views = [view for k, size in enumerate(sizes) for view in whole_views(k, size, scales=(0.5, 1.0), flip=True)]
    together = run(pooled, images, views, batch_size=batch_size)
    for k, image in enumerate(images):
        alone = run(pooled, [image], whole_views(0, sizes[k], scales=(0.5, 1.0), flip=True))
        torch.testing.assert_close(together[k], alone[0])


def test_views_of_equal_size_fill_batches_across_images_and_scales():
    seen = []

    def counting(batch):
        seen.append(len(batch))
        return batch

    views = [
        view for k in range(3) for view in crop_views(k, (40, 60), scales=(1.0, 1.5), flip=True, window=32, stride=32)
    ]
    run(counting, [photo(40, 60, k) for k in range(3)], views, batch_size=8)
    assert sum(seen) == len(views)
    assert set(seen[:-1]) == {8}


def test_the_network_sees_normalised_values():
    def seen(batch):
        return batch

    image = torch.full((3, 8, 8), 255, dtype=torch.uint8)
    (found,) = run(
        seen, [image], [View(0, 0, (8, 8), 0, 0, (8, 8), False)], mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0)
    )
    torch.testing.assert_close(found[:, 0, 0], torch.tensor([1.0, 3.0, 0.5]))


def test_what_did_not_fit_is_given_back_before_less_is_tried():
    held, left = [], []

    def small_memory(batch):
        left.append([name() is not None for name in held])
        maps = batch * 2
        held.append(weakref.ref(maps))
        if len(batch) > 1:
            raise torch.OutOfMemoryError("full")
        return maps

    image = photo(64, 64)
    run(small_memory, [image], crop_views(0, (64, 64), scales=(1.0,), flip=False, window=32, stride=32))
    # passes of 4, 2 and 1 views: none of those that failed is there when the next begins
    assert not any(left[1]) and not any(left[2])


def test_a_full_gpu_halves_the_batch():
    sizes = []

    def small_memory(batch):
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("full")
        return batch

    image = photo(64, 64)
    views = crop_views(0, (64, 64), scales=(1.0,), flip=False, window=32, stride=32)
    (found,) = run(small_memory, [image], views)
    torch.testing.assert_close(found, image.float() / 255)
    assert sizes == [4, 2, 2]
