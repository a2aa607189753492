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
        gaussian_sxy: of the kernel in position.
        bilateral: sxy and srgb of that in position and colour.
        iterations: of mean field.
        floor: Scores are clipped here from below.

    Raises:
        ImportError: The package is not installed.
    """

    def __init__(
        self,
        image: NDArray[np.uint8],
        *,
        gaussian_sxy: float,
        bilateral: tuple[float, float],
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
        self._gaussian_sxy, self._bilateral = gaussian_sxy, bilateral
        self._iterations, self._floor = iterations, np.float32(floor)
        self._models: dict[tuple[int, float, float], Any] = {}

    def binary(self, scores: FloatArray, weights: FloatArray) -> FloatArray:
        """(K, 2, N) and the kernels' weights (K, 2), 0 to leave a kernel out -> (K, N)."""
        return self.multilabel(scores, weights)[:, 1]

    def multilabel(self, scores: FloatArray, weights: FloatArray) -> FloatArray:
        """(K, L, N) and weights (K, 2) -> (K, L, N)."""
        found = np.empty(scores.shape, np.float32)
        for k, (problem, (gaussian, bilateral)) in enumerate(zip(scores, weights.tolist(), strict=True)):
            key = len(problem), gaussian, bilateral
            if key not in self._models:
                self._models[key] = self._model(*key)
            model = self._models[key]
            model.setUnaryEnergy(np.ascontiguousarray(-np.log(np.maximum(problem, self._floor))))
            found[k] = model.inference(self._iterations)
        return found

    def filter(self, values: FloatArray, *, kernel: str, normalised: bool) -> NoReturn:
        """Not offered by the package."""
        raise NotImplementedError("pydensecrf does not filter; use the backend numba")

    def _model(self, labels: int, gaussian: float, bilateral: float) -> Any:
        """Kernels but no unaries yet: those may be set again and again on the same lattices."""
        height, width = self._image.shape[:2]
        model = self._package.DenseCRF2D(width, height, labels)
        if gaussian > 0:
            model.addPairwiseGaussian(sxy=self._gaussian_sxy, compat=gaussian)
        if bilateral > 0:
            sxy, srgb = self._bilateral
            model.addPairwiseBilateral(sxy=sxy, srgb=srgb, rgbim=self._image, compat=bilateral)
        return model
