"""One photo of 4,000 x 3,000 pixels: time and peak memory of two two-label problems.

The photo is a mosaic of smaller ones: an enlarged photo would have too little detail. Each preset has a process of its
own, whose memory before the work is taken off.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import measure
import numpy as np
import photos
from measure import digits
from numpy.typing import NDArray
from process_memory import Memory, available, forget_peak


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    photos.add_arguments(parser)
    parser.add_argument("--width", type=int, default=4000)
    parser.add_argument("--height", type=int, default=3000)
    parser.add_argument("--problems", type=int, default=2, help="K (default 2)")
    parser.add_argument("--presets", nargs="+", default=["ppg", "rrm_infer"], help="default ppg rrm_infer")
    parser.add_argument("--backends", nargs="+", default=["numba"], help="numba and/or pydensecrf (default numba)")
    given = parser.parse_args(arguments)
    folder = photos.photo_folder(given.shared)
    if not available():
        return
    rows = []
    for preset in given.presets:
        for backend in given.backends:
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
                work = fresh.submit(_solve, folder, given.width, given.height, given.problems, preset, backend)
                rows.append([preset, backend, *work.result()])
    columns = ("preset", "backend", "build s", "solve s", "CPU s", "peak MiB", "bytes/pixel", "input MiB")
    measure.show(
        f"binary, K = {given.problems}, on one photo of {given.width} x {given.height}",
        columns,
        rows,
        "Wall seconds of the first use: both lattices are built, nothing but compiled code is cached; CPU: of both.",
        "peak: the most that the process grew by, over its photo and scores (input).",
    )


def _solve(folder: Path, width: int, height: int, count: int, preset: str, backend: Any) -> list[str]:
    from pmm_ray.masks.crf import DenseCRF, compile_engine

    compile_engine()
    # so that the function for this many problems is loaded
    DenseCRF(np.zeros((8, 8, 3), np.uint8), preset=preset).binary(np.ones((count, 2, 8, 8), np.float32))
    empty = Memory.here().resident
    example = _mosaic(folder, width, height)
    scores = photos.problems(example, count)
    before = Memory.here().resident
    # what reading the photos took is not the engine's
    forget_peak()
    cpu, start = time.process_time(), time.perf_counter()
    crf = DenseCRF(example.image, preset=preset, backend=backend)
    crf.binary(scores[:0])
    built = time.perf_counter()
    crf.binary(scores)
    solved = time.perf_counter()
    grown = Memory.here().peak - before
    return [
        digits(built - start),
        digits(solved - built),
        digits(time.process_time() - cpu),
        digits(grown),
        digits(grown * 2**20 / (width * height)),
        digits(before - empty),
    ]


def _mosaic(folder: Path, width: int, height: int) -> photos.Example:
    """Photos side by side, all landscape, with the first class of each as the one class."""
    across, down = -(-width // photos.LONG), -(-height // photos.SHORT)
    tiles = [photos.load(folder, name) for name in photos.choose(folder, across * down)]
    turned = [tile.shape[0] > tile.shape[1] for tile in tiles]
    images = [np.rot90(tile.image) if turn else tile.image for tile, turn in zip(tiles, turned, strict=True)]
    maps = [np.rot90(tile.cam[0]) if turn else tile.cam[0] for tile, turn in zip(tiles, turned, strict=True)]
    image, cam = (_joined(parts, across, down)[:height, :width] for parts in (images, maps))
    return photos.Example("mosaic", np.ascontiguousarray(image), np.ascontiguousarray(cam[None]), (1,))


def _joined(tiles: Sequence[NDArray[Any]], across: int, down: int) -> NDArray[Any]:
    """As many as there are, again and again where they are too few."""
    rows = [[tiles[(y * across + x) % len(tiles)] for x in range(across)] for y in range(down)]
    return np.concatenate([np.concatenate(row, axis=1) for row in rows])


if __name__ == "__main__":
    main()
