"""The mask artefact: palette PNGs below `masks/` (and `raw/`), and one row of facts for each image."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pmm_ray.artefacts import Artefact
from pmm_ray.cluster.journal import OK, ROWS_FILE
from pmm_ray.data.dataset import IGNORE, Photos
from pmm_ray.files import readable

MASKS, RAW = "masks", "raw"

MASK_FACTS = pa.schema(
    [
        ("classes", pa.list_(pa.int32())),
        ("area", pa.list_(pa.int64())),
        ("cv", pa.list_(pa.float32())),
        ("background_area", pa.int64()),
        ("ignored_area", pa.int64()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("seconds", pa.float32()),
    ]
)
"""Classes 1..C that the mask may hold, the pixels of each in `masks/`, the CAM's coefficient of variation of each
(null where there is no CAM), the pixels of background and of 255, the image's size, and the time it took."""


def mask_file(out: Path, folder: str, name: str) -> Path:
    """Where the mask of image `name` ('a/b') belongs: `<out>/<folder>/a/b.png`."""
    return out / folder / f"{name}.png"


def mask_facts(mask: NDArray[np.uint8], classes: Sequence[int] | None = None) -> dict[str, Any]:
    """The columns of `MASK_FACTS` that a mask (H, W) shows itself; `classes` None: those it holds."""
    counts = np.bincount(mask.ravel(), minlength=256)
    listed = [int(i) for i in (np.flatnonzero(counts) if classes is None else classes) if i not in (0, IGNORE)]
    return {
        "classes": listed,
        "area": [int(counts[i]) for i in listed],
        "background_area": int(counts[0]),
        "ignored_area": int(counts[IGNORE]),
        "height": mask.shape[0],
        "width": mask.shape[1],
    }


def mask_paths(artefact: Artefact, folder: str = MASKS) -> dict[str, Path]:
    """Image name -> mask file, of the images whose mask was made. `folder` is 'masks', or 'raw' for before the CRF."""
    table = pq.read_table(readable(artefact.path / ROWS_FILE), columns=["name", "status"])
    names = (row["name"] for row in table.to_pylist() if row["status"] == OK)
    return {name: mask_file(artefact.path, folder, name) for name in names}


def mask_errors(artefact: Artefact) -> dict[str, str]:
    """Image name -> why it has no mask, of the images whose mask could not be made."""
    table = pq.read_table(readable(artefact.path / ROWS_FILE), columns=["name", "status", "error"])
    return {row["name"]: row["error"] for row in table.to_pylist() if row["status"] != OK}


def area_shares(table: pa.Table, photos: Photos) -> dict[str, float]:
    """Share of all pixels that each class and the background got: {name: share}, for a stage's facts."""
    counts = np.zeros(256, np.int64)
    for row in table.select(["classes", "area", "background_area"]).to_pylist():
        if row["classes"] is not None:
            np.add.at(counts, row["classes"], row["area"])
            counts[0] += row["background_area"]
    total = max(1, int(counts.sum()))
    return {name: round(int(count) / total, 5) for name, count in zip(photos.classes.names, counts, strict=False)}
