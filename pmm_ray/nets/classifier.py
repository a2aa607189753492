"""The CAM classifier: a backbone, a 1x1 convolution, and the average of its maps."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from pmm_ray.nets.batch_norm import freeze_batch_norm
from pmm_ray.nets.correlation import PixelCorrelation
from pmm_ray.nets.inputs import nearest_multiple, resize


class Classifier(nn.Module):
    """Multi-label classifier whose class scores are means of class activation maps.

    The head is a 1x1 convolution without bias, zero at first: the mean of its maps is exactly what a linear classifier
    on pooled features would say, so a map shows where each score comes from. `channels` is the features' depth.
    """

    def __init__(
        self, backbone: nn.Module, *, channels: int, num_classes: int, frozen: bool, correlation: bool = False
    ):
        """`backbone`: any timm model without pooling and classifier. It ends in `channels`.

        `frozen`: its batch norm is. `correlation`: CAMs are refined by SEAM's pixel correlation module.
        """
        super().__init__()
        self.backbone = backbone
        self.head = nn.Conv2d(channels, num_classes, kernel_size=1, bias=False)
        nn.init.zeros_(self.head.weight)
        self.correlation = PixelCorrelation(channels) if correlation else None
        self.channels, self._frozen = channels, frozen
        self._whole_only = _in_patches(backbone)
        self.train()

    def train(self, mode: bool = True) -> Classifier:
        """As every module; a frozen batch norm stays frozen."""
        super().train(mode)
        if self._frozen:
            freeze_batch_norm(self.backbone)
        return self

    def features(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) normalised images to the deepest features (N, D, h, w), which cover the same field."""
        images = self._of_whole_patches(images)
        return _channels_first(self.backbone(images), self.channels, self.backbone, images.shape[-2:])

    def _of_whole_patches(self, images: Tensor) -> Tensor:
        """Images resized to the nearest size that patches cover exactly, of a backbone that has them.

        What lies in the padding would count as part of the image, and its map be compressed; of what is left out there
        would be no map, and that of the rest be stretched.
        """
        if not self._whole_only:
            return images
        info: Any = self.backbone.feature_info
        side = info[-1]["reduction"]
        height, width = (nearest_multiple(length, multiple=side) for length in images.shape[-2:])
        return resize(images, (height, width))

    def maps(self, features: Tensor) -> Tensor:
        """Features (N, D, h, w) to class maps (N, C, h, w), before any ReLU."""
        return self.head(features)

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) normalised images to logits (N, C)."""
        return self.maps(self.features(images)).mean(dim=(2, 3))

    def cam(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) normalised images to activation maps (N, C, h, w), >= 0, not normalised."""
        features = self.features(images)
        cam = self.maps(features).relu()
        return cam if self.correlation is None else self.correlation(cam, features, images)

    def maps_and_refined(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Class maps (N, C, h, w) before any ReLU, and their scores (N, C + 1, h, w) refined by pixel correlation.

        `labels` (N, C) in {0, 1} says which classes compete. Only for a classifier built with `correlation`.
        """
        if self.correlation is None:
            raise ValueError("this classifier was built without pixel correlation")
        features = self.features(images)
        maps = self.maps(features)
        return maps, self.correlation(class_scores(maps, labels), features, images)


def class_scores(maps: Tensor, labels: Tensor) -> Tensor:
    """Maps as scores with a background, for comparison between two views.

    ReLU, each class divided by its maximum over the image, classes absent from the image zeroed; the background is what
    the strongest class leaves of 1.

    Args:
        maps: (N, C, h, w), any values.
        labels: (N, C) in {0, 1}.

    Returns:
        (N, C + 1, h, w) in [0, 1], background first.
    """
    positive = maps.float().relu()
    scores = positive / positive.amax(dim=(2, 3), keepdim=True).clamp(min=1e-5) * labels[:, :, None, None]
    return torch.cat([1 - scores.amax(dim=1, keepdim=True), scores], dim=1)


def _in_patches(backbone: nn.Module) -> bool:
    """Whether it cuts images into patches that do not overlap, as transformers and ConvNeXt do, not as ResNets do.

    Such a backbone pads what its patches do not cover, or leaves it out.
    """
    return hasattr(getattr(backbone, "patch_embed", None), "dynamic_feat_size") or any(
        isinstance(part, nn.Conv2d)
        and max(part.stride) > 1
        and part.kernel_size == part.stride
        and part.padding == (0, 0)
        for part in backbone.modules()
    )


def _channels_first(features: Tensor, channels: int, backbone: nn.Module, size: torch.Size) -> Tensor:
    """Convolutional features stay; (N, h, w, D) of window transformers and (N, tokens, D) of plain ones moved."""
    if features.ndim == 4 and features.shape[1] != channels and features.shape[3] == channels:
        return features.permute(0, 3, 1, 2).contiguous()
    if features.ndim == 3:
        patches = features[:, getattr(backbone, "num_prefix_tokens", 0) :]
        return patches.transpose(1, 2).unflatten(2, _grid(backbone, patches.shape[1], size))
    return features


def _grid(backbone: nn.Module, patches: int, size: torch.Size) -> tuple[int, int]:
    """How a transformer's patches lie in an image of (H, W) `size`."""
    embedding: Any = getattr(backbone, "patch_embed", None)
    if hasattr(embedding, "dynamic_feat_size"):
        height, width = embedding.dynamic_feat_size(tuple(size))
    else:
        height = width = math.isqrt(patches)
    if height * width != patches:
        raise ValueError(f"its {patches} patches of an image of {size[0]} x {size[1]} pixels are no grid")
    return height, width
