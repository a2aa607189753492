"""The CAM artefact: shards of maps, and one row of facts for each image."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pmm_ray.artefacts import Artefact
from pmm_ray.cluster.journal import OK, ROWS_FILE
from pmm_ray.cluster.worker import Row
from pmm_ray.data.cams import Cam, read_cam, write_cams
from pmm_ray.data.dataset import Photos
from pmm_ray.data.images import read_image
from pmm_ray.errors import UserError
from pmm_ray.files import readable

FOLDER = "cams"

CAM_FACTS = pa.schema(
    [
        ("shard", pa.string()),
        ("row", pa.int32()),
        ("classes", pa.list_(pa.int32())),
        ("peak", pa.list_(pa.float32())),
        ("height", pa.int32()),
        ("width", pa.int32()),
    ]
)
"""Where the CAM is (file in `cams/`, row), its class ids, the largest value of each before normalisation, and the
image's size."""


def write_shard(out: Path, cams: Sequence[Cam]) -> str:
    """Write one file of CAMs below `out`; returns its name, a hash of the images' names: a repeat replaces it."""
    names = "\0".join(cam.name for cam in cams)
    shard = f"{hashlib.sha256(names.encode()).hexdigest()[:20]}.parquet"
    write_cams(out / FOLDER / shard, cams)
    return shard


def remove_strays(out: Path, table: pa.Table) -> None:
    """Delete files that no row of `table` points to: batches that an interrupted run wrote but did not report."""
    wanted = set(table["shard"].to_pylist())
    for file in (out / FOLDER).glob("*.parquet"):
        if file.name not in wanted:
            file.unlink()


@dataclass(frozen=True)
class CamPlace:
    """Where an image's CAM is, or why there is none (`missing`)."""

    file: str | None
    row: int
    missing: str | None


def cam_places(cams: Artefact, photos: Photos) -> list[CamPlace]:
    """The CAM of each photo."""
    table = pq.read_table(readable(cams.path / ROWS_FILE), columns=["name", "status", "error", "shard", "row"])
    known = {row["name"]: row for row in table.to_pylist()}
    return [_place(cams.path / FOLDER, known.get(photo.name)) for photo in photos.photos]


def read_with_cam(row: Row) -> tuple[NDArray[np.uint8], Cam]:
    """The image (H, W, 3) uint8 RGB and the CAM of a row with `image`, `cam`, `row` and `missing`.

    Raises:
        UserError: there is no CAM, or one for an image of another size.
    """
    if row["missing"]:
        raise UserError(row["missing"])
    image, stored = read_image(row["image"]), read_cam(row["cam"], row["row"])
    if image.shape[:2] != (stored.height, stored.width):
        raise UserError(
            f"{row['image']}: the image is {image.shape[1]} x {image.shape[0]} pixels, its CAM was made for "
            f"{stored.width} x {stored.height}; make the CAMs again"
        )
    return image, stored


def by_place(row: Row) -> tuple[str, int]:
    """Order of rows with `cam` and `row`, in which a worker reads one file of CAMs after the other."""
    return row["cam"] or "", row["row"]


def _place(folder: Path, row: dict[str, Any] | None) -> CamPlace:
    if row is None:
        return CamPlace(None, 0, "the CAMs do not hold this image; they were made from another list")
    if row["status"] != OK:
        return CamPlace(None, 0, f"it has no CAM: {row['error']}")
    return CamPlace(str(folder / row["shard"]), row["row"], None)
