"""The segmentation network: an encoder, a decoder, and a small auxiliary head on the last but one feature map."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from pmm_ray.nets.batch_norm import freeze_batch_norm
from pmm_ray.nets.inputs import LARGEST_STRIDE, pad_to_multiple


class Segmenter(nn.Module):
    """A segmentation_models_pytorch model with PSPNet's auxiliary output, on the backbone's last but one stage."""

    def __init__(self, model: Any, *, num_classes: int, aux: bool, frozen: bool):
        """`model` has encoder, decoder and segmentation_head; `num_classes` counts the background: C + 1."""
        super().__init__()
        self.model: Any = model
        self.aux_head = _fcn_head(model.encoder.out_channels[-2], num_classes) if aux else None
        self._frozen = frozen
        self.train()

    @property
    def backbone(self) -> nn.Module:
        """The part that can be pretrained."""
        return self.model.encoder

    def train(self, mode: bool = True) -> Segmenter:
        """As every module; a frozen batch norm of the backbone stays frozen, the decoder's always learns."""
        super().train(mode)
        if self._frozen:
            freeze_batch_norm(self.backbone)
        return self

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) normalised images of any size to logits (N, C + 1, H, W) under 'main' and, if there, 'aux'.

        Sides that are no multiple of 32 are padded with zeros below and at the right, and the logits cut back.
        """
        height, width = images.shape[-2:]
        padded = pad_to_multiple(images, multiple=LARGEST_STRIDE)
        features = self.model.encoder(padded)
        logits = {"main": self.model.segmentation_head(self.model.decoder(features))}
        if self.aux_head is not None and self.training:
            small = self.aux_head(features[-2])
            logits["aux"] = F.interpolate(small, size=padded.shape[-2:], mode="bilinear", align_corners=False)
        return {name: value[..., :height, :width] for name, value in logits.items()}


def _fcn_head(channels: int, num_classes: int) -> nn.Sequential:
    hidden = max(channels // 4, 16)
    return nn.Sequential(
        nn.Conv2d(channels, hidden, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(hidden),
        nn.ReLU(inplace=True),
        nn.Dropout(0.1),
        nn.Conv2d(hidden, num_classes, kernel_size=1),
    )
