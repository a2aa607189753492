"""A few drawn photos and what stages need around them."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from pmm_ray.artefacts import Artefact
from pmm_ray.cluster.journal import row_schema, write_table
from pmm_ray.config import ClusterConfig
from pmm_ray.data.cams import Cam
from pmm_ray.data.dataset import Classes, Photo, Photos, Truth
from pmm_ray.stages.cam_files import CAM_FACTS, write_shard
from pmm_ray.stages.mask_files import MASK_FACTS, mask_facts, mask_file
from pmm_ray.stages.stage import Context

CLASSES = Classes(("background", "red", "blue"), ((0, 0, 0), (128, 0, 0), (0, 0, 128)))
COLOURS = {0: (110, 120, 110), 1: (200, 40, 40), 2: (40, 40, 200)}


class NoLog:
    def metrics(self, values, step=None):
        pass

    def picture(self, path, name):
        pass


def context(out: Path, **cluster) -> Context:
    return Context(out, 0, ClusterConfig(**cluster), NoLog(), "stage")


def scene(*boxes, size=(40, 60)) -> np.ndarray:
    """A label mask (H, W) with boxes (class, top, left, bottom, right)."""
    mask = np.zeros(size, np.uint8)
    for label, top, left, bottom, right in boxes:
        mask[top:bottom, left:right] = label
    return mask


def draw(folder: Path, scenes: dict[str, np.ndarray]) -> tuple[Photos, Truth]:
    """Photos in which each class has one colour, and their ground truth."""
    photos, masks = [], {}
    noise = np.random.default_rng(0)
    for name, mask in scenes.items():
        pixels = np.array([COLOURS[k] for k in range(3)])[mask] + noise.integers(-3, 4, (*mask.shape, 3))
        image, truth = folder / "images" / f"{name}.png", folder / "truth" / f"{name}.png"
        for path, array in ((image, pixels.astype(np.uint8)), (truth, mask)):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
        photos.append(Photo(name, str(image), tuple(int(k) for k in np.unique(mask) if k)))
        masks[name] = str(truth)
    return Photos(tuple(photos), CLASSES, "photos"), Truth(masks, "drawn truth", "truth")


def artefact(path: Path, **facts) -> Artefact:
    path.mkdir(parents=True, exist_ok=True)
    (path / "manifest.json").write_text(json.dumps({"facts": facts}))
    return Artefact("made", path.name, path)


def cam_artefact(path: Path, photos: Photos, maps: dict[str, np.ndarray], errors=()) -> Artefact:
    """CAMs (K, h, w) of some of the photos, all in one shard; `errors` of others."""
    cams, rows = [], []
    for photo in photos.photos:
        if photo.name in maps:
            height, width = np.asarray(Image.open(photo.image)).shape[:2]
            facts = {"row": len(cams), "classes": photo.labels, "height": height, "width": width}
            rows.append({"name": photo.name, "status": "ok", **facts})
            cams.append(Cam(photo.name, photo.labels, maps[photo.name].astype(np.float16), height, width))
    shard = write_shard(path, cams)
    rows = [row | {"shard": shard} for row in rows]
    rows += [{"name": name, "status": "failed", "error": error} for name, error in dict(errors).items()]
    write_table(pa.Table.from_pylist(rows, schema=row_schema(CAM_FACTS)), path / "rows.parquet")
    return artefact(path)


def mask_artefact(path: Path, masks: dict[str, np.ndarray], errors=()) -> Artefact:
    """Masks, and `errors` of images without one."""
    rows = []
    for name, mask in masks.items():
        file = mask_file(path, "masks", name)
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(file)
        rows.append({"name": name, "status": "ok", **mask_facts(mask)})
    rows += [{"name": name, "status": "failed", "error": error} for name, error in dict(errors).items()]
    write_table(pa.Table.from_pylist(rows, schema=row_schema(MASK_FACTS)), path / "rows.parquet")
    return artefact(path)
