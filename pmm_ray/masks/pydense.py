"""The package pydensecrf behind the same calls as this package's engine. The only file that imports it."""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from pmm_ray.masks.cam import FloatArray


class PyDenseCRF:
    """pydensecrf on one image (H, W, 3) uint8; points are pixels in row order, (..., N).

    Args:
        image: C-ordered and writeable.
        gaussian: sxy and compat of the kernel in position; a compat of 0 leaves it out.
        bilateral: sxy, srgb and compat of that in position and colour, likewise.
        iterations: of mean field.
        floor: Scores are clipped here from below.

    Raises:
        ImportError: The package is not installed.
    """

    def __init__(
        self,
        image: NDArray[np.uint8],
        *,
        gaussian: tuple[float, float],
        bilateral: tuple[float, float, float],
        iterations: int,
        floor: float,
    ) -> None:
        try:
            import pydensecrf.densecrf as pydensecrf
        except ImportError:
            raise ImportError(
                "the CRF backend pydensecrf is not installed: pip install pydensecrf2 (it needs a C compiler)"
            ) from None
        self._package, self._image = pydensecrf, image
        self._gaussian, self._bilateral = gaussian, bilateral
        self._iterations, self._floor = iterations, np.float32(floor)
        self._models: dict[int, Any] = {}

    def binary(self, scores: FloatArray) -> FloatArray:
        """(K, 2, N) -> (K, N)."""
        foreground = np.empty((len(scores), scores.shape[2]), np.float32)
        for k, problem in enumerate(scores):
            foreground[k] = self.multilabel(problem)[1]
        return foreground

    def multilabel(self, probs: FloatArray) -> FloatArray:
        """(L, N) -> (L, N)."""
        labels = len(probs)
        if labels not in self._models:
            self._models[labels] = self._model(labels)
        model = self._models[labels]
        model.setUnaryEnergy(np.ascontiguousarray(-np.log(np.maximum(probs, self._floor))))
        return np.array(model.inference(self._iterations), np.float32)

    def filter(self, values: FloatArray, *, kernel: str, normalised: bool) -> NoReturn:
        """Not offered by the package."""
        raise NotImplementedError("pydensecrf does not filter; use the backend numba")

    def _model(self, labels: int) -> Any:
        """Kernels but no unaries yet: those may be set again and again on the same lattices."""
        height, width = self._image.shape[:2]
        model = self._package.DenseCRF2D(width, height, labels)
        sxy, compat = self._gaussian
        if compat > 0:
            model.addPairwiseGaussian(sxy=sxy, compat=compat)
        sxy, srgb, compat = self._bilateral
        if compat > 0:
            model.addPairwiseBilateral(sxy=sxy, srgb=srgb, rgbim=self._image, compat=compat)
        return model
