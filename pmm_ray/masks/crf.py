"""The fully connected CRF of Kraehenbuehl and Koltun (2011): named constants and the one class that refines scores.

Energy over labels l: `sum_i -log score_i(l_i) + sum_{i<j} [l_i != l_j] (w_g k_g(i, j) + w_b k_b(i, j))`, where k_g is a
Gaussian in position and k_b one in position and colour (the bilateral kernel). Solved by mean-field iterations on
permutohedral lattices: `lattice` builds them, `meanfield` solves, here are the constants and the class.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pmm_ray.masks.cam import FloatArray

if TYPE_CHECKING:
    from pmm_ray.masks.meanfield import Kernel, Problem

Backend = Literal["numba", "pydensecrf"]
Weights = Sequence[tuple[float, float]] | NDArray[np.floating]
"""(K, 2): the weights of the Gaussian and of the bilateral kernel in each of K problems."""

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
        """(L, H, W) scores, or (K, L, H, W) of K problems -> probabilities of the same shape."""
        ...


class DenseCRF:
    """The dense CRF on one image. Its kernels are built when first needed and serve every later problem.

    Not for use by two threads at once; several objects are fine, and the work releases the GIL.

    Args:
        image: (H, W, 3) uint8, RGB (BGR changes 0.1 to 0.5 % of the pixels).
        preset: A name in `PRESETS`.
        params: Constants of one's own, in place of the preset.
        backend: "numba", this package's engine; or "pydensecrf", an extra of this package, for comparison. Both are the
            permutohedral lattice with symmetric normalisation and Potts compatibility, and give the same masks.

    Raises:
        ValueError: The image is not (H, W, 3) uint8 with a pixel in it; no such preset or backend.
        ImportError: The backend is not installed.
    """

    def __init__(
        self,
        image: NDArray[np.uint8],
        *,
        preset: str = "ppg",
        params: CrfParams | None = None,
        backend: Backend = "numba",
    ) -> None:
        image = np.asarray(image)
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise ValueError(f"the image must be (H, W, 3) uint8 RGB, got {image.dtype} of shape {image.shape}")
        engines = {"numba": _Lattices, "pydensecrf": _pydensecrf}
        if backend not in engines:
            raise ValueError(f"no CRF backend {backend!r}; there are {', '.join(engines)}")
        self.params = crf_params(preset) if params is None else params
        # A private C-ordered copy: nobody can change it before the kernels are built.
        self._engine = engines[backend](np.array(image, order="C"), self.params)
        self._shape = image.shape[0], image.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W) of the image."""
        return self._shape

    def binary(self, scores: NDArray[np.floating], *, weights: Weights | None = None) -> FloatArray:
        """Solve K independent two-label problems.

        Args:
            scores: (K, 2, H, W), {background, foreground}, non-negative, not normalised: the energy is
                `-log max(score, MIN_SCORE)`.
            weights: (K, 2), each problem's own weights of the two kernels (gaussian, bilateral), >= 0; None: those of
                `params` for all. They cost nothing, widths and iterations need a CRF of their own.

        Returns:
            (K, H, W) float32, the foreground's probability after the last iteration.

        Raises:
            ValueError: Another shape, or a score or weight that is negative or not finite; or kernels so narrow that
                the lattice leaves the range in which it is exact.
        """
        scores = np.asarray(scores)
        if scores.ndim != 4 or scores.shape[1:] != (2, *self.shape):
            raise ValueError(f"binary scores must be (K, 2, {self._size}), got shape {scores.shape}")
        flat = _checked(scores).reshape(len(scores), 2, self._count)
        return self._engine.binary(flat, self._weights(weights, len(flat))).reshape(len(scores), *self.shape)

    def multilabel(self, probs: NDArray[np.floating], *, weights: Weights | None = None) -> FloatArray:
        """Solve one problem of L labels, or K independent ones.

        Args:
            probs: (L, H, W) or (K, L, H, W), L >= 1, non-negative; probabilities or any other scores, as in `binary`.
            weights: (K, 2), as in `binary`; (1, 2) for one problem.

        Returns:
            As `probs`, float32, probabilities that sum to 1 over the labels.

        Raises:
            ValueError: As in `binary`.
        """
        probs = np.asarray(probs)
        if probs.ndim not in (3, 4) or not probs.shape[-3] or probs.shape[-2:] != self.shape:
            raise ValueError(
                f"multi-label scores must be (L, {self._size}) or (K, L, {self._size}) with L >= 1, "
                f"got shape {probs.shape}"
            )
        flat = _checked(probs).reshape(-1 if probs.size else len(probs), probs.shape[-3], self._count)
        return self._engine.multilabel(flat, self._weights(weights, len(flat))).reshape(probs.shape)

    def _weights(self, weights: Weights | None, count: int) -> FloatArray:
        if weights is None:
            weights = [(self.params.gaussian_compat, self.params.bilateral_compat)] * count
        found = np.asarray(weights, np.float32).reshape(-1, 2)
        if len(found) != count or not (np.isfinite(found).all() and (found >= 0).all()):
            raise ValueError(f"{count} CRF problems need as many pairs of finite weights >= 0, got {found.tolist()}")
        return found

    def filter(
        self,
        values: NDArray[np.floating],
        *,
        kernel: Literal["bilateral", "gaussian"] = "bilateral",
        normalised: bool = False,
    ) -> FloatArray:
        """Filter by one of the two kernels alone, of weight 1: `out_i = sum_j k(i, j) values_j`, j = i included.

        k(i, j) is `exp(-|f_i - f_j|^2 / 2)`, f the position and, for the bilateral kernel, the colour, divided by the
        kernel's widths, as the lattice approximates it: `normalised` within 0.1 of the exact affinities, else with sums
        that are about 0.6 of the exact ones, on photos 0.4 to 0.76 at 98 % of the pixels.

        Args:
            values: (C, H, W), finite.
            kernel: Which.
            normalised: Divide by `sqrt(sum_j k(i, j))` before and after, as the CRF does.

        Returns:
            (C, H, W) float32.

        Raises:
            ValueError: Another shape, a value that is not finite, no such kernel; see also `binary`.
            NotImplementedError: The backend has no filter.
        """
        values = np.asarray(values)
        if values.ndim != 3 or values.shape[1:] != self.shape:
            raise ValueError(f"values to filter must be (C, {self._size}), got shape {values.shape}")
        if kernel not in ("bilateral", "gaussian"):
            raise ValueError(f"no kernel {kernel!r}; there are bilateral, gaussian")
        flat = np.ascontiguousarray(values, np.float32).reshape(len(values), self._count)
        if not np.isfinite(flat).all():
            raise ValueError("values to filter must be finite; there are NaN or infinite ones")
        return self._engine.filter(flat, kernel=kernel, normalised=normalised).reshape(values.shape)

    @property
    def _count(self) -> int:
        # not -1 in its place: numpy cannot tell the pixels of no problem at all
        return self.shape[0] * self.shape[1]

    @property
    def _size(self) -> str:
        return f"{self.shape[0]}, {self.shape[1]}"


