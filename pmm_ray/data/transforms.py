"""Augmentation with torchvision.transforms.v2: image and mask move together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from pmm_ray.data.dataset import IGNORE

_REDRAWS = 10


@dataclass(frozen=True)
class Augment:
    """Random resize, crop, flip and colours. The mask follows with nearest-neighbour sampling.

    `resize` is a range of factors: the short side becomes `crop` times one of them. Where the crop then reaches beyond
    the image it holds `fill`, the mean colour (RGB in 0..255), and 255 in the mask. Chance comes from torch's default
    generator.
    """

    crop: int
    resize: tuple[float, float]
    flip: bool
    jitter: float
    fill: tuple[int, int, int]

    def __call__(self, image: np.ndarray, mask: np.ndarray) -> tuple[Tensor, Tensor]:
        """(H, W, 3) and (H, W) uint8 to tensors (3, crop, crop) and (crop, crop) uint8."""
        large, large_mask = self.resized(image, mask)
        return self.cropped(large, large_mask)

    def resized(self, image: np.ndarray, mask: np.ndarray) -> tuple[Tensor, Tensor]:
        """The first half: resizing."""
        low, high = (round(self.crop * factor) for factor in self.resize)
        size = [int(torch.randint(low, high + 1, ()))]
        large = v2.functional.resize(torch.from_numpy(image).movedim(-1, 0), size, antialias=True)
        # v2 samples masks at their pixels' corners, and they come to lie up to a pixel below and to the right
        by_centres = v2.InterpolationMode.NEAREST_EXACT
        large_mask = v2.functional.resize(torch.from_numpy(mask)[None], size, interpolation=by_centres)
        return large, large_mask[0]

    def cropped(self, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The second half: crop, flip and colours of what `resized` gave."""
        fill = {tv_tensors.Image: list(self.fill), tv_tensors.Mask: IGNORE}
        steps: list[v2.Transform] = [v2.RandomCrop(self.crop, pad_if_needed=True, fill=fill)]
        if self.flip:
            steps.append(v2.RandomHorizontalFlip())
        if self.jitter > 0:
            steps.append(v2.ColorJitter(self.jitter, self.jitter, self.jitter))
        return _together(v2.Compose(steps), image, mask)


def crop_with_labels(
    augment: Augment, image: np.ndarray, labels: Sequence[int], rough_mask: np.ndarray, *, share: float
) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """PMM's multi-crop training: a random crop, and those of the image's labels that the crop still deserves.

    A label stays if the crop holds more than `share` of the object's pixels, or if the object covers more than `share`
    of the crop, by the rough mask (H, W). A label that the rough mask shows nowhere cannot be judged and stays. A crop
    that would lose every label is drawn again, up to ten times; after that it is an image of background alone, with
    no label.

    Returns:
        The crops (3, crop, crop) of the image and (crop, crop) of the rough mask, uint8, and the labels, sorted.
    """
    large, large_mask = augment.resized(image, rough_mask)
    in_image = _areas(large_mask, labels)
    for _ in range(_REDRAWS):
        crop, crop_mask = augment.cropped(large, large_mask)
        inside = _areas(crop_mask, labels)
        kept = tuple(
            label
            for label, all_of_it, part in zip(labels, in_image, inside, strict=True)
            if all_of_it == 0 or part > share * all_of_it or part > share * crop_mask.numel()
        )
        if kept:
            break
    return crop, crop_mask, kept


def _areas(mask: Tensor, labels: Sequence[int]) -> list[int]:
    return [int((mask == label).sum()) for label in labels]


def _together(transform: v2.Transform, image: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Apply one draw of `transform` to both."""
    moved, moved_mask = transform(tv_tensors.Image(image), tv_tensors.Mask(mask))
    return moved.as_subclass(Tensor), moved_mask.as_subclass(Tensor)
