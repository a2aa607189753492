"""SEAM's pixel correlation module as a layer on a classifier's features."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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


def pixel_correlation(scores: Tensor, embedding: Tensor) -> Tensor:
    """The pixel correlation module: each pixel takes the scores of the pixels that look like it.

    `y_i = sum_j ReLU(cos(e_i, e_j)) x_j / sum_j ReLU(cos(e_i, e_j))`, equation 5 and its normalisation to a sum of 1.

    Args:
        scores: (N, K, h, w).
        embedding: (N, D, h, w); a pixel's correlation with itself is 1, unless its embedding is 0.

    Returns:
        (N, K, h, w), within the range of `scores`.
    """
    direction = F.normalize(embedding.float().flatten(2), dim=1)
    affinity = (direction.transpose(1, 2) @ direction).relu()
    affinity = affinity / affinity.sum(dim=1, keepdim=True).clamp(min=1e-5)
    return (scores.flatten(2) @ affinity).view_as(scores)
