"""Matting Laplacians, and the one system of equations that turns a Laplacian and a trimap into a matte: pymatting's.

A Laplacian L says which pixels look alike: `x' L x` is small where those have equal values. Matting gives the known
pixels K their values and the unknown ones U those that make it smallest: `L_UU x_U = -L_UK x_K`.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal, TypeAlias

import numpy as np
import scipy.sparse
from numpy.typing import NDArray

Kind = Literal["closed_form", "knn", "random_walk"]
Laplacian: TypeAlias = Any
"""scipy.sparse.csr_matrix of float64, which has no types of its own."""

_TOLERANCE = 1e-4
"""Of the residual, to that of zeros. Labels differ from those of 1e-7 at a thousandth of the unknown pixels."""
_MOST_STEPS = 5000
_RANDOM_WALK_BETA, _LEAST_WEIGHT = 900.0, 1e-4
LEAST_EPSILON = 1e-6
"""Of the closed form. Below, rounding makes Laplacians of grey photos indefinite, and then divides by zero."""


def laplacian(image: NDArray[np.uint8], *, kind: Kind, epsilon: float) -> Laplacian:
    """The matting Laplacian of an image.

    - `closed_form`: Levin et al. (2008), in each 3 x 3 window colours lie on a line; `epsilon` regularises
      departures from it.
    - `knn`: Chen et al. (2013), each pixel and those nearest to it in colour and place, 20 with much weight on place
      and 10 with little. It alone ties pixels that do not touch.
    - `random_walk`: Grady et al. (2005), the eight neighbours by `exp(-900 |colour difference|^2)`. Departure: at least
      1e-4, so that no pixel is cut off.

    pymatting's own Laplacians of the last two divide each row by its sum. Undivided, as here, they have the same
    solutions and are symmetric, which conjugate gradients need.

    Args:
        image: (H, W, 3) uint8 RGB, H and W at least 3.
        kind: Which.
        epsilon: Of `closed_form` alone, at least `LEAST_EPSILON`. pymatting has 1e-7; a CAM leaves so much unknown that
            this takes minutes for some photos, and smooth mattes are no loss where labels are wanted.

    Returns:
        (H W, H W) symmetric, positive semi-definite, its rows sum to 0; pixels in row order.

    Raises:
        ValueError: No such kind.
    """
    colours = image.astype(np.float64) / 255
    if kind == "closed_form":
        return pymatting().cf_laplacian(colours, epsilon=epsilon)
    if kind == "knn":
        return _of_weights(_nearest(colours))
    if kind == "random_walk":
        return _of_weights(_neighbours(colours))
    raise ValueError(f"no matting Laplacian {kind!r}; there are closed_form, knn, random_walk")


def solve(
    matrix: Laplacian, known: NDArray[np.bool_], values: NDArray[np.float64], start: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Values of all pixels, of which some are known: `L_UU x_U = -L_UK x_K`, for several sets of values at once.

    By conjugate gradients with the diagonal as preconditioner, from `start`. Unknown pixels that are tied to each other
    and to no known one take the mean of `start` over them, weighted by the diagonal. Where nothing ties any to one that
    is not 0, all are 0.

    Args:
        matrix: (N, N), see `laplacian`.
        known: (N,), not all False.
        values: (K, N), read where known. Sets that sum to 1 there have solutions that do everywhere.
        start: (K, N), read where unknown.

    Returns:
        (K, N), for `closed_form` also outside the range of `values`, though not by much; and (K,), of which sets these
        are solutions: 5000 steps were not enough for the others, which have `start` where unknown.
    """
    found, solved = np.where(known, values, start), np.ones(len(values), bool)
    rows = matrix[~known]
    inner, outer = rows[:, ~known], rows[:, known]
    if not inner.shape[0]:
        return found, solved
    preconditioner = pymatting().jacobi(inner)
    for index, (one, given) in enumerate(zip(found, values, strict=True)):
        right = -outer.dot(given[known])
        # the tolerance is a share of the right side, which has to be something
        if not right.any():
            one[~known] = 0
            continue
        try:
            one[~known] = pymatting().cg(
                inner, right, x0=one[~known], M=preconditioner, rtol=_TOLERANCE, maxiter=_MOST_STEPS
            )
        except ValueError:  # pymatting's word for a solution that did not come
            solved[index] = False
    return found, solved


@cache
def pymatting() -> Any:
    """The library, whose functions are compiled when it is imported: once on a machine, which takes half a minute.

    Other processes there wait for that and load them in a second.
    """
    # here, as the library itself: both bring the compiler, which a process without matting need not have
    from pmm_ray.masks.jit import kept, one_process_at_a_time

    with one_process_at_a_time(), kept("pymatting"):
        import pymatting

        return pymatting


def _of_weights(weights: Laplacian) -> Laplacian:
    return pymatting().weights_to_laplacian(weights, normalize=False).tocsr()


def _nearest(colours: NDArray[np.float64]) -> Laplacian:
    """As pymatting's `knn_laplacian`: 1 for each time that one of two pixels is among the nearest of the other."""
    from pmm_ray.masks.jit import one_thread

    height, width = colours.shape[:2]
    place = np.stack(np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height)), axis=-1)
    weights = scipy.sparse.csr_matrix((height * width, height * width))
    for count, weight in ((20, 2.0), (10, 0.1)):
        features = np.concatenate([colours, weight * place], axis=2).reshape(-1, 5).astype(np.float32)
        count = min(count, len(features))
        with one_thread():
            _, nearest = pymatting().knn(features, features, k=count)
        starts = np.arange(0, nearest.size + 1, count)
        weights += scipy.sparse.csr_matrix((np.ones(nearest.size), nearest.ravel(), starts), weights.shape)
    return weights + weights.T


def _neighbours(colours: NDArray[np.float64]) -> Laplacian:
    """As pymatting's `rw_laplacian` with radius 1, but for the border, where that counts pixels twice."""
    height, width = colours.shape[:2]
    number = np.arange(height * width).reshape(height, width)
    weights = scipy.sparse.csr_matrix((height * width, height * width))
    for down, right in ((0, 1), (1, 0), (1, 1), (1, -1)):
        here = (slice(0, height - down), slice(max(0, -right), width - max(0, right)))
        there = (slice(down, height), slice(max(0, right), width + min(0, right)))
        difference = ((colours[here] - colours[there]) ** 2).sum(axis=2)
        alike = np.maximum(np.exp(-_RANDOM_WALK_BETA * difference), _LEAST_WEIGHT).ravel()
        weights += scipy.sparse.csr_matrix((alike, (number[here].ravel(), number[there].ravel())), weights.shape)
    return weights + weights.T
