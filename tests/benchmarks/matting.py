"""Matting: what an image takes, by kind of Laplacian and working size, and how the mask stage scales with its actors.

The first table is this process's CPU time, one thread at a time, of what depends on a photo alone (its Laplacian, and
where it is larger the guide of its mattes), and of its mattes (the system solved for each class, the guided filter) and
their merging; also for so many trimaps of one photo, as a sweep asks for them, which share what comes first. The second
runs the stage through Ray Data, JPEG and CAMs in, PNG and table out, as the benchmark `masks` does.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

import measure
import numpy as np
import photos
from measure import digits, middle, spread
from stage_runs import Run, imported, read_photos

from pmm_ray.cluster.session import session
from pmm_ray.config import ClusterConfig, MasksConfig, TrimapConfig
from pmm_ray.masks.cam import by_class
from pmm_ray.masks.laplacian import pymatting
from pmm_ray.masks.matting import Matting, merge_mattes
from pmm_ray.masks.trimap import cam_trimap

TRIMAP, SETTINGS = TrimapConfig(), MasksConfig(maker="matting", cvs=False)
HIGHS = (0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65)
"""Trimaps of one photo."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    photos.add_arguments(parser)
    parser.add_argument("--photos", type=int, default=24, help="photos of the first table (default 24)")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[200, 320, 500], help="long sides (default 200 320 500)"
    )
    parser.add_argument("--kinds", nargs="+", default=["closed_form", "random_walk", "knn"], help="(default: all)")
    parser.add_argument("--stage-photos", type=int, default=60, help="photos of a pass of the stage (default 60)")
    parser.add_argument("--passes", type=int, default=3, help="of the stage, the first not timed (default 3)")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each number of actors (default 2)")
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2], help="(default 1 2)")
    given = parser.parse_args(arguments)
    folder = photos.photo_folder(given.shared)
    there = _spent(pymatting) / 1e3
    print(f"pymatting was there after {there:.1f} s; where its cache is empty it compiles, once on a machine.\n")
    examples = [photos.load(folder, name) for name in photos.choose(folder, given.photos)]
    _show_kinds([_Photo(example) for example in examples], given)
    with tempfile.TemporaryDirectory(prefix="bench") as temporary:
        _show_actors(Path(temporary), folder, given)


def _spent(function: Callable[[], Any]) -> float:
    """Milliseconds of this process's CPU time: the search for nearest neighbours has a thread of its own."""
    start = time.process_time()
    function()
    return 1e3 * (time.process_time() - start)


class _Photo:
    def __init__(self, example: photos.Example):
        self.image = example.image
        self.x, self.labels = by_class(example.cam, example.class_ids)

    def times(self, kind: Any, size: int) -> tuple[float, float, float]:
        """Milliseconds of Laplacian and guide, of mattes and mask, and of the mattes and masks of all `HIGHS`."""
        matting = Matting(self.image, kind=kind, epsilon=SETTINGS.matting.epsilon, size=size)
        guided = size < max(self.image.shape[:2])
        first = _spent(lambda: (matting._laplacian, guided and matting._upsampling))
        one = _spent(lambda: self._mask(matting, TRIMAP.high))
        many = _spent(lambda: [self._mask(matting, high) for high in HIGHS])
        return first, one, many

    def _mask(self, matting: Matting, high: float) -> Any:
        trimap = cam_trimap(self.x, self.labels, high=high, low=TRIMAP.low)
        mattes = matting.mattes(trimap, self.x, self.labels)
        return merge_mattes(mattes.alpha, self.labels, margin=SETTINGS.matting.margin)


def _show_kinds(found: list[_Photo], given: argparse.Namespace) -> None:
    rows = []
    for kind in given.kinds:
        for size in given.sizes:
            times = np.array([photo.times(kind, size) for photo in found])
            whole = times[:, 0] + times[:, 1]
            many = (times[:, 0] + times[:, 2]) / whole
            rows.append([kind, str(size), *map(middle, times[:, :2].T.tolist()), middle(whole.tolist()),
                         spread(whole.tolist()), digits(median(many))])  # fmt: skip
    classes = mean(len(photo.x) for photo in found)
    unknown = mean(
        float((cam_trimap(photo.x, photo.labels, high=TRIMAP.high, low=TRIMAP.low) == 255).mean()) for photo in found
    )
    measure.show(
        f"Matting, {len(found)} photos of {photos.SHORT} x {photos.LONG}",
        ("", "size", "photo ms", "mattes ms", "both ms", "min .. max", f"{len(HIGHS)} trimaps"),
        rows,
        "CPU time, medians over photos. size: the long side at which matting is done; below that of the photo",
        f"mattes are brought to its size. {classes:.2f} classes a photo, {100 * unknown:.0f} % of the pixels unknown.",
        f"{len(HIGHS)} trimaps: how many times as long so many take on one photo as one does.",
    )


def _show_actors(root: Path, folder: Path, given: argparse.Namespace) -> None:
    names = photos.choose(folder, given.stage_photos)
    photos.write_voc(root / "set", folder, names, count=len(names) * given.passes, stride=1)
    cluster = ClusterConfig(num_cpus=max(2, *given.actors))
    runs: dict[int, list[Run]] = {actors: [] for actors in given.actors}
    with session(cluster):
        found = read_photos(root / "set")
        cams = imported(root / "set", found, cluster)
        for turn in range(given.rounds):
            for actors, done in runs.items():
                workers = cluster.model_copy(update={"mask_workers": actors})
                out = root / f"masks-{turn}-{actors}"
                done.append(Run(out, found, cams, workers, warm_up=len(names), masks=SETTINGS))
    rows = []
    for actors, done in runs.items():
        rates = [run.rate for run in done]
        ratios = [run.rate / first.rate for run, first in zip(done, runs[given.actors[0]], strict=True)]
        rows.append([str(actors), middle(rates), spread(rates), middle(ratios), middle([r.inside for r in done]),
                     middle([r.whole for r in done])])  # fmt: skip
    measure.show(
        f"The mask stage with matting, {len(names)} photos of {photos.SHORT} x {photos.LONG}, {given.rounds} rounds",
        ("actors", "images/s", "min .. max", "ratio", "in actor ms", "whole s"),
        rows,
        f"{SETTINGS.matting.kind} at {SETTINGS.matting.size}. Wall time, medians over rounds; ratio: to "
        f"{given.actors[0]} actor in the same round.",
        f"whole: the stage's call on {len(names) * given.passes} images, with the start of its actors.",
    )


if __name__ == "__main__":
    main()
