"""pydensecrf as the published codes use it: a new model, with new lattices, for every problem."""

from __future__ import annotations

import sys

import numpy as np
from numpy.typing import NDArray

from pmm_ray.masks.crf import MIN_SCORE, CrfParams

try:
    import pydensecrf.densecrf as pydensecrf
except ImportError:
    print("skipped: this benchmark compares with pydensecrf, which is not installed: pip install -e '.[pydensecrf]'")
    sys.exit(0)


def multilabel(image: NDArray[np.uint8], scores: NDArray[np.float32], params: CrfParams) -> NDArray[np.float32]:
    """One problem of L labels: scores (L, H, W) -> probabilities (L, H, W)."""
    labels, height, width = scores.shape
    model = pydensecrf.DenseCRF2D(width, height, labels)
    model.setUnaryEnergy(-np.log(np.maximum(scores, np.float32(MIN_SCORE))).reshape(labels, -1))
    model.addPairwiseGaussian(sxy=params.gaussian_sxy, compat=params.gaussian_compat)
    model.addPairwiseBilateral(
        sxy=params.bilateral_sxy, srgb=params.bilateral_srgb, rgbim=image, compat=params.bilateral_compat
    )
    return np.array(model.inference(params.iterations), np.float32).reshape(scores.shape)


def binary(image: NDArray[np.uint8], scores: NDArray[np.float32], params: CrfParams) -> NDArray[np.float32]:
    """K two-label problems, one after the other: scores (K, 2, H, W) -> foreground probability (K, H, W)."""
    return np.stack([multilabel(image, problem, params)[1] for problem in scores])
