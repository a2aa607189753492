"""Per-pixel losses of a segmentation network against a mask with ids 0..C and 255 (ignored)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from pmm_ray.data.dataset import IGNORE


def valid_pixels(mask: Tensor) -> Tensor:
    """Where a mask (N, H, W) says something: bool of the same shape."""
    return mask != IGNORE


def background_pixels(mask: Tensor) -> Tensor:
    """Where a mask (N, H, W) says background: bool of the same shape."""
    return mask == 0


def foreground_pixels(mask: Tensor) -> Tensor:
    """Where a mask (N, H, W) says some class: bool of the same shape."""
    return valid_pixels(mask) & (mask != 0)


def cross_entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """Softmax cross-entropy: logits (N, C + 1, H, W), mask (N, H, W) int64 -> (N, H, W) float32, 0 where ignored."""
    return F.cross_entropy(logits.float(), mask, ignore_index=IGNORE, reduction="none")


def binary_cross_entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """One-vs-rest binary cross-entropy, summed over the classes and the background.

    The sum, not the mean: a confidently wrong pixel then costs about as much as it does in `cross_entropy`, whatever
    the number of classes, so beta and kappa of pretended under-fitting keep their meaning.

    Args:
        logits: (N, C + 1, H, W).
        mask: (N, H, W) int64, ids 0..C or 255.

    Returns:
        (N, H, W) float32, >= 0, 0 where ignored.
    """
    valid = valid_pixels(mask)
    one_hot = F.one_hot(mask.where(valid, 0), logits.shape[1]).movedim(-1, 1).float()
    loss = F.binary_cross_entropy_with_logits(logits.float(), one_hot, reduction="none").sum(dim=1)
    return loss.where(valid, 0.0)


PIXEL_LOSSES = {"ce": cross_entropy, "bce": binary_cross_entropy}
