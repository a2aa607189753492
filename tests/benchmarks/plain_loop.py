"""Masks as the published code makes them: photo by photo, class by class, in one process and one thread.

Reads `<root>/JPEGImages` and `<root>/cams_npy`, writes palette PNGs into `<out>`, and prints one line of JSON: seconds
and images. `masks.py` starts it as a program of its own. One departure: the coefficient of variation is computed in
float32, since float16 sums of large objects overflow.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np
import reference
from numpy.typing import NDArray
from PIL import Image

from pmm_ray.data.palette import voc_palette
from pmm_ray.masks.crf import PRESETS

S, T, ALPHA, EPS = 0.3, 0.05, 11, 1


def make_mask(image: NDArray[np.uint8], maps: dict[int, NDArray[np.float16]]) -> NDArray[np.uint8]:
    """CVS and PPG: maps {0-based class: (H, W)} -> mask (H, W)."""
    shares = np.zeros((21, *image.shape[:2]), np.float32)
    for key, stored in maps.items():
        x = stored.astype(np.float32)
        foreground = x[x > T]
        cv = foreground.std() / foreground.mean() if foreground.size else 0.0
        smoothed = np.where(x < T, 0, x) ** (1 - S * cv)
        scores = np.stack([(1 - smoothed) ** ALPHA, smoothed]).astype(np.float32)
        inside = reference.multilabel(image, scores, PRESETS["ppg"]).argmax(axis=0)
        shares[key + 1] = x / (EPS + (x * inside).sum()) * inside
    shares[0] = ~shares.any(axis=0)
    return shares.argmax(axis=0).astype(np.uint8)


def main(root: Path, out: Path, names: list[str]) -> None:
    """Make every mask and print the time."""
    palette = [channel for colour in voc_palette() for channel in colour]
    start = time.monotonic()
    for name in names:
        with Image.open(root / "JPEGImages" / f"{name}.jpg") as file:
            image = np.array(file.convert("RGB"))
        maps = np.load(root / "cams_npy" / f"{name}.npy", allow_pickle=True).item()
        mask = Image.fromarray(make_mask(image, maps))
        mask.putpalette(palette)
        mask.save(out / f"{name}.png")
    print(json.dumps({"seconds": time.monotonic() - start, "images": len(names)}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.stdin.read().split())
