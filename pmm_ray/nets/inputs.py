"""What a network is fed: which mean and standard deviation, and how images of any size become batches it can take."""

from __future__ import annotations

from collections.abc import Sequence

import timm
import torch
from timm.models import PretrainedCfg
from torch import Tensor
from torch.nn import functional as F

Colour = tuple[float, float, float]

LARGEST_STRIDE = 32
"""Pixels of a cell at the largest output stride; sides of whole ones are whole cells at every stride."""


def normalisation(
    *, backbone: str, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> tuple[Colour, Colour]:
    """Input mean and std, RGB in [0, 1]: those given, else those of the timm model `backbone`."""
    own = timm.get_pretrained_cfg(backbone) or PretrainedCfg()
    return _colour(mean or own.mean), _colour(std or own.std)


def _colour(values: Sequence[float]) -> Colour:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def normalise(images: Tensor, *, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(N, 3, H, W) uint8 RGB to float32 `(x / 255 - mean) / std`."""
    shape = (1, 3, 1, 1)
    centre = torch.tensor(mean, device=images.device).view(shape)
    spread = torch.tensor(std, device=images.device).view(shape)
    return (images.float() / 255 - centre) / spread


def nearest_multiple(length: float, *, multiple: int) -> int:
    """The nearest multiple to a side of `length` pixels, at least one of them."""
    return multiple * max(1, round(length / multiple))


def pad_to_multiple(images: Tensor, *, multiple: int) -> Tensor:
    """Append zeros (the mean colour of a normalised image) below and at the right until both sides are multiples."""
    height, width = images.shape[-2:]
    below, right = -height % multiple, -width % multiple
    return F.pad(images, (0, right, 0, below)) if below or right else images


def resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, C, h, w) float to (N, C, *size), bilinear, edges aligned with edges; without aliasing where it shrinks."""
    if maps.shape[-2:] == size:
        return maps
    if not maps.shape[1]:
        return maps.new_zeros((*maps.shape[:2], *size))
    shrinks = size[0] < maps.shape[-2] or size[1] < maps.shape[-1]
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False, antialias=shrinks)
