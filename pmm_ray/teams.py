"""Who trains together: one process, or several that torch.distributed connects."""

from __future__ import annotations

from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pmm_ray.nets.batch_norm import synchronise_batch_norm


class Team(Protocol):
    """The workers of one training, seen from one of them."""

    rank: int
    size: int
    device: torch.device

    def wrap(self, module: nn.Module) -> nn.Module:
        """`module` such that every backward pass leaves the mean of all workers' gradients."""
        ...

    def sum(self, value: Tensor) -> Tensor:
        """Sum over the workers, the same on each, without gradient."""
        ...

    def gather(self, value: Any) -> list[Any]:
        """Every worker's value, in order of rank."""
        ...


class LocalTeam:
    """A team of one."""

    rank, size = 0, 1

    def __init__(self, device: torch.device | str = "cpu"):
        self.device = torch.device(device)

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module itself."""
        return module

    def sum(self, value: Tensor) -> Tensor:
        """The value itself."""
        return value.detach()

    def gather(self, value: Any) -> list[Any]:
        """A list of the one value."""
        return [value]


class DistributedTeam:
    """The workers of torch.distributed's default process group, which must be there."""

    def __init__(self, device: torch.device | str = "cpu"):
        self.device = torch.device(device)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def wrap(self, module: nn.Module) -> nn.Module:
        """Batch norm over the global batch, gradients averaged."""
        if self.size == 1:
            return module
        module = synchronise_batch_norm(module, self.device)
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=devices)

    def sum(self, value: Tensor) -> Tensor:
        """One all-reduce."""
        total = value.detach().clone()
        dist.all_reduce(total)
        return total

    def gather(self, value: Any) -> list[Any]:
        """One all-gather of pickled values."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values


def global_mean(values: Tensor, *, count: Tensor | int, team: Team) -> Tensor:
    """Mean over all workers' values, as a loss of which each worker holds a part.

    The sum of this worker's `values` (zero where ignored) times the team's size over the team's `count`: the average
    over workers, which distributed training takes of gradients, is then the exact mean, however unevenly the workers'
    counts fall. 0 where nothing counts.
    """
    total = team.sum(torch.as_tensor(count, dtype=torch.float64, device=values.device)).clamp(min=1)
    return values.sum() * (team.size / total).to(values.dtype)
