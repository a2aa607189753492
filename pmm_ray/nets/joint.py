"""One network with two heads on one backbone: class activation maps, and a segmentation that learns from them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pmm_ray.nets.classifier import Classifier
from pmm_ray.nets.inputs import LARGEST_STRIDE, pad_to_multiple


class Joint(nn.Module):
    """RRM's network: a CAM classifier, and two dilated 3x3 convolutions on the same features that give a mask."""

    def __init__(self, classifier: Classifier, *, features: int, num_classes: int, channels: int, dilation: int):
        """`features` is the depth of the backbone's output; `num_classes` counts the background: C + 1.

        `channels` lie between the two convolutions, which are dilated by `dilation`.
        """
        super().__init__()
        self.classifier = classifier
        self.segmentation = nn.Sequential(
            nn.Conv2d(features, channels, kernel_size=3, padding=dilation, dilation=dilation),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, num_classes, kernel_size=3, padding=dilation, dilation=dilation),
        )

    @property
    def backbone(self) -> nn.Module:
        """The part that can be pretrained."""
        return self.classifier.backbone

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) normalised images of any size to logits (N, C + 1, H, W) under 'main'.

        Sides that are no multiple of 32 are padded with zeros below and at the right, and the logits cut back.
        """
        height, width = images.shape[-2:]
        padded = pad_to_multiple(images, multiple=LARGEST_STRIDE)
        logits = self.logits(self.classifier.features(padded), size=padded.shape[-2:])
        return {"main": logits[..., :height, :width]}

    def logits(self, features: Tensor, *, size: torch.Size | tuple[int, int]) -> Tensor:
        """The backbone's features (N, D, h, w) of images of (H, W) `size` to logits (N, C + 1, H, W)."""
        return F.interpolate(self.segmentation(features), size=size, mode="bilinear", align_corners=False)

    def cam(self, images: Tensor) -> Tensor:
        """As the classifier's: (N, 3, H, W) normalised images to activation maps (N, C, h, w), >= 0."""
        return self.classifier.cam(images)
