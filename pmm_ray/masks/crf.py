"""The fully connected CRF of Kraehenbuehl and Koltun (2011): named constants and the one class that refines scores.

Energy over labels l: `sum_i -log score_i(l_i) + sum_{i<j} [l_i != l_j] (w_g k_g(i, j) + w_b k_b(i, j))`, where k_g is a
Gaussian in position and k_b one in position and colour (the bilateral kernel). Solved by mean-field iterations.
This is the only file that imports pydensecrf.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pmm_ray.masks.cam import FloatArray

MIN_SCORE = 1e-5
"""Scores are clipped here from below before -log."""


@dataclass(frozen=True, kw_only=True)
class CrfParams:
    """Constants of the two kernels: widths > 0 (sxy in pixels, srgb in grey levels), weights (compat) >= 0.

    A weight of 0 leaves its kernel out.
    """

    gaussian_sxy: float
    gaussian_compat: float
    bilateral_sxy: float
    bilateral_srgb: float
    bilateral_compat: float
    iterations: int = 10

    def __post_init__(self) -> None:
        widths = (self.gaussian_sxy, self.bilateral_sxy, self.bilateral_srgb)
        weights = (self.gaussian_compat, self.bilateral_compat, self.iterations)
        if not (min(widths) > 0 and min(weights) >= 0 and np.isfinite((*widths, *weights)).all()):
            raise ValueError(f"CRF widths must be above 0, weights and iterations at least 0, all finite, got {self}")


def _params(gaussian: tuple[float, float], bilateral: tuple[float, float, float]) -> CrfParams:
    """(sxy, compat) and (sxy, srgb, compat), in the order in which papers list them."""
    return CrfParams(
        gaussian_sxy=gaussian[0],
        gaussian_compat=gaussian[1],
        bilateral_sxy=bilateral[0],
        bilateral_srgb=bilateral[1],
        bilateral_compat=bilateral[2],
    )


PRESETS: dict[str, CrfParams] = {
    "ppg": _params((3, 10), (80, 13, 10)),
    "baseline": _params((3, 3), (80, 13, 10)),
    "rrm_train": _params((3, 3), (80, 13, 10)),
    "rrm_infer": _params((3, 3), (83, 5, 4)),
    "segmentation": _params((1, 3), (67, 3, 4)),
    "irn": _params((3, 3), (50, 5, 10)),
}
"""Constants of the published codes, which differ between call sites; all run 10 iterations."""


def crf_params(preset: str, **replacements: float | None) -> CrfParams:
    """A preset with some of its numbers replaced; None keeps the preset's.

    Raises:
        ValueError: No such preset, or a number out of bounds.
        TypeError: No such number.
    """
    if preset not in PRESETS:
        raise ValueError(f"no CRF preset {preset!r}; there are {', '.join(PRESETS)}")
    changes: dict[str, Any] = {name: number for name, number in replacements.items() if number is not None}
    return replace(PRESETS[preset], **changes)


class Crf(Protocol):
    """What the mask makers ask of a CRF. Any object that refines scores on one image will do."""

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of the image it was made of."""
        ...

    def binary(self, scores: NDArray[np.floating]) -> FloatArray:
        """(K, 2, H, W) scores {background, foreground} -> (K, H, W) foreground probability."""
        ...

    def multilabel(self, probs: NDArray[np.floating]) -> FloatArray:
        """(L, H, W) scores -> (L, H, W) probabilities."""
        ...


