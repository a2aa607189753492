"""Small image files for data sets on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def photo(path: Path, *, value: int = 90, size: tuple[int, int] = (6, 8)) -> Path:
    """A plain photo of `size` (height, width) at `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((*size, 3), value, np.uint8)
    Image.fromarray(pixels).save(path, format="PNG" if path.suffix.lower() == ".png" else "JPEG")
    return path


def mask(path: Path, ids: np.ndarray) -> Path:
    """A grey mask PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ids.astype(np.uint8)).save(path, format="PNG")
    return path
