"""What a training leaves behind: the record of its epochs, and the state to go on from after an interruption."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pmm_ray.files import atomic_path, readable, write_atomic

CHECKPOINT = "checkpoint.pt"
METRICS = "metrics.jsonl"


@dataclass
class Record:
    """What came of the epochs so far: their figures, and the images that could not be used (name: why)."""

    history: list[dict[str, float]] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)


def write_history(folder: Path, record: Record) -> None:
    """Write `metrics.jsonl` anew, one line per epoch: an epoch done again after an interruption is there once."""
    write_atomic(folder / METRICS, "".join(json.dumps(figures) + "\n" for figures in record.history))


def read_history(folder: Path) -> Iterator[dict[str, float]]:
    """The epochs in `metrics.jsonl`; none if it is not there yet."""
    path = folder / METRICS
    if path.is_file():
        yield from (json.loads(line) for line in path.read_text().splitlines())


def save(
    folder: Path, record: Record, *, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> None:
    """Write `checkpoint.pt`, atomically. The learning rates need no place in it: they follow from the step."""
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scaler": scaler.state_dict(),
        "history": record.history,
        "problems": record.problems,
    }
    with atomic_path(folder / CHECKPOINT) as temporary:
        torch.save(state, temporary)


def restore(
    folder: Path, *, model: nn.Module, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler
) -> Record:
    """Load `checkpoint.pt` if there is one; the record up to it (empty: from the start)."""
    state = _read(folder)
    if state is None:
        return Record()
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    if state["scaler"]:  # empty where the precision so far needed none
        scaler.load_state_dict(state["scaler"])
    return Record(state["history"], state["problems"])


def epochs_in(folder: Path) -> int:
    """After how many epochs `checkpoint.pt` was written; 0 if there is none."""
    state = _read(folder)
    return 0 if state is None else len(state["history"])


def _read(folder: Path) -> dict[str, Any] | None:
    if not (folder / CHECKPOINT).is_file():
        return None
    state: dict[str, Any] = torch.load(readable(folder / CHECKPOINT), map_location="cpu", weights_only=True)
    return state


def discard(folder: Path) -> None:
    """Remove the checkpoint: the training it belongs to has left its model."""
    (folder / CHECKPOINT).unlink(missing_ok=True)