class DenseCRF:
    """The dense CRF on one image. Its kernels are built when first needed and serve every later problem.

    Not for use by two threads at once: the backend keeps its state between setting a problem and solving it.

    Args:
        image: (H, W, 3) uint8, RGB (BGR changes 0.1 to 0.5 % of the pixels).
        preset: A name in `PRESETS`.
        params: Constants of one's own, in place of the preset.
        backend: "pydensecrf", the permutohedral lattice with symmetric normalisation and Potts compatibility.

    Raises:
        ValueError: The image is not (H, W, 3) uint8 with a pixel in it; no such preset or backend.
    """

    def __init__(
        self,
        image: NDArray[np.uint8],
        *,
        preset: str = "ppg",
        params: CrfParams | None = None,
        backend: str = "pydensecrf",
    ) -> None:
        image = np.asarray(image)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise ValueError(f"the image must be (H, W, 3) uint8 RGB, got {image.dtype} of shape {image.shape}")
        if backend != "pydensecrf":
            raise ValueError(f"no CRF backend {backend!r}; there is pydensecrf")
        self.params = crf_params(preset) if params is None else params
        # A private C-ordered copy: rows that come from Ray are read-only views, which pydensecrf rejects.
        self._image = np.array(image, order="C")
        self._models: dict[int, Any] = {}

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of the image."""
        return self._image.shape[0], self._image.shape[1]

    def binary(self, scores: NDArray[np.floating]) -> FloatArray:
        """Solve K independent two-label problems.

        Args:
            scores: (K, 2, H, W), {background, foreground}, non-negative, not normalised: the energy is
                `-log max(score, MIN_SCORE)`.

        Returns:
            (K, H, W) float32, the foreground's probability after the last iteration.

        Raises:
            ValueError: Another shape, or a score that is negative or not finite.
        """
        scores = np.asarray(scores)
        if scores.ndim != 4 or scores.shape[1:] != (2, *self.shape):
            raise ValueError(f"binary scores must be (K, 2, {self._size}), got shape {scores.shape}")
        foreground = np.empty((len(scores), *self.shape), np.float32)
        for k, problem in enumerate(_energies(scores)):
            foreground[k] = self._solve(problem)[1]
        return foreground

    def multilabel(self, probs: NDArray[np.floating]) -> FloatArray:
        """Solve one problem of L labels.

        Args:
            probs: (L, H, W) scores, L >= 1, non-negative; probabilities or any other scores, as in `binary`.

        Returns:
            (L, H, W) float32, probabilities that sum to 1 over the labels.

        Raises:
            ValueError: Another shape, or a score that is negative or not finite.
        """
        probs = np.asarray(probs)
        if probs.ndim != 3 or not len(probs) or probs.shape[1:] != self.shape:
            raise ValueError(f"multi-label scores must be (L, {self._size}) with L >= 1, got shape {probs.shape}")
        return self._solve(_energies(probs))

    @property
    def _size(self) -> str:
        return f"{self.shape[0]}, {self.shape[1]}"

    def _solve(self, energies: FloatArray) -> FloatArray:
        """Mean field on (L, H, W) energies."""
        labels = len(energies)
        if labels not in self._models:
            self._models[labels] = _pydensecrf_model(self._image, labels, self.params)
        model = self._models[labels]
        model.setUnaryEnergy(np.ascontiguousarray(energies.reshape(labels, -1)))
        solution = model.inference(self.params.iterations)
        return np.array(solution, dtype=np.float32).reshape(energies.shape)


def _energies(scores: NDArray[np.floating]) -> FloatArray:
    """-log score in float32, clipped, after the border check."""
    values = scores.astype(np.float32)
    if not np.isfinite(values).all() or (values.size and values.min() < 0):
        raise ValueError("CRF scores must be finite and non-negative; there are negative, NaN or infinite ones")
    return -np.log(np.maximum(values, np.float32(MIN_SCORE)))


def _pydensecrf_model(image: NDArray[np.uint8], labels: int, params: CrfParams) -> Any:
    """A pydensecrf model with its kernels but no unaries yet: those may be set again and again on the same lattices."""
    import pydensecrf.densecrf as pydensecrf

    height, width = image.shape[:2]
    model = pydensecrf.DenseCRF2D(width, height, labels)
    if params.gaussian_compat > 0:
        model.addPairwiseGaussian(sxy=params.gaussian_sxy, compat=params.gaussian_compat)
    if params.bilateral_compat > 0:
        model.addPairwiseBilateral(
            sxy=params.bilateral_sxy, srgb=params.bilateral_srgb, rgbim=image, compat=params.bilateral_compat
        )
    return model


def crf_on(image: NDArray[np.uint8], crf: str | CrfParams | Crf, *, shape: tuple[int, int]) -> Crf:
    """The CRF that a mask maker was given by name, by constants, or ready made; checked against the CAM's (H, W).

    Raises:
        ValueError: The image or the CRF is of another size than the CAM; see also `DenseCRF`.
    """
    image = np.asarray(image)
    if image.shape[:2] != shape:
        size = " x ".join(map(str, image.shape[:2]))
        raise ValueError(f"the CAM is {shape[0]} x {shape[1]} pixels, its image {size}; resize the CAM to the image")
    if isinstance(crf, str):
        return DenseCRF(image, preset=crf)
    if isinstance(crf, CrfParams):
        return DenseCRF(image, params=crf)
    if crf.shape != shape:
        size = " x ".join(map(str, crf.shape))
        raise ValueError(f"the CAM is {shape[0]} x {shape[1]} pixels, but the CRF was made of an image of {size}")
    return crf
