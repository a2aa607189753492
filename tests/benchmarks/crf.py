"""The CRF engine against pydensecrf, in one process and thread, in turns, on the same photos and scores.

A new `DenseCRF` for every photo, as in use: its bilateral lattice is built within the time. The Gaussian lattice is
cached by image size, as in use, and so are compiled functions; what both cost the first time is printed apart.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

import measure
import numpy as np
import photos
import reference
from measure import digits, middle, spread, timed
from numpy.typing import NDArray

from pmm_ray.masks.crf import PRESETS, DenseCRF

Scores = NDArray[np.float32]
_KERNELS: tuple[Literal["bilateral", "gaussian"], ...] = ("bilateral", "gaussian")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print four tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    photos.add_arguments(parser)
    parser.add_argument("--photos", type=int, default=12, help="how many photos (default 12)")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each photo (default 3)")
    parser.add_argument("--preset", choices=PRESETS, default="ppg", help="of two-label problems (default ppg)")
    parser.add_argument("--problems", type=int, nargs="*", default=[1, 2, 3, 8, 32], help="K (default 1 2 3 8 32)")
    parser.add_argument("--labels", type=int, nargs="*", default=[2, 5, 21], help="L (default 2 5 21)")
    defaults = ["baseline", "segmentation"]
    help_text = "of problems of L labels (default baseline segmentation)"
    parser.add_argument("--label-presets", nargs="*", choices=PRESETS, default=defaults, help=help_text)
    given = parser.parse_args(arguments)
    folder = photos.photo_folder(given.shared)
    examples = [photos.load(folder, name) for name in photos.choose(folder, given.photos)]
    print(
        f"{len(examples)} photos of {photos.SHORT} x {photos.LONG}, {given.repeats} turns each; thread CPU time, "
        "medians over photos of the medians over turns.\n"
    )
    _first_times(examples[0], given.preset)
    _binary(examples, given.problems, given.repeats, given.preset)
    for preset in given.label_presets:
        _multilabel(examples, given.labels, given.repeats, preset)
    _filter(examples, given.repeats, given.preset)


def _first_times(example: photos.Example, preset: str) -> None:
    """What is paid once: per machine, per process, per image size."""
    code = (
        "import time; start = time.perf_counter(); from pmm_ray.masks.crf import compile_engine; "
        "compile_engine(); print(time.perf_counter() - start)"
    )
    with tempfile.TemporaryDirectory() as empty:
        run = [
            float(subprocess.check_output([sys.executable, "-c", code], env={**os.environ, "XDG_CACHE_HOME": empty}))
            for _ in range(2)
        ]
    DenseCRF(example.image, preset=preset).binary(photos.problems(example, 1))
    gaussian = []
    for cut in range(1, 6):
        # a size that no cache knows yet
        image = example.image[:-cut, :-cut]
        nothing = np.empty((0, 2, *image.shape[:2]), np.float32)
        first, again = (timed(DenseCRF(image, preset=preset).binary, nothing)[0] for _ in range(2))
        gaussian.append(first - again)
    rows = [
        ("compile, once per machine", digits(1e3 * run[0])),
        ("import and load what was compiled, once per process", digits(1e3 * run[1])),
        ("Gaussian lattice, once per process and image size", middle(gaussian)),
    ]
    measure.show("Paid once, and left out below", ("what", "ms"), rows)


@dataclass
class _Times:
    """Milliseconds of one photo, turn by turn, and how far the results agree."""

    build: list[float] = field(default_factory=list)
    solve: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    equal: float = 0
    farthest: float = 0

    @property
    def ours(self) -> list[float]:
        return [build + solve for build, solve in zip(self.build, self.solve, strict=True)]

    @property
    def ratio(self) -> float:
        return median(self.theirs) / median(self.ours)


_COLUMNS = ("pydensecrf ms", "DenseCRF ms", "build", "solve", "ratio", "min .. max", "of turns", "equal %", "max |dQ|")


def _row(first: str, times: Sequence[_Times]) -> list[str]:
    ratios = [each.ratio for each in times]
    wobble = [ours / theirs for each in times for ours, theirs in zip(each.theirs, each.ours, strict=True)]
    return [
        first,
        middle([median(each.theirs) for each in times]),
        middle([median(each.ours) for each in times]),
        middle([median(each.build) for each in times]),
        middle([median(each.solve) for each in times]),
        middle(ratios),
        spread(ratios),
        spread(wobble),
        f"{100 * min(each.equal for each in times):.4f}",
        f"{max(each.farthest for each in times):.0e}",
    ]


def _binary(examples: Sequence[photos.Example], counts: Sequence[int], repeats: int, preset: str) -> None:
    params = PRESETS[preset]
    rows = []
    _warm_up(examples, preset)
    for count in counts:
        times = [_Times() for _ in examples]
        # compiles, or loads, what solves so many
        _turn(examples[0], photos.problems(examples[0], count), preset, _Times())
        for _ in range(repeats):
            for example, each in zip(examples, times, strict=True):
                scores = photos.problems(example, count)
                ours = _turn(example, scores, preset, each)
                spent, theirs = timed(reference.binary, example.image, scores, params)
                each.theirs.append(spent)
                each.equal = float(((ours > 0.5) == (theirs > 0.5)).mean())
                each.farthest = float(np.abs(ours - theirs).max())
        rows.append(_row(f"K = {count}", times))
    measure.show(
        f"binary, preset {preset}: K problems of two labels on one photo",
        ("", *_COLUMNS),
        rows,
        "pydensecrf is run K times, each with lattices of its own, as published codes do; none of it is extrapolated.",
        "ratio: median over photos; min .. max: over photos; of turns: over single turns. equal: least over photos.",
    )


def _warm_up(examples: Sequence[photos.Example], preset: str) -> None:
    """Gaussian lattices of all sizes."""
    for example in examples:
        _turn(example, photos.problems(example, 1), preset, _Times())


def _turn(example: photos.Example, scores: Scores, preset: str, times: _Times) -> Scores:
    """Build and solve once. No problem at all still builds the lattices."""
    crf = DenseCRF(example.image, preset=preset)
    times.build.append(timed(crf.binary, scores[:0])[0])
    spent, found = timed(crf.binary, scores)
    times.solve.append(spent)
    return found


def _multilabel(examples: Sequence[photos.Example], counts: Sequence[int], repeats: int, preset: str) -> None:
    params = PRESETS[preset]
    rows = []
    _warm_up(examples, preset)
    for count in counts:
        times = [_Times() for _ in examples]
        # compiles for this many labels
        DenseCRF(examples[0].image, preset=preset).multilabel(photos.label_scores(examples[0], count))
        for _ in range(repeats):
            for example, each in zip(examples, times, strict=True):
                scores = photos.label_scores(example, count)
                crf = DenseCRF(example.image, preset=preset)
                nothing = np.empty((0, 2, *example.shape), np.float32)
                each.build.append(timed(crf.binary, nothing)[0])
                spent, ours = timed(crf.multilabel, scores)
                each.solve.append(spent)
                spent, theirs = timed(reference.multilabel, example.image, scores, params)
                each.theirs.append(spent)
                each.equal = float((ours.argmax(axis=0) == theirs.argmax(axis=0)).mean())
                each.farthest = float(np.abs(ours - theirs).max())
        rows.append(_row(f"L = {count}", times))
    measure.show(f"multilabel, preset {preset}: one problem of L labels", ("", *_COLUMNS), rows)


def _filter(examples: Sequence[photos.Example], repeats: int, preset: str) -> None:
    random = np.random.default_rng(0)
    rows = []
    for channels in (1, 3, 8, 21):
        for kernel in _KERNELS:
            spent = []
            for example in examples:
                values = random.random((channels, *example.shape), np.float32)
                crf = DenseCRF(example.image, preset=preset)
                # builds; on the first photo, compiles
                crf.filter(values, kernel=kernel, normalised=True)
                turns = [timed(crf.filter, values, kernel=kernel, normalised=True)[0] for _ in range(repeats)]
                spent.append(median(turns))
            rate = channels * photos.SHORT * photos.LONG / median(spent) / 1e3
            rows.append([f"{kernel}, C = {channels}", middle(spent), spread(spent), digits(rate)])
    columns = ("", "ms", "min .. max", "10^6 values / s")
    measure.show("filter, normalised, on lattices that are built", columns, rows)


if __name__ == "__main__":
    main()
