"""A direction in feature space for each class, which follows what the class looks like while a network learns."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Prototypes(nn.Module):
    """Moving averages of classes' features, on the unit sphere. They are saved with the training and take no gradient.

    `vectors` (C, D) float32, zero until a class was met; `met` (C,), by how many pixels it was.
    """

    vectors: Tensor
    met: Tensor

    def __init__(self, num_classes: int, channels: int):
        super().__init__()
        self.register_buffer("vectors", torch.zeros(num_classes, channels))
        self.register_buffer("met", torch.zeros(num_classes))

    @property
    def known(self) -> Tensor:
        """(C,) bool: which classes have one."""
        return self.met > 0

    @torch.no_grad()
    def follow(self, sums: Tensor, counts: Tensor, *, momentum: float) -> None:
        """Move towards the mean of a batch: `p <- m p + (1 - m) mean`; a class that is met first takes the mean itself.

        Of several workers each must give the sums over all, so that all have the same prototypes.

        Args:
            sums: (C, D), of unit vectors.
            counts: (C,), how many; a class with 0 stays as it is.
            momentum: m in [0, 1].
        """
        means = F.normalize(sums.float(), dim=1)
        kept = torch.where(self.known, momentum, 0.0)[:, None]
        moved = F.normalize(kept * self.vectors + (1 - kept) * means, dim=1)
        self.vectors.copy_(torch.where(counts[:, None] > 0, moved, self.vectors))
        self.met.add_(counts)