def _checked(scores: NDArray[np.floating]) -> FloatArray:
    """C-ordered float32, finite and not negative."""
    values = np.ascontiguousarray(scores, np.float32)
    # NaN fails both comparisons
    if values.size and not (values.min() >= 0 and values.max() < np.inf):
        raise ValueError("CRF scores must be finite and non-negative; there are negative, NaN or infinite ones")
    return values


class _Lattices:
    """The numba backend: points are pixels in row order, (..., N)."""

    def __init__(self, image: NDArray[np.uint8], params: CrfParams) -> None:
        from pmm_ray.masks import workspace

        self._image, self._params = image, params
        self._workspace = workspace.borrow()
        self._gaussian: Kernel | None = None
        self._bilateral: Kernel | None = None
        weakref.finalize(self, workspace.give_back, self._workspace)

    def binary(self, scores: FloatArray, weights: FloatArray) -> FloatArray:
        return self._problem().two_labels(scores, weights)

    def multilabel(self, scores: FloatArray, weights: FloatArray) -> FloatArray:
        return self._problem().many_labels(scores, weights)

    def filter(self, values: FloatArray, *, kernel: str, normalised: bool) -> FloatArray:
        chosen = self._bilateral_kernel() if kernel == "bilateral" else self._gaussian_kernel()
        if normalised:
            return chosen.filter(values, workspace=self._workspace)
        # F = D K D with D = diag(norm)
        norm = chosen.norm[: values.shape[1]]
        return chosen.filter(values / norm, workspace=self._workspace) / norm

    def _problem(self) -> Problem:
        from pmm_ray.masks.meanfield import Problem

        return Problem(
            gaussian=self._gaussian_kernel(),
            bilateral=self._bilateral_kernel(),
            iterations=self._params.iterations,
            floor=MIN_SCORE,
            workspace=self._workspace,
        )

    def _bilateral_kernel(self) -> Kernel:
        from pmm_ray.masks.lattice import build, colour_features
        from pmm_ray.masks.meanfield import kernel

        if self._bilateral is None:
            height, width = self._image.shape[:2]
            sxy, srgb = self._params.bilateral_sxy, self._params.bilateral_srgb
            features = colour_features(self._image, sxy=sxy, srgb=srgb, workspace=self._workspace)
            self._bilateral = kernel(build(features, height * width, self._workspace), workspace=self._workspace)
        return self._bilateral

    def _gaussian_kernel(self) -> Kernel:
        if self._gaussian is None:
            height, width = self._image.shape[:2]
            make = _gaussian_kernel if height * width <= _CACHED_PIXELS else _gaussian_kernel.__wrapped__
            self._gaussian = make(height, width, self._params.gaussian_sxy)
        return self._gaussian


