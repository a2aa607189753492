"""The seven known mask figures of the real photos, by both CRF backends; see tests/test_minivoc_masks.py."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import photos
import reference  # noqa: F401  (ends with a message where pydensecrf is not installed)
from measure import show

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from test_minivoc_masks import FIGURES, measure


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__)
    photos.add_arguments(parser)
    folder = photos.photo_folder(parser.parse_args(arguments).shared)
    found = {backend: measure(folder, backend) for backend in ("pydensecrf", "numba")}
    rows = [
        [row, f"{known:.2f}", *(f"{figures[row]:.3f}" for figures in found.values())] for row, known in FIGURES.items()
    ]
    show("mIoU in % on the training photos, 20 classes", ["masks", "known", *found], rows)


if __name__ == "__main__":
    main()
