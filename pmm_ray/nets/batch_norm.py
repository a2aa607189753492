"""Batch norm policies: frozen, and over the global batch whatever the number of workers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from timm.layers import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def batch_norms(module: nn.Module) -> Iterator[_BatchNorm]:
    """Every batch norm inside `module`."""
    return (child for child in module.modules() if isinstance(child, _BatchNorm))


def freeze_batch_norm(module: nn.Module) -> None:
    """Use stored statistics and learn no affine part. To be repeated after every `module.train()`, which undoes it."""
    for norm in batch_norms(module):
        norm.eval().requires_grad_(False)


def learns_batch_norm(module: nn.Module) -> bool:
    """Whether some batch norm takes its statistics from the batch in training mode."""
    return any(norm.training for norm in batch_norms(module))


def synchronise_batch_norm(module: nn.Module, device: torch.device) -> nn.Module:
    """Make every batch norm take its statistics over all workers' samples; names in the state dict stay as they are.

    torch.nn.SyncBatchNorm exists for GPUs only, so on CPUs `GlobalBatchNorm` does the same.
    """
    if device.type == "cuda":
        return convert_sync_batchnorm(module)
    for name, child in module.named_children():
        if isinstance(child, _BatchNorm):
            setattr(module, name, GlobalBatchNorm(child))
        else:
            synchronise_batch_norm(child, device)
    return module


class _SumOverWorkers(torch.autograd.Function):
    """y = sum of all workers' x. Each worker's loss depends on y, so the gradient is the sum of all gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class GlobalBatchNorm(_BatchNorm):
    """A batch norm over all workers of the default process group, for devices without torch.nn.SyncBatchNorm.

    It takes over the parameters, buffers and, where the source is timm's norm with activation, what follows the norm.
    Workers may hold different numbers of samples.
    """

    def __init__(self, source: _BatchNorm):
        super().__init__(source.num_features, source.eps, source.momentum, source.affine, source.track_running_stats)
        self.weight, self.bias = source.weight, source.bias
        self.running_mean, self.running_var = source.running_mean, source.running_var
        self.num_batches_tracked = source.num_batches_tracked
        self.drop = getattr(source, "drop", nn.Identity())
        self.act = getattr(source, "act", nn.Identity())
        self.train(source.training)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected (N, C, ...), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """(N, C, ...) normalised per channel, then dropped out and activated as the source did."""
        if not self.training:
            return self.act(self.drop(super().forward(input)))
        shape = (1, -1, *[1] * (input.ndim - 2))
        axes = [axis for axis in range(input.ndim) if axis != 1]
        count = input.new_tensor([input.numel() / input.shape[1]])
        sums = _SumOverWorkers.apply(torch.cat([input.sum(axes), count]))
        count, mean = sums[-1].detach(), sums[:-1] / sums[-1].detach()
        centred = input - mean.view(shape)
        variance = _SumOverWorkers.apply(centred.square().sum(axes)) / count
        self._remember(mean.detach(), variance.detach(), count)
        normal = centred * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            normal = normal * self.weight.view(shape) + self.bias.view(shape)
        return self.act(self.drop(normal))

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Update the running statistics as torch does: with the unbiased variance."""
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        rate = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, rate)
        self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), rate)
