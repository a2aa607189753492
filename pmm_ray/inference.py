"""Running a network over scales, mirror images and crops, and averaging what it says.

A forward pass sees a *view*: a crop (or the whole) of an image resized to one scale, mirrored or not. Views of equal
size share a batch, also across images and scales, because a photo in multi-crop mode has about 174 of them. Within a
scale each pixel's value is the mean over the views that cover it; the result is the mean over scales, so that a scale
with more crops does not count more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor
from torch.nn import functional as F

from pmm_ray.nets.inputs import normalise, resize

Size = tuple[int, int]
"""Height, width."""


@dataclass(frozen=True)
class View:
    """What one forward pass sees: `window` from (`top`, `left`) on of image number `image` resized to `size`.

    A window that is larger than the resized image is padded below and at the right with the mean colour. `scale`
    numbers the scales.
    """

    image: int
    scale: int
    size: Size
    top: int
    left: int
    window: Size
    flip: bool

    @property
    def whole(self) -> bool:
        """Whether the view is exactly the resized image."""
        return self.window == self.size


def scaled_size(size: Size, *, scale: float, short_side: int | None) -> Size:
    """The (H, W) of an image at a scale; scale 1 means its own size, or the one whose short side is `short_side`."""
    factor = scale * (1.0 if short_side is None else short_side / min(size))
    height, width = (max(1, round(side * factor)) for side in size)
    return height, width


def shrunk(image: Tensor, *, max_short_side: int | None) -> Tensor:
    """(3, H, W) uint8 as it is, or resized to a short side of `max_short_side` where its own is longer."""
    size = image.shape[1], image.shape[2]
    if max_short_side is None or min(size) <= max_short_side:
        return image
    target = scaled_size(size, scale=1.0, short_side=max_short_side)
    return resize(image[None].float(), target)[0].round().byte()


def whole_views(
    image: int, size: Size, *, scales: Sequence[float], flip: bool, short_side: int | None = None
) -> list[View]:
    """The whole image number `image` of (H, W) `size` at each scale, and mirrored."""
    sizes = [scaled_size(size, scale=scale, short_side=short_side) for scale in scales]
    flips = (False, True) if flip else (False,)
    return [View(image, k, at, 0, 0, at, mirrored) for k, at in enumerate(sizes) for mirrored in flips]


def crop_views(
    image: int,
    size: Size,
    *,
    scales: Sequence[float],
    flip: bool,
    window: int,
    stride: int,
    short_side: int | None = None,
) -> list[View]:
    """Square crops of side `window`, at most `stride` apart, that cover image number `image` at each scale."""
    flips = (False, True) if flip else (False,)
    views = []
    for k, scale in enumerate(scales):
        height, width = scaled_size(size, scale=scale, short_side=short_side)
        views += [
            View(image, k, (height, width), top, left, (window, window), mirrored)
            for top in crop_starts(height, window=window, stride=stride)
            for left in crop_starts(width, window=window, stride=stride)
            for mirrored in flips
        ]
    return views


def crop_starts(length: int, *, window: int, stride: int) -> list[int]:
    """Where crops begin along a side: every min(stride, window) pixels; the last one ends where the side ends."""
    last = max(0, length - window)
    return [*range(0, last, min(stride, window)), last]


@torch.inference_mode()
def average(
    forward: Callable[[Tensor], Tensor],
    images: Sequence[Tensor],
    views: Sequence[View],
    *,
    channels: Sequence[Sequence[int] | None],
    targets: Sequence[Size],
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int,
    device: torch.device | str = "cpu",
) -> list[Tensor]:
    """The mean of the network's maps over the views of each image.

    Args:
        forward: (N, 3, h, w) normalised float32 on `device` to maps (N, C, h', w') that cover the same field at any
            resolution.
        images: (3, H, W) uint8 RGB each.
        views: of all images, at least one for each.
        channels: which maps to keep of each image, in this order; None: all.
        targets: (H', W') of each result.
        mean: input mean, RGB in [0, 1].
        std: input standard deviation, RGB in [0, 1].
        batch_size: views in one forward pass; halved where a GPU's memory does not do.
        device: where the network is.

    Returns:
        (K, H', W') float32 on `device`, one for each image.
    """
    canvases = _Canvases(views, channels, targets)
    pixels = _Pixels(images, mean, std, torch.device(device))
    ordered = sorted(views, key=lambda view: (view.window, view.image, view.scale))
    for _, alike in groupby(ordered, key=lambda view: view.window):
        group = list(alike)
        for start in range(0, len(group), batch_size):
            batch = group[start : start + batch_size]
            for view, maps in zip(batch, _run(forward, pixels, batch), strict=True):
                canvases.add(view, maps)
    return canvases.results()


def _run(forward: Callable[[Tensor], Tensor], pixels: _Pixels, batch: list[View]) -> Iterator[Tensor]:
    """The maps (C, h', w') of each view, turned back if mirrored."""
    maps = None
    try:
        maps = forward(torch.stack([pixels.of(view) for view in batch])).float()
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise
    # outside, where the error no longer holds what the failed pass had made
    if maps is None:
        torch.cuda.empty_cache()
        half = len(batch) // 2
        yield from _run(forward, pixels, batch[:half])
        yield from _run(forward, pixels, batch[half:])
        return
    for view, found in zip(batch, maps, strict=True):
        yield found.flip(-1) if view.flip else found


class _Pixels:
    """What the network sees of each view. The image last resized is kept, for neighbouring crops come one by one."""

    def __init__(self, images: Sequence[Tensor], mean: Sequence[float], std: Sequence[float], device: torch.device):
        self._images, self._mean, self._std, self._device = images, mean, std, device
        self._key: tuple[int, Size] | None = None
        self._resized = torch.empty(0)

    def of(self, view: View) -> Tensor:
        """(3, window) normalised float32."""
        if self._key != (view.image, view.size):
            image = self._images[view.image][None].to(self._device)
            self._resized, self._key = self._resize(image, view.size), (view.image, view.size)
        bottom, right = view.top + view.window[0], view.left + view.window[1]
        crop = self._resized[:, view.top : bottom, view.left : right]
        below, beside = view.window[0] - crop.shape[1], view.window[1] - crop.shape[2]
        if below or beside:
            crop = F.pad(crop, (0, beside, 0, below))
        return crop.flip(-1) if view.flip else crop

    def _resize(self, image: Tensor, size: Size) -> Tensor:
        normal = normalise(image, mean=self._mean, std=self._std)
        return resize(normal, size)[0]


class _Canvases:
    """Sums of maps: within a scale at that scale's resolution, then over scales at the target's."""

    def __init__(self, views: Sequence[View], channels: Sequence[Sequence[int] | None], targets: Sequence[Size]):
        self._channels, self._targets = channels, targets
        self._left = Counter((view.image, view.scale) for view in views)
        self._sums: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self._totals: dict[int, Tensor] = {}
        self._scales: Counter[int] = Counter()

    def add(self, view: View, maps: Tensor) -> None:
        """Add the maps (C, h', w') of one view; at a scale's last view the scale's mean goes to the image's sum."""
        wanted = self._channels[view.image]
        maps = maps if wanted is None else maps[list(wanted)]
        key = (view.image, view.scale)
        area = self._targets[view.image] if view.whole else view.size
        if key not in self._sums:
            self._sums[key] = maps.new_zeros((len(maps), *area)), maps.new_zeros((1, *area))
        total, count = self._sums[key]
        here = resize(maps[None], area if view.whole else view.window)[0]
        height, width = min(here.shape[1], area[0] - view.top), min(here.shape[2], area[1] - view.left)
        place = (slice(None), slice(view.top, view.top + height), slice(view.left, view.left + width))
        total[place] += here[:, :height, :width]
        count[place] += 1
        self._left[key] -= 1
        if not self._left[key]:
            self._finish(*key)

    def _finish(self, image: int, scale: int) -> None:
        total, count = self._sums.pop((image, scale))
        mean = resize((total / count)[None], self._targets[image])[0]
        self._totals[image] = self._totals[image] + mean if image in self._totals else mean
        self._scales[image] += 1

    def results(self) -> list[Tensor]:
        """(K, H', W') of each image."""
        return [self._totals[image] / self._scales[image] for image in range(len(self._targets))]
