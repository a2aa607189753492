"""The classifier's loss."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def multilabel_soft_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Multi-label soft margin loss of each image: the mean over classes of binary cross-entropy.

    Args:
        logits: (N, C) floats.
        labels: (N, C) in {0, 1}.

    Returns:
        (N,) float32, >= 0.
    """
    return F.binary_cross_entropy_with_logits(logits.float(), labels.float(), reduction="none").mean(dim=1)
