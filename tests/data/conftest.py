"""Small data sets on disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_sets import mask, photo


@pytest.fixture
def voc_root(tmp_path: Path) -> Path:
    """Three training photos a, b, c and one validation photo v, with labels (ids of VOC) and masks."""
    root = tmp_path / "set"
    labels = {"a": [1], "b": [2, 15], "c": [20], "v": [15]}
    for number, name in enumerate(labels):
        photo(root / "JPEGImages" / f"{name}.jpg", value=50 + 10 * number)
        mask(root / "SegmentationClass" / f"{name}.png", np.full((6, 8), labels[name][0]))
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\nb\nc\n")
    (lists / "val.txt").write_text("v\n")
    (root / "labels.json").write_text(json.dumps(labels))
    return root


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """Write a text file below the test's folder."""

    def _write(name: str, text: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return _write
