"""RRM's dense energy: pixels that look alike and lie near each other should get the same class.

The loss of "Reliability Does Matter" for pixels without a label, after Tang et al. (2018), "On Regularized Losses for
Weakly-supervised CNN Segmentation". It needs nothing but a filter by the affinities, which is an argument: on CPUs the
CRF engine's lattice (`LatticeFilter`), elsewhere whatever maps a batch to a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pmm_ray.data.dataset import IGNORE
from pmm_ray.masks.crf import CrfParams, DenseCRF

Filter = Callable[[Tensor], Tensor]
"""(N, L, H, W) float32 to the same shape, on the same device: each channel of image n times its affinities K_n."""
Gradient = Literal["published", "exact"]
Map = Callable[[Callable[..., Any], Iterable[Any], Iterable[Any]], Iterable[Any]]
"""As the built-in `map` over two sequences; an executor's `map` spreads the images over threads."""


def dense_energy(
    probabilities: Tensor, labels: Tensor, inside: Tensor, *, filter: Filter, gradient: Gradient = "published"
) -> Tensor:
    """Dense energy of each image, negative by construction: `-sum_i S_i sum_k P_ik (K P_k)_i`.

    K holds the affinities k(i, j), those of a pixel with itself included. The gate S leaves alone what is settled:
    `S_i = 1` where the label is 255, else `max(0, 1 - max_k P_ik)`, and no gradient flows through it. Pixels that are
    not of the photo have P = 0 and S = 0.

    The published gradient is `-2 S_i (K P_k)_i`. That of the formula is `-S_i (K P_k)_i - (K S P_k)_i` (`exact`, at the
    cost of a second filter): the same where S is one number everywhere; elsewhere the published one does not pull a
    settled pixel towards the unlabelled ones around it, and pulls those twice.

    Args:
        probabilities: (N, L, H, W) floats in [0, 1].
        labels: (N, H, W) integers, 255 where there is no label; nothing else about them counts.
        inside: (N, H, W) bool, False where the image was padded.
        filter: K.
        gradient: Which.

    Returns:
        (N,) float32, <= 0. Its size grows with the number of pixels squared, hence the tiny weight that it is given.

    Raises:
        ValueError: Shapes that differ, also that of what the filter returns, or no such gradient.
    """
    if labels.shape != inside.shape or labels.shape != (len(probabilities), *probabilities.shape[2:]):
        raise ValueError(
            f"labels {tuple(labels.shape)} and inside {tuple(inside.shape)} must be (N, H, W) of probabilities "
            f"{tuple(probabilities.shape)}"
        )
    if gradient not in ("published", "exact"):
        raise ValueError(f"no gradient {gradient!r}; there are published, exact")
    p = probabilities.float() * inside[:, None]
    return _Energy.apply(p, energy_gate(p.detach(), labels, inside), filter, gradient == "exact")


def energy_gate(probabilities: Tensor, labels: Tensor, inside: Tensor) -> Tensor:
    """S of `dense_energy`: (N, H, W) in [0, 1]."""
    open_share = (1 - probabilities.amax(dim=1)).clamp(min=0)
    return torch.where(labels == IGNORE, torch.ones_like(open_share), open_share) * inside


class _Energy(torch.autograd.Function):
    """The energies (N,) of P (N, L, H, W), with the gate and the filter held constant."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, gate: Tensor, filter: Filter, exact: bool) -> Tensor:
        filtered = filter(p)
        if filtered.shape != p.shape:
            raise ValueError(f"the filter made {tuple(filtered.shape)} of {tuple(p.shape)}, which must stay")
        gated = filtered * gate[:, None]
        ctx.save_for_backward(gated, p if exact else p.new_empty(0), gate)
        ctx.filter, ctx.exact = filter, exact
        return -(p * gated).sum(dim=(1, 2, 3))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        gated, p, gate = ctx.saved_tensors
        slope = gated + ctx.filter(p * gate[:, None]) if ctx.exact else 2 * gated
        return -gradients[0][:, None, None, None] * slope, None, None, None


class LatticeFilter:
    """A `Filter` by the bilateral kernel of each image, on the CRF engine's lattices, on CPUs.

    `k(i, j) = exp(-|x_i - x_j|^2 / (2 sxy^2) - |c_i - c_j|^2 / (2 srgb^2))`, not normalised, as the lattice
    approximates it: its sums are about 0.6 of the exact ones, on photos 0.4 to 0.76 at 98 % of the pixels. The
    published code filters by such a lattice too, so the published weight is one of these sums. A lattice is built when
    its image is first filtered.

    Args:
        images: (N, 3, H, W) uint8 RGB.
        sxy: Width in position, pixels of these images, > 0.
        srgb: Width in colour, 0..255, > 0.
        map: What spreads the images over threads; the engine leaves Python's lock to others while it works.
    """

    def __init__(self, images: Tensor, *, sxy: float, srgb: float, map: Map = map) -> None:
        # the Gaussian kernel is never built
        params = CrfParams(
            gaussian_sxy=1, gaussian_compat=0, bilateral_sxy=sxy, bilateral_srgb=srgb, bilateral_compat=1
        )
        self._kernels = [DenseCRF(image, params=params) for image in images.movedim(1, -1).cpu().numpy()]
        self._map = map

    def __call__(self, values: Tensor) -> Tensor:
        """(N, L, H, W) float32 to the same; NaN for an image with a value that is no number.

        Raises:
            ValueError: Not as many as there are images, or of another size.
        """
        if len(values) != len(self._kernels):
            raise ValueError(f"a filter for {len(self._kernels)} images was given {len(values)}")
        found = list(self._map(_filtered, self._kernels, values.detach().float().cpu().numpy()))
        return torch.from_numpy(np.stack(found)).to(values.device)


def _filtered(kernel: DenseCRF, values: NDArray[np.float32]) -> NDArray[np.float32]:
    # the training loop stops at a loss that is no number, and names step and images, which the engine cannot
    return kernel.filter(values) if np.isfinite(values).all() else np.full_like(values, np.nan)
