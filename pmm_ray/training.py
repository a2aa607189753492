"""The plain training loop. It knows torch and a team, and neither Ray nor what is being trained."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pmm_ray import checkpoints
from pmm_ray.checkpoints import Record
from pmm_ray.data.loading import Draw, Examples, GlobalBatches, Targets, loader, torch_seed
from pmm_ray.errors import SettingError
from pmm_ray.nets.batch_norm import learns_batch_norm
from pmm_ray.teams import Team


@dataclass(frozen=True)
class Plan:
    """The numbers of one training. `batch_size` is over all workers, `amp` counts on GPUs only."""

    epochs: int
    batch_size: int
    optimizer: Literal["sgd", "adamw"]
    lr: float
    head_lr_factor: float
    momentum: float
    weight_decay: float
    poly_power: float
    warmup: int
    checkpoint_every: int
    loader_workers: int
    amp: bool
    seed: int
    until: int | None = None
    """Stop after this epoch, to go on later; None: all epochs."""


class Objective(nn.Module):
    """What is trained, and for what.

    A subclass takes (images (N, 3, H, W) uint8, targets) in `forward` and returns scalars: 'loss', whose mean over the
    workers is the loss of the global batch (see `global_mean`), and figures to be averaged over workers and over those
    steps that have them. `net` holds the pretrained part as `net.backbone`.
    """

    net: Any
    progress: float = 0.0
    """Share of all steps that lie behind, in [0, 1); the loop sets it, for what has a schedule."""

    def idle(self) -> Iterable[nn.Parameter]:
        """Parameters that take no part at present, and are to stay as they are.

        A gradient of zeros, which distributed training wants of them, is not enough for that: weights would decay, and
        Adam's averages of gradients would fill with zeros and make the first real steps too large.
        """
        return ()


def train(
    objective: Objective,
    examples: Examples,
    *,
    plan: Plan,
    team: Team,
    out: Path,
    report: Callable[[dict[str, float]], None] = lambda figures: None,
) -> Record:
    """Train to the plan's end, or to its epoch `until`, from the checkpoint in `out` if there is one.

    Every worker of the team calls this. The backbone learns at `plan.lr`, all else at `plan.lr * plan.head_lr_factor`.
    After each epoch rank 0 writes `metrics.jsonl`, calls `report` with the epoch's figures and, as often as planned,
    writes `checkpoint.pt`. A run that was ended at any point goes on after its last checkpoint, reports the epochs
    since then again, and comes to the same result.

    Raises:
        SettingError: a loss is not finite (every worker raises, naming step and images), or gradients in float16 are
            not, again and again; or a batch norm has one image.
    """
    if plan.batch_size < 2 and learns_batch_norm(objective):
        raise SettingError(
            f"train.batch_size={plan.batch_size}: give at least 2, as batch norm has no statistics of a single image"
        )
    objective.to(team.device).to(memory_format=torch.channels_last)
    model = team.wrap(objective)
    optimizer = make_optimizer(objective, plan)
    half, scaler = _precision(team, amp=plan.amp)
    state: dict[str, Any] = {"model": objective, "optimizer": optimizer, "scaler": scaler}
    record = checkpoints.restore(out, **state)
    if len(set(team.gather(len(record.history)))) > 1:
        # no word for the user yet: a file system may be late, and another attempt see it
        raise RuntimeError(f"the workers see different checkpoints in {out}; all nodes must share the store")
    batches = GlobalBatches(
        count=len(examples), batch_size=plan.batch_size, seed=plan.seed, rank=team.rank, workers=team.size
    )
    steps = plan.epochs * len(batches)
    loading = loader(examples, batches, processes=plan.loader_workers, pin=team.device.type == "cuda")

    def run_epoch(epoch: int) -> dict[str, float]:
        batches.epoch, means = epoch, _Means()
        # first, for it draws a number itself, with processes of its own in a run's first epoch alone
        loaded = iter(loading)
        # of what the network itself draws (dropout): an epoch done again is the one it would have been
        torch.manual_seed(torch_seed(plan.seed, epoch, team.rank))
        model.train()
        for step, (draws, batch) in enumerate(zip(batches.whole(), loaded, strict=True), epoch * len(batches)):
            set_rates(optimizer, rate(step, steps=steps, power=plan.poly_power, warmup=plan.warmup))
            objective.progress = step / steps
            images, targets = _on(team.device, batch.images), _on(team.device, batch.targets)
            with torch.autocast(team.device.type, dtype=half, enabled=half is not None):
                figures = model(images, targets)
            _require_finite(figures["loss"], team=team, step=step, draws=draws, examples=examples)
            scaler.scale(figures["loss"]).backward()
            for parameter in objective.idle():
                parameter.grad = None
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            means.add(figures)
            record.problems.update(batch.problems)
        if scaler.is_enabled() and scaler.get_scale() < 1:
            # it halves at each step that it skips, so at this one nothing has been learned for long
            raise SettingError(
                f"train.lr: gradients are not finite, so epoch {epoch + 1} taught nothing: lower it, or turn amp off"
            )
        return means.over(team)

    last = plan.until or plan.epochs
    for epoch in range(len(record.history), last):
        started = time.monotonic()
        figures = run_epoch(epoch)
        rates = {"lr": optimizer.param_groups[0]["lr"], "seconds": time.monotonic() - started}
        record.history.append({"epoch": epoch + 1, **figures, **rates})
        record.problems = {name: why for part in team.gather(record.problems) for name, why in part.items()}
        if team.rank == 0:
            checkpoints.write_history(out, record)
            report(record.history[-1])
            if (epoch + 1) % plan.checkpoint_every == 0 or epoch + 1 == last:
                checkpoints.save(out, record, **state)
    return record


def make_optimizer(objective: Objective, plan: Plan) -> torch.optim.Optimizer:
    """SGD or AdamW: the backbone at `lr`, the rest at `lr * head_lr_factor`; vectors (norms, biases) do not decay."""
    pretrained = {id(parameter) for parameter in objective.net.backbone.parameters()}
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    for parameter in objective.parameters():
        if parameter.requires_grad:
            groups.setdefault((id(parameter) in pretrained, parameter.ndim > 1), []).append(parameter)
    settings: list[dict[str, Any]] = []
    for (old, decays), parameters in sorted(groups.items(), key=lambda item: item[0], reverse=True):
        base = plan.lr if old else plan.lr * plan.head_lr_factor
        decay = plan.weight_decay if decays else 0.0
        settings.append({"params": parameters, "lr": base, "base_lr": base, "weight_decay": decay})
    if plan.optimizer == "sgd":
        return torch.optim.SGD(settings, lr=plan.lr, momentum=plan.momentum, weight_decay=plan.weight_decay)
    return torch.optim.AdamW(settings, lr=plan.lr, weight_decay=plan.weight_decay)


def rate(step: int, *, steps: int, power: float, warmup: int = 0) -> float:
    """Share of the base learning rate at `step` (from 0): poly, `(1 - step / steps)^power`, after a linear warm-up."""
    rising = min(1.0, (step + 1) / warmup) if warmup else 1.0
    return rising * (1 - step / steps) ** power


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Give every group its base rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


class _Means:
    """Running sums of an epoch's figures; the average over steps and workers is taken once, at the end.

    A figure need not be there at every step, but on every worker or on none.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._steps: Counter[str] = Counter()

    def add(self, figures: Mapping[str, Tensor]) -> None:
        self._steps.update(figures.keys())
        for name, value in figures.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach().double()

    def over(self, team: Team) -> dict[str, float]:
        sums = team.sum(torch.stack(list(self._sums.values())))
        return {
            name: float(value) / (self._steps[name] * team.size) for name, value in zip(self._sums, sums, strict=True)
        }


