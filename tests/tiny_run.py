"""A whole PMM run on a handful of drawn images, and what it leaves."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
from pathlib import Path

from pmm_ray.run import main

NET = "{backbone: resnet10t, weights: none, batch_norm: train, output_stride: 32}"


def tiny(folder: Path, *more: str, store: str = "store") -> list[str]:
    """Settings of a whole PMM run that takes seconds."""
    return [
        f"store={folder / store}",
        f"data.root={folder / 'shapes'}",
        "data.shapes={train: 10, val: 4}",
        f"cam.net={NET}",
        "cam.train={epochs: 2, batch_size: 4, crop: 64}",
        "cam.infer={scales: [1.0], flip: false}",
        f"seg.net={NET}",
        "seg.arch=unet",
        "seg.train={epochs: 2, batch_size: 4, crop: 64}",
        "seg.predict={scales: [1.0], flip: false}",
        "cycles.count=1",
        "cluster.num_cpus=2",
        "cluster.train_workers=2",
        "tracking.overlays=2",
        *more,
    ]


def run_here(words: list[str]) -> str:
    """Run in this process, in the Ray it has; what was printed."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        assert main(words) == 0, output.getvalue()
    return output.getvalue()


def masks(store: Path) -> dict[str, str]:
    """Content hash of every mask, by stage and image (artefacts' folders have names that depend on their inputs)."""
    return {
        f"{path.parts[-4]}/{path.name}/{hashlib.sha256(path.read_bytes()).hexdigest()}": path.name
        for stage in ("make_masks", "predict_masks")
        for path in (store / stage).glob("*/masks/*.png")
    }


def losses(store: Path, stage: str) -> list[list[float]]:
    """The losses of each training of this stage, epoch by epoch, in the order of their artefacts' names."""
    found = sorted((store / stage).glob("*/metrics.jsonl"))
    return [[json.loads(line)["loss"] for line in path.read_text().splitlines()] for path in found]


def copy_stages(stages: tuple[str, ...], store: Path, into: Path) -> None:
    """Give another store what these stages made."""
    for stage in stages:
        shutil.copytree(store / stage, into / stage)
