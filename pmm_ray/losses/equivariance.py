"""SEAM's equivariance: the CAM of a resized image should be the resized CAM.

"Self-supervised Equivariant Attention Mechanism for Weakly Supervised Semantic Segmentation" (Wang et al., CVPR 2020,
arXiv 2004.04581), sections 3.2 to 3.4. The resizing is the transformation A.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


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
    return with_background(scores)


def with_background(scores: Tensor) -> Tensor:
    """Class scores (N, C, h, w) in [0, 1] with the background `1 - max` in front: (N, C + 1, h, w)."""
    return torch.cat([1 - scores.amax(dim=1, keepdim=True), scores], dim=1)


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


def equivariance_regularisation(resized: Tensor, of_resized: Tensor) -> Tensor:
    """ER of each image: mean absolute difference of the resized image-size scores and the resized image's own, (N,)."""
    return (resized - of_resized).abs().mean(dim=(1, 2, 3))


def cross_regularisation(
    resized: Tensor, of_resized: Tensor, *, refined_resized: Tensor, refined_of_resized: Tensor, hardest: float = 0.2
) -> Tensor:
    """ECR of each image: every view's refined scores follow the *other* view's plain ones, which take no gradient.

    Crossing the views keeps the refinement from feeding on itself. As in the paper only the hardest pixels count.

    Args:
        resized: (N, K, h, w) scores of the image, resized.
        of_resized: (N, K, h, w) scores of the resized image.
        refined_resized: the first, refined by `pixel_correlation`.
        refined_of_resized: the second, refined.
        hardest: Share of values, in (0, 1], that count.

    Returns:
        (N,) >= 0.
    """
    differences = ((resized.detach() - refined_of_resized).abs(), (of_resized.detach() - refined_resized).abs())
    count = max(1, round(hardest * resized[0].numel()))
    first, second = (value.flatten(1).topk(count, dim=1).values.mean(dim=1) for value in differences)
    return first + second
