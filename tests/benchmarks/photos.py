"""The photos that benchmarks work on: those of `../shared/minivoc` and their CAMs, brought to another size."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SHORT, LONG = 375, 500
"""Sides of most photos of VOC 2012."""
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Example:
    """A photo (H, W, 3) uint8 RGB; its CAM (K, H, W) float16 in [0, 1], channel k of class `class_ids[k]` in 1..20."""

    name: str
    image: NDArray[np.uint8]
    cam: NDArray[np.float16]
    class_ids: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """(H, W)."""
        return self.image.shape[0], self.image.shape[1]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The argument that every benchmark has."""
    default = os.environ.get("PMM_RAY_SHARED", ROOT.parent / "shared")
    help_text = "folder that holds minivoc (default: $PMM_RAY_SHARED, else ../shared)"
    parser.add_argument("--shared", type=Path, default=Path(default), help=help_text)


def photo_folder(shared: Path) -> Path:
    """`shared/minivoc`. Where it is absent there is nothing to measure, which is no error: says so and exits with 0."""
    folder = shared / "minivoc"
    if not (folder / "ImageSets" / "Segmentation" / "train.txt").is_file():
        print(f"skipped: no photos at {folder} (name their folder with --shared or PMM_RAY_SHARED)")
        sys.exit(0)
    return folder


def choose(folder: Path, count: int) -> list[str]:
    """Names of `count` photos at equal distances in the training list; all of them if there are fewer."""
    names = (folder / "ImageSets" / "Segmentation" / "train.txt").read_text().split()
    picks = np.linspace(0, len(names), min(count, len(names)), endpoint=False).astype(int)
    return [names[i] for i in picks]


def load(folder: Path, name: str, *, long: int = LONG, short: int | None = SHORT) -> Example:
    """A photo with sides `long` and `short`, landscape or portrait as it is; `short` None keeps its proportions."""
    with Image.open(folder / "JPEGImages" / f"{name}.jpg") as file:
        photo = file.convert("RGB")
    other = short or max(1, round(long * min(photo.size) / max(photo.size)))
    size = (long, other) if photo.width >= photo.height else (other, long)
    image = np.array(photo.resize(size, Image.Resampling.BICUBIC))
    maps = np.load(folder / "cams_npy" / f"{name}.npy", allow_pickle=True).item()
    cam = np.stack([_resized(value, size) for value in maps.values()])
    return Example(name, image, cam, tuple(int(key) + 1 for key in maps))


def _resized(values: NDArray[np.floating], size: tuple[int, int]) -> NDArray[np.float16]:
    """A map at another size (width, height), bilinear."""
    scaled = Image.fromarray(values.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    return np.clip(np.asarray(scaled), 0, 1).astype(np.float16)


def problems(example: Example, count: int) -> NDArray[np.float32]:
    """Scores (count, 2, H, W) of two-label problems as PPG poses them: each class, then each at the next alpha."""
    from pmm_ray.masks.cvs import smooth

    x = smooth(example.cam, s=0.3, t=0.05)
    settings = itertools.product((11, 4, 24, 8, 16, 2, 32, 1), (1.0, 0.9, 0.8, 0.7), x)
    scores = []
    for alpha, scale, channel in itertools.islice(settings, count):
        foreground = channel * np.float32(scale)
        scores.append(np.stack([(1 - foreground) ** np.float32(alpha), foreground]))
    return np.stack(scores)


def label_scores(example: Example, labels: int, *, alpha: float = 4) -> NDArray[np.float32]:
    """Probabilities (labels, H, W) like those of a segmentation network: background, the classes, faint other ones."""
    random = np.random.default_rng(0)
    height, width = example.shape
    own = example.cam.astype(np.float32)[: labels - 1]
    coarse = random.random((labels - 1 - len(own), height // 25, width // 25), np.float32) * np.float32(0.1)
    faint = [np.asarray(Image.fromarray(m).resize((width, height), Image.Resampling.BILINEAR)) for m in coarse]
    background = (1 - own.max(axis=0, keepdims=True)) ** np.float32(alpha)
    scores = np.concatenate([background, own, *(m[None] for m in faint)]) + np.float32(1e-3)
    return scores / scores.sum(axis=0)


def write_voc(
    out: Path,
    folder: Path,
    names: Sequence[str],
    *,
    count: int,
    stride: int,
    long: int = LONG,
    short: int | None = SHORT,
) -> list[str]:
    """Write a data set in VOC layout of `count` photos: `names` scaled, and again and again under other names.

    `<out>/cams_npy` holds CAMs at the photos' size, as the published codes write them, `<out>/cams_small` those for the
    stage `import_cams`, at the size divided by `stride`. Returns the data set's names: `<round>_<name>`.
    """
    for below in ("JPEGImages", "cams_npy", "cams_small", "ImageSets/Segmentation"):
        (out / below).mkdir(parents=True)
    labels: dict[str, list[int]] = {}
    originals: dict[str, Example] = {}
    for repeat, name in itertools.islice(_rounds(names), count):
        entry = f"{repeat:03}_{name}"
        if name not in originals:
            example = load(folder, name, long=long, short=short)
            _write_example(out, entry, example, stride)
            # the pixels are not needed again
            originals[name] = Example(entry, example.image[:0], example.cam[:0], example.class_ids)
        else:
            for below, suffix in (("JPEGImages", "jpg"), ("cams_npy", "npy"), ("cams_small", "npy")):
                os.link(out / below / f"{originals[name].name}.{suffix}", out / below / f"{entry}.{suffix}")
        labels[entry] = list(originals[name].class_ids)
    (out / "image_labels.json").write_text(json.dumps(labels))
    (out / "ImageSets" / "Segmentation" / "train.txt").write_text("\n".join(labels) + "\n")
    return list(labels)


def _rounds(names: Sequence[str]) -> Iterator[tuple[int, str]]:
    return ((repeat, name) for repeat in itertools.count() for name in names)


def _write_example(out: Path, entry: str, example: Example, stride: int) -> None:
    Image.fromarray(example.image).save(out / "JPEGImages" / f"{entry}.jpg", quality=92)
    height, width = example.shape
    small = (-(-width // stride), -(-height // stride))
    for below, size in (("cams_npy", (width, height)), ("cams_small", small)):
        maps: Any = {i - 1: _resized(m, size) for i, m in zip(example.class_ids, example.cam, strict=True)}
        np.save(out / below / f"{entry}.npy", maps, allow_pickle=True)
