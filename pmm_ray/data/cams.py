"""The file of class activation maps, and reading those that other programs wrote."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from pmm_ray.data.npy import read_npy_dict
from pmm_ray.data.problems import shown
from pmm_ray.errors import UserError
from pmm_ray.files import atomic_path, readable
from pmm_ray.places import Remote, place

SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("class_ids", pa.list_(pa.int32())),
        ("cam", pa.list_(pa.float16())),
        ("cam_height", pa.int32()),
        ("cam_width", pa.int32()),
        ("height", pa.int32()),
        ("width", pa.int32()),
    ]
)
"""One row, and one row group, per image; `cam` is the (K, cam_height, cam_width) array, flattened in that order."""


@dataclass(frozen=True)
class Cam:
    """The maps of one image: `cam` (K, h, w) float16 in [0, 1], one per id of `class_ids` (1..C).

    `height` and `width` are the image's own, of which h and w are about a stride-th part.
    """

    name: str
    class_ids: tuple[int, ...]
    cam: NDArray[np.float16]
    height: int
    width: int

    def __post_init__(self) -> None:
        if self.cam.ndim != 3 or len(self.cam) != len(self.class_ids):
            raise ValueError(f"{self.name}: cam is {self.cam.shape}, class ids are {self.class_ids}")


def write_cams(path: Path, cams: Sequence[Cam]) -> None:
    """Write a Parquet file of CAMs, atomically, so that any one of them can be read alone."""
    with atomic_path(path) as temporary, pq.ParquetWriter(temporary, SCHEMA, compression="zstd") as writer:
        for cam in cams:
            writer.write_table(_row(cam), row_group_size=1)


def _row(cam: Cam) -> pa.Table:
    _, h, w = cam.cam.shape
    values = pa.array(np.ascontiguousarray(cam.cam, np.float16).ravel(), pa.float16())
    maps = pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)
    columns = [pa.array([cam.name]), pa.array([list(cam.class_ids)], pa.list_(pa.int32())), maps]
    return pa.table([*columns, *([size] for size in (h, w, cam.height, cam.width))], schema=SCHEMA)


def read_cam(path: str | Path, row: int) -> Cam:
    """The CAM in row `row` of a file by `write_cams`. On a disk nothing else of the file is read."""
    path = place(path)
    if isinstance(path, Remote):
        file = _stored_cam_file(path)
    else:
        state = path.stat()
        file = _cam_file(path, state.st_mtime_ns, state.st_size)
    table = file.read_row_group(row)
    values = table.column("cam").combine_chunks().flatten().to_numpy(zero_copy_only=False)
    facts: dict[str, Any] = {name: table.column(name)[0].as_py() for name in SCHEMA.names if name != "cam"}
    ids = tuple(facts["class_ids"])
    cam = np.array(values, np.float16).reshape(len(ids), facts["cam_height"], facts["cam_width"])
    return Cam(facts["name"], ids, cam, facts["height"], facts["width"])


@lru_cache(maxsize=4)
def _cam_file(path: Path, changed: int, size: int) -> pq.ParquetFile:
    """The open file: its footer takes longer to read than a row. Another file in its place has another time or size."""
    return pq.ParquetFile(path, memory_map=True)


@lru_cache(maxsize=32)
def _stored_cam_file(path: Path) -> pq.ParquetFile:
    """A file in object storage, as a whole: it is small, and a request takes longer than its bytes.

    Nobody asks whether it changed: a CAM file's name says of which images it is, its folder what they were made with.
    """
    return pq.ParquetFile(readable(path))


def full_size(cam: Cam) -> NDArray[np.float32]:
    """The maps (K, H, W) float32 in [0, 1] at the image's size: bilinear, pixel centres aligned, edges repeated."""
    size = (cam.width, cam.height)
    maps = [np.asarray(Image.fromarray(m).resize(size, Image.Resampling.BILINEAR)) for m in cam.cam.astype(np.float32)]
    return np.clip(np.stack(maps), 0, 1) if maps else np.zeros((0, cam.height, cam.width), np.float32)


def read_npy_cam(path: str | Path, num_classes: int) -> dict[int, NDArray[np.float32]]:
    """CAMs as PMM, IRN and their kin save them: {0-based foreground class: (H, W) float32}, in the order of the file.

    Both forms are read: the dictionary {class: map}, and IRN's {"keys": classes, "high_res": maps (or else "cam")}.
    Key 0 is the first class, id 1 here. Values are passed on as they are; `num_classes` is C, without the background.

    Raises:
        UserError: not such a file (see `npy.read_npy_dict`), a class outside 0..C-1, or maps that are not finite,
            equally large (H, W) arrays.
    """
    found = read_npy_dict(path)
    if "keys" in found:
        maps = found.get("high_res", found.get("cam"))
        if maps is None or len(maps) != len(found["keys"]):
            raise UserError(f"{shown(path)}: has no map for each of its keys (in 'high_res' or 'cam'): write it again")
        found = dict(zip(np.asarray(found["keys"]).tolist(), maps, strict=True))
    result: dict[int, NDArray[np.float32]] = {}
    for key, value in found.items():
        if not isinstance(key, int | np.integer) or not 0 <= key < num_classes:
            raise UserError(
                f"{shown(path)}: key {key!r} ({type(key).__name__}) is no class: "
                f"keys are integers that count from 0 without the background, here 0..{num_classes - 1}"
            )
        result[int(key)] = _map(value, path)
    if len({array.shape for array in result.values()}) > 1:
        raise UserError(f"{shown(path)}: its maps differ in size: write it again with maps of one size")
    return result


def _map(value: object, path: str | Path) -> NDArray[np.float32]:
    if not isinstance(value, np.ndarray) or value.ndim != 2 or value.dtype.kind not in "fiu" or value.size == 0:
        kind = f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
        raise UserError(f"{shown(path)}: a CAM must be an (H, W) array of numbers, got {kind}")
    array = np.array(value, np.float32)
    if not np.isfinite(array).all():
        raise UserError(f"{shown(path)}: a CAM has values that are not finite: write it again")
    return array
