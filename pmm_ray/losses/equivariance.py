"""SEAM's equivariance: the CAM of a resized image should be the resized CAM.

"Self-supervised Equivariant Attention Mechanism for Weakly Supervised Semantic Segmentation" (Wang et al., CVPR 2020,
arXiv 2004.04581), sections 3.2 to 3.4. The resizing is the transformation A.
"""

from __future__ import annotations

from torch import Tensor


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
        refined_resized: the first, refined by `nets.correlation.pixel_correlation`.
        refined_of_resized: the second, refined.
        hardest: Share of values, in (0, 1], that count.

    Returns:
        (N,) >= 0.
    """
    differences = ((resized.detach() - refined_of_resized).abs(), (of_resized.detach() - refined_resized).abs())
    count = max(1, round(hardest * resized[0].numel()))
    first, second = (value.flatten(1).topk(count, dim=1).values.mean(dim=1) for value in differences)
    return first + second
