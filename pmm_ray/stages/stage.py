"""What every stage is given besides its inputs and settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pmm_ray.config import ClusterConfig


class Log(Protocol):
    """Where a stage's figures and pictures go. It travels to workers, so it must pickle."""

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Record figures, `step` counting epochs or whatever the stage counts."""
        ...

    def picture(self, path: Path, name: str) -> None:
        """Record an image file under `name` ('overlays/x.png')."""
        ...


@dataclass(frozen=True)
class Context:
    """Where a stage writes (`out`, its own folder and nothing else), its seed, resources and log.

    `out` may hold what an interrupted attempt left: a stage goes on from there. A stage returns its facts, a JSON-able
    dictionary of figures that the manifest keeps and later readers see as `artefact.facts`.
    """

    out: Path
    seed: int
    cluster: ClusterConfig
    log: Log
    title: str
    until: int | None = None
    """A training stops after this epoch and leaves the network in `snapshots/`; it is not finished by that."""


Facts = dict[str, Any]

MODEL = "model.pt"
"""The file of a model artefact."""


def snapshot(out: Path, epoch: int) -> Path:
    """Where a training keeps the network as it is after an epoch: a model artefact of its own within `out`."""
    return out / "snapshots" / f"{epoch:04d}" / MODEL
