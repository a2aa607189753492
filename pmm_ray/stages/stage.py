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


Facts = dict[str, Any]