def _on(device: torch.device, tensors: Targets) -> Any:
    """The tensor, or each of several, on the device."""
    if isinstance(tensors, tuple):
        return tuple(tensor.to(device, non_blocking=True) for tensor in tensors)
    return tensors.to(device, non_blocking=True)


def _require_finite(loss: Tensor, *, team: Team, step: int, draws: list[Draw], examples: Examples) -> None:
    """Stop on every worker at once if the global loss is no number: skipping the step would hide what is wrong."""
    value = float(team.sum(loss)) / team.size
    if not math.isfinite(value):
        names = ", ".join(examples.photos[draw.photo].name for draw in draws)
        raise SettingError(
            f"train.lr: the loss is {value} at step {step + 1}: lower it, or look at its images: {names}"
        )


def _precision(team: Team, *, amp: bool) -> tuple[torch.dtype | None, torch.amp.GradScaler]:
    """The type of mixed precision (None: none) and its gradient scaler, which only float16 needs; one for all workers.

    bfloat16 where every GPU has it: emulated, it is slower than none.
    """
    if team.device.type != "cuda" or not amp:
        return None, torch.amp.GradScaler(team.device.type, enabled=False)
    everywhere = all(team.gather(torch.cuda.is_bf16_supported(including_emulation=False)))
    half = torch.bfloat16 if everywhere else torch.float16
    return half, torch.amp.GradScaler("cuda", enabled=half == torch.float16)
