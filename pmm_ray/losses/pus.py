"""Pretended under-fitting, PUS: what a trained network still gets wrong counts as an error of the pseudo-mask."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Variant = Literal["clamp", "rescale", "pow", "ignore"]

POW_LINEAR_BELOW = 1e-6
"""Below this loss `pow` goes straight to 0: L^kappa with kappa < 1 has an infinite gradient at 0."""


def masked_mean(loss: Tensor, valid: Tensor) -> Tensor:
    """Mean of the valid pixels' losses on one worker's batch, the reduction where there is no team to sum over.

    Args:
        loss: (B, H, W) float, any value (even NaN) where not valid.
        valid: (B, H, W) bool, False where the mask says 255.

    Returns:
        Scalar of the loss's dtype. 0, with gradient 0, where no pixel counts.

    Raises:
        ValueError: Shapes that differ, or `valid` is not bool.
    """
    _check(loss, valid)
    return torch.where(valid, loss, torch.zeros_like(loss)).sum() / valid.sum().clamp(min=1)


def pretended_underfitting(
    loss: Tensor,
    valid: Tensor,
    *,
    variant: Variant,
    beta: float,
    kappa: float,
    mean: Tensor | float | None = None,
) -> tuple[Tensor, Tensor]:
    """PUS: leave the loss map L alone while its mean is >= beta; below that, take large losses for wrong labels.

    The variants, for pixels with L > kappa (`pow`: for all):

    - `clamp`: `min(L, kappa)`. Under autograd its gradient there is 0, the same as `ignore`'s; the value differs.
    - `rescale`: `L kappa / L` with the ratio held constant, the paper's formula: the value is kappa, the gradient is
      kappa / L of the plain one.
    - `ignore`: 0, where L >= kappa.
    - `pow`: `L^kappa`. For kappa < 1 it presses down losses above 1 and lifts those below. Departure: below
      `POW_LINEAR_BELOW` the straight line to 0 takes its place, which keeps the gradient finite.

    The gate. Without `mean` it is this worker's mean over valid pixels, as released: the moment PUS sets in then
    depends on how a batch is split among workers. Pass the mean over all workers' pixels to be free of that; or
    the mean over all pixels, ignored ones as zeros, for the released count.

    Args:
        loss: (B, H, W) float per-pixel loss, >= 0 where valid.
        valid: (B, H, W) bool, False where the mask says 255.
        variant: Which of the above.
        beta: Gate, >= 0; the paper has 0.5 on VOC, 0.8 on COCO. 0 never acts.
        kappa: Loss level, or power, > 0; the same values.
        mean: The gate's mean loss; no gradient flows through it.

    Returns:
        The per-pixel loss, (B, H, W), for `masked_mean`; and whether PUS acted, a scalar bool tensor (False where no
        mean was given and no pixel is valid). Nothing here waits for the GPU.

    Raises:
        ValueError: No such variant, a number out of bounds, or shapes that differ.
    """
    _check(loss, valid)
    if not beta >= 0 or not kappa > 0:
        raise ValueError(f"PUS needs beta >= 0 and kappa > 0, got beta {beta}, kappa {kappa}")
    if mean is None:
        active = valid.any() & (masked_mean(loss.detach(), valid) < beta)
    else:
        active = torch.as_tensor(mean, device=loss.device).detach() < beta
    return torch.where(active, _reshape(loss, variant=variant, kappa=kappa), loss), active


def _reshape(loss: Tensor, *, variant: str, kappa: float) -> Tensor:
    """The active form of a loss map."""
    if variant == "clamp":
        # Not torch.clamp: at L = kappa exactly that passes the gradient on, and clamp and ignore would differ.
        return torch.where(loss < kappa, loss, torch.full_like(loss, kappa))
    if variant == "rescale":
        return torch.where(loss > kappa, loss * (kappa / loss.detach().clamp(min=kappa)), loss)
    if variant == "ignore":
        return torch.where(loss < kappa, loss, torch.zeros_like(loss))
    if variant == "pow":
        if kappa >= 1:
            return loss**kappa
        line = loss * POW_LINEAR_BELOW ** (kappa - 1)
        return torch.where(loss < POW_LINEAR_BELOW, line, loss.clamp(min=POW_LINEAR_BELOW) ** kappa)
    raise ValueError(f"no PUS variant {variant!r}; there are clamp, rescale, pow, ignore")


def _check(loss: Tensor, valid: Tensor) -> None:
    if valid.dtype != torch.bool or loss.shape != valid.shape:
        raise ValueError(
            f"valid must be bool and of the loss's shape {tuple(loss.shape)}, "
            f"got {valid.dtype} of shape {tuple(valid.shape)}"
        )
