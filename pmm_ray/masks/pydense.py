"""The package pydensecrf behind the same calls as this package's engine. The only file that imports it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pmm_ray.masks.cam import FloatArray
    from pmm_ray.masks.crf import CrfParams


class PyDenseCRF:
    """pydensecrf on one image (H, W, 3) uint8; points are pixels in row order, (..., N)."""

    def __init__(self, image: NDArray[np.uint8], params: CrfParams) -> None:
        try:
            import pydensecrf.densecrf as pydensecrf
        except ImportError:
            raise ImportError(
                "the CRF backend pydensecrf is not installed: pip install pydensecrf2 (it needs a C compiler)"
            ) from None
        self._package, self._image, self._params = pydensecrf, image, params
        self._models: dict[int, Any] = {}

    def binary(self, scores: FloatArray) -> FloatArray:
        """(K, 2, N) -> (K, N)."""
        foreground = np.empty((len(scores), scores.shape[2]), np.float32)
        for k, problem in enumerate(scores):
            foreground[k] = self.multilabel(problem)[1]
        return foreground

    def multilabel(self, probs: FloatArray) -> FloatArray:
        """(L, N) -> (L, N)."""
        from pmm_ray.masks.crf import MIN_SCORE

        labels = len(probs)
        if labels not in self._models:
            self._models[labels] = self._model(labels)
        model = self._models[labels]
        model.setUnaryEnergy(np.ascontiguousarray(-np.log(np.maximum(probs, np.float32(MIN_SCORE)))))
        return np.array(model.inference(self._params.iterations), np.float32)

    def filter(self, values: FloatArray, *, kernel: str, normalised: bool) -> NoReturn:
        """Not offered by the package."""
        raise NotImplementedError("pydensecrf does not filter; use the backend numba")

    def _model(self, labels: int) -> Any:
        """Kernels but no unaries yet: those may be set again and again on the same lattices."""
        height, width = self._image.shape[:2]
        params = self._params
        model = self._package.DenseCRF2D(width, height, labels)
        if params.gaussian_compat > 0:
            model.addPairwiseGaussian(sxy=params.gaussian_sxy, compat=params.gaussian_compat)
        if params.bilateral_compat > 0:
            model.addPairwiseBilateral(
                sxy=params.bilateral_sxy, srgb=params.bilateral_srgb, rgbim=self._image, compat=params.bilateral_compat
            )
        return model