_CACHED_PIXELS = 1 << 21
"""Gaussian kernels of larger images are not kept for the next one."""


@lru_cache(maxsize=16)
def _gaussian_kernel(height: int, width: int, sxy: float) -> Kernel:
    """The kernel in position alone, which images of one size share."""
    from pmm_ray.masks.lattice import build, place_features
    from pmm_ray.masks.meanfield import kernel
    from pmm_ray.masks.workspace import borrow, give_back

    work = borrow()
    features = place_features(height, width, sxy=sxy, workspace=work)
    made = kernel(build(features, height * width, work), workspace=work).copy()
    give_back(work)
    return made


def compile_engine(*, labels: int = 8, problems: int = 1, channels: int = 0) -> None:
    """Compile the numba engine, or load what another process here compiled, so that no image has to wait for it.

    Takes about ten seconds the first time on a machine and half a second later.

    Args:
        labels: The most labels that `multilabel` will be given, >= 1. Two-label problems are prepared in any number.
        problems: The most problems that `multilabel` will be given at once, >= 1.
        channels: How many channels `filter` will be given; 0: it will not be used.
    """
    from pmm_ray.masks.jit import one_process_at_a_time

    with one_process_at_a_time():
        crf = DenseCRF(np.zeros((3, 3, 3), np.uint8))
        for count in (1, 2, 4, 8):
            crf.binary(np.ones((count, 2, 3, 3), np.float32))
        for count in (1, 2, 4, *range(8, labels + 8, 8)):
            for together in (1, 2, 4, 8)[: 1 + (problems - 1).bit_length()]:
                crf.multilabel(np.ones((together, count, 3, 3), np.float32))
        crf.filter(np.ones((channels, 3, 3), np.float32))


def _pydensecrf(image: NDArray[np.uint8], params: CrfParams) -> Any:
    from pmm_ray.masks.pydense import PyDenseCRF

    return PyDenseCRF(
        image,
        gaussian_sxy=params.gaussian_sxy,
        bilateral=(params.bilateral_sxy, params.bilateral_srgb),
        iterations=params.iterations,
        floor=MIN_SCORE,
    )


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
