"""SEAM's pixel correlation module as a layer on a classifier's features."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pmm_ray.losses.equivariance import pixel_correlation


class PixelCorrelation(nn.Module):
    """Refines CAMs by the likeness of pixels in colours and features (section 3.3 of SEAM).

    Departure: the paper embeds two inner stages of its ResNet38 besides the image; here it is the deepest features, so
    that any backbone will do. As there, no gradient reaches the backbone through the embedding.
    """

    def __init__(self, channels: int, *, hidden: int = 64, size: int = 96):
        super().__init__()
        self.reduce = nn.Conv2d(channels, hidden, kernel_size=1, bias=False)
        self.embed = nn.Conv2d(hidden + 3, size, kernel_size=1, bias=False)

    def forward(self, scores: Tensor, features: Tensor, images: Tensor) -> Tensor:
        """Refine scores (N, K, h, w) by features (N, D, h, w) and normalised images (N, 3, H, W)."""
        colours = F.interpolate(images, size=features.shape[-2:], mode="bilinear", align_corners=False, antialias=True)
        seen = torch.cat([self.reduce(features.detach()).relu(), colours], dim=1)
        return pixel_correlation(scores, self.embed(seen))
