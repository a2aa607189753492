"""D2CAM's losses: a classifier's features that keep classes, and foreground and background, apart.

A reconstruction after the abstract of "Treating Pseudo-labels Generation as Image Matting" (Mat-Label, ICCV 2023): its
category decoupling, its foreground-background decoupling, and its two constraints, one that stabilises the optimisation
and one that removes non-exclusive activation. The paper's formulas are not public here; these are the plainest ones.

All begin from scores (N, C + 1, h, w) in [0, 1], background first, as `classifier.class_scores` makes of class maps,
and from an embedding (N, D, h, w), the features that the maps are read from.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

UNSURE = -1


@torch.no_grad()
def sure_pixels(scores: Tensor, inside: Tensor, missed: Tensor, *, high: float, low: float) -> Tensor:
    """Where a CAM is sure: the trimap that the contrasts learn from.

    Class c where its score is the highest and above `high`, background where every class is below `low`. Scores are
    shares of a class's own maximum, which says nothing where the class was not found in the crop: such a class is sure
    nowhere, nor is then the background, and an image in which nothing is activated has no sure pixel.

    Args:
        scores: (N, C + 1, h, w) in [0, 1], background first.
        inside: (N, h, w) bool, False where the crop was filled.
        missed: (N, C) bool, True for classes that the image has by its labels and the classifier does not find.
        high: In [0, 1].
        low: In [0, 1].

    Returns:
        (N, h, w) int64: 0 background, 1..C, `UNSURE`.
    """
    best, label = scores[:, 1:].max(dim=1)
    of_missed = missed.gather(1, label.flatten(1)).view_as(label)
    something_missed = missed.any(dim=1)[:, None, None]
    sure = torch.where((best > high) & ~of_missed, label + 1, UNSURE)
    sure[(best < low) & (best.amax(dim=(1, 2), keepdim=True) > 0) & ~something_missed] = 0
    return sure.where(inside, UNSURE)


def category_decoupling(
    embedding: Tensor, sure: Tensor, prototypes: Tensor, known: Tensor, *, temperature: float
) -> Tensor:
    """Contrast of each sure foreground pixel with the prototypes of all known classes.

    `-log(exp(cos(e_i, p_c) / T) / sum_k exp(cos(e_i, p_k) / T))` with c the pixel's class.

    Args:
        embedding: (N, D, h, w).
        sure: (N, h, w), see `sure_pixels`; its classes must be known.
        prototypes: (C, D), without gradient.
        known: (C,) bool; the others have no prototype yet and are nobody's rival.
        temperature: T > 0.

    Returns:
        (N, h, w) float32, >= 0, and 0 where a pixel is not sure or background.
    """
    logits = torch.einsum("ndhw,cd->nchw", unit(embedding), F.normalize(prototypes.float(), dim=1)) / temperature
    logits = logits.masked_fill(~known[None, :, None, None], -torch.inf)
    # the loss of what is not looked at: no class, no gradient
    return F.cross_entropy(logits, (sure - 1).clamp(min=UNSURE), ignore_index=UNSURE, reduction="none")


def foreground_decoupling(embedding: Tensor, sure: Tensor, *, temperature: float) -> tuple[Tensor, Tensor]:
    """Contrast of each sure pixel with its image's mean foreground and mean background.

    `-log(exp(cos(e_i, m_own) / T) / (exp(cos(e_i, m_own) / T) + exp(cos(e_i, m_other) / T)))`: pulled to its own side,
    pushed from the other. The means are of unit vectors and take no gradient.

    Args:
        embedding: (N, D, h, w).
        sure: (N, h, w), see `sure_pixels`.
        temperature: T > 0.

    Returns:
        (N, h, w) float32, >= 0, 0 where not counted; and which pixels count: the sure ones of images with both sides.
    """
    vectors = unit(embedding)
    sides = torch.stack([sure == 0, sure > 0], dim=1).float()
    means = F.normalize(torch.einsum("ndhw,nshw->nsd", vectors.detach(), sides), dim=2)
    both = sides.amax(dim=(2, 3)).amin(dim=1) > 0
    counted = (sure != UNSURE) & both[:, None, None]
    logits = torch.einsum("ndhw,nsd->nshw", vectors, means) / temperature
    target = (sure > 0).long().where(counted, UNSURE)
    return F.cross_entropy(logits, target, ignore_index=UNSURE, reduction="none"), counted


def stability(scores: Tensor, averaged: Tensor, labels: Tensor) -> Tensor:
    """Mean absolute difference to the scores of the moving average of all networks so far.

    `1 / |L| sum_{c in L} mean_i |x_ci - y_ci|` with L the background and the image's classes, y the average's scores.
    The mean is over the whole crop as SEAM's equivariance is: also where it was filled, both should say the same.

    Args:
        scores: (N, C + 1, h, w) in [0, 1].
        averaged: The same by the averaged network, without gradient.
        labels: (N, C) in {0, 1}; the mean is over these classes and the background.

    Returns:
        (N,) in [0, 1].
    """
    return (scores - averaged).abs().mean(dim=(2, 3)).sum(dim=1) / (1 + labels.sum(dim=1))


def exclusivity(scores: Tensor) -> Tensor:
    """Products of any two classes' scores at a pixel: `sum_{a < b} x_a x_b = ((sum x)^2 - sum x^2) / 2`.

    Args:
        scores: (N, C + 1, h, w) in [0, 1], background first, which is no rival.

    Returns:
        (N, h, w) >= 0; 0 where at most one class is activated.
    """
    classes = scores[:, 1:]
    return (classes.sum(dim=1).square() - classes.square().sum(dim=1)).clamp(min=0) / 2


def sums_of_classes(embedding: Tensor, sure: Tensor, *, num_classes: int) -> tuple[Tensor, Tensor]:
    """What prototypes are made of: the sum of each class's sure unit vectors (C, D), and their number (C,); float32."""
    each = F.one_hot(sure.clamp(min=0), num_classes + 1)[..., 1:].float()
    return torch.einsum("ndhw,nhwc->cd", unit(embedding.detach()), each), each.sum(dim=(0, 1, 2))


def unit(embedding: Tensor) -> Tensor:
    """(N, D, h, w) float32 of length 1 at each pixel; zeros stay, and their gradient is not beyond all bounds."""
    return F.normalize(embedding.float(), dim=1, eps=1e-6)
