"""The whole mask stage, JPEG and Parquet in, PNG and table out, against a plain loop over the same photos.

The loop (`plain_loop.py`) does what the published code does, in a process of its own with one thread. The stage runs
through Ray Data with one actor and with several. All take turns. Rates are those of the steady state: the stage goes
over the photos several times, under other names, and is timed from the moment when as many masks as there are photos
are written to the last mask. So starting Ray and actors is left out, and what is timed is whole passes over the photos.
"""

from __future__ import annotations

import argparse
import cProfile
import importlib
import json
import os
import pstats
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import measure
import numpy as np
import photos
from measure import digits, middle, spread
from PIL import Image
from stage_runs import Run, imported, read_photos

from pmm_ray.artefacts import Artefact
from pmm_ray.cluster.session import session
from pmm_ray.config import ClusterConfig, MasksConfig
from pmm_ray.data.dataset import Photos
from pmm_ray.stages import make_masks
from pmm_ray.stages.cam_files import cam_places

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    photos.add_arguments(parser)
    parser.add_argument("--photos", type=int, default=120, help="photos of the loop and of a pass (default 120)")
    parser.add_argument("--passes", type=int, default=9, help="of the stage, the first not timed (default 9)")
    parser.add_argument("--rounds", type=int, default=2, help="turns of each (default 2)")
    parser.add_argument("--actors", type=int, default=2, help="besides one (default 2)")
    parser.add_argument("--batch-size", type=int, default=None, help="cluster.batch_size (default: the setting's own)")
    parser.add_argument(
        "--stride", type=int, default=1, help="CAMs that the stage reads are so much smaller (default 1)"
    )
    given = parser.parse_args(arguments)
    if given.passes < 2:
        parser.error("--passes must be at least 2: the first is not timed")
    folder = photos.photo_folder(given.shared)
    # says so and ends here where there is no pydensecrf; the loop is another process
    importlib.import_module("reference")
    names = photos.choose(folder, given.photos)
    # more than there are: some again
    names_of_a_pass = [names[i % len(names)] for i in range(given.photos)]
    with tempfile.TemporaryDirectory(prefix="bench") as temporary:
        root = Path(temporary)
        listed = photos.write_voc(
            root / "set", folder, names_of_a_pass, count=given.photos * given.passes, stride=given.stride
        )
        _compare(root, listed, given)


def _compare(root: Path, listed: list[str], given: argparse.Namespace) -> None:
    batch = {} if given.batch_size is None else {"batch_size": given.batch_size}
    cluster = ClusterConfig(num_cpus=max(2, given.actors), **batch)
    loop: list[float] = []
    stage: dict[int, list[Run]] = {1: [], given.actors: []}
    with session(cluster):
        found = read_photos(root / "set")
        cams = imported(root / "set", found, cluster)
        for turn in range(given.rounds):
            loop.append(_plain_loop(root, listed[: given.photos]))
            for actors, runs in stage.items():
                out = root / f"masks-{turn}-{actors}"
                workers = cluster.model_copy(update={"mask_workers": actors})
                runs.append(Run(out, found, cams, workers, warm_up=given.photos))
    _show_rates(loop, stage, given)
    agreement = _agreement(root, root / "masks-0-1", listed[: given.photos])
    print(f"Masks of the loop and of the stage: {100 * mean(agreement):.4f} % of the pixels are equal.\n")
    _show_steps(root / "in-process", found, cams, listed[: given.photos], given.stride)


def _plain_loop(root: Path, names: list[str]) -> float:
    """Images per second."""
    out = root / "plain"
    out.mkdir(exist_ok=True)
    program = [sys.executable, str(Path(__file__).with_name("plain_loop.py")), str(root / "set"), str(out)]
    environment = {**os.environ, **_ONE_THREAD}
    said = json.loads(subprocess.check_output(program, input="\n".join(names), text=True, env=environment))
    return said["images"] / said["seconds"]


def _show_rates(loop: list[float], stage: dict[int, list[Run]], given: argparse.Namespace) -> None:
    rows = [["plain loop", middle(loop), spread(loop), *[""] * 6]]
    before, name = loop, "loop"
    for actors, runs in stage.items():
        rates = [run.rate for run in runs]
        ratios = [rate / other for rate, other in zip(rates, before, strict=True)]
        around = [1e3 * actors / run.rate - run.inside for run in runs]
        rows.append(
            [
                f"stage, {actors} actor{'s' if actors > 1 else ''}",
                *(middle(rates), spread(rates)),
                *(middle(ratios), spread(ratios), name),
                *(middle([run.inside for run in runs]), middle(around), middle([run.whole for run in runs])),
            ]
        )
        before, name = rates, f"{actors} actor"
    columns = ("", "images/s", "min .. max", "ratio", "min .. max", "to", "in actor ms", "around ms", "whole s")
    count = given.photos * given.passes
    measure.show(
        f"The mask stage, {given.photos} photos of {photos.SHORT} x {photos.LONG}, {given.rounds} rounds",
        columns,
        rows,
        "Wall time, medians over rounds; ratios are of one round. Ray is up, and idle, while the loop runs.",
        "in actor: an image from its row to its facts; around: the rest of an actor's time per image (Ray Data,",
        f"attempts, waiting). whole: the stage's call on {count} images, with the start of its actors.",
    )


def _agreement(root: Path, out: Path, names: list[str]) -> list[float]:
    """Shares of equal pixels."""
    return [
        float((_pixels(root / "plain" / f"{name}.png") == _pixels(out / "masks" / f"{name}.png")).mean())
        for name in names
    ]


def _pixels(path: Path) -> Any:
    with Image.open(path) as image:
        return np.array(image)


# (file, function[, its caller]) whose time, with all that it calls, makes up a step.
_STEPS: dict[str, tuple[tuple[str, ...], ...]] = {
    "read the JPEG": (("images.py", "read_image"),),
    "read the CAM": (("cams.py", "read_cam"),),
    "CAM to the photo's size": (("cams.py", "full_size"),),
    "CAM checked and copied": (("cam.py", "by_class"),),
    "CVS": (("cvs.py", "smooth"),),
    "powers and scores": (("ppg.py", "foreground_scores"),),
    "CRF: scores checked": (("crf.py", "_checked"),),
    "CRF: lattices built": (("crf.py", "_problem"),),
    "CRF: solved": (("meanfield.py", "two_labels"),),
    "proportions and merging": (("ppg.py", "proportions"), ("ppg.py", "merge")),
    "write the PNG": (("images.py", "write_label"),),
    "facts of the row": (("mask_files.py", "mask_facts"), ("cvs.py", "coefficient_of_variation", "_make")),
}


def _show_steps(out: Path, found: Photos, cams: Artefact, names: list[str], stride: int) -> None:
    """Profile the stage's own function, image by image in this process, after a pass that warms it up."""
    rows = _rows(found, cams, set(names))
    make = partial(make_masks._make, masks=MasksConfig(), out=out, palette=found.classes.palette)
    for row in rows:
        make(row)
    profile = cProfile.Profile(time.thread_time)
    plain, profiled = 0.0, 0.0
    for row in rows:
        spent, _ = measure.timed(make, row)
        plain += spent
        spent, _ = measure.timed(profile.runcall, make, row)
        profiled += spent
    times = {step: sum(_spent(profile, *wanted) for wanted in parts) for step, parts in _STEPS.items()}
    times["rest"] = profiled - sum(times.values())
    table = [[step, digits(each / len(rows)), f"{100 * each / profiled:.1f}"] for step, each in times.items()]
    table.append(["all", digits(profiled / len(rows)), "100"])
    classes = mean(len(photo.labels) for photo in found.photos if photo.name in set(names))
    measure.show(
        "Within an actor, one image",
        ("step", "ms", "%"),
        table,
        f"Thread CPU time under a profiler, in this process; without one {digits(plain / len(rows))} ms.",
        f"{classes:.2f} classes on average; the CAM is stored at the photo's size divided by {stride}.",
        "A step that the stage does no more, or under another name, shows 0 and counts in the rest.",
    )


def _rows(found: Photos, cams: Artefact, names: set[str]) -> list[dict[str, Any]]:
    """The rows that the stage hands to its actors."""
    return [
        {"name": photo.name, "image": photo.image, "cam": place.file, "row": place.row, "missing": place.missing}
        for photo, place in zip(found.photos, cam_places(cams, found), strict=True)
        if photo.name in names
    ]


def _spent(profile: cProfile.Profile, file: str, function: str, caller: str | None = None) -> float:
    """Milliseconds in a function and what it calls; `caller`: only when called from there."""
    total = 0.0
    entries: dict[Any, Any] = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    for (path, _, name), (_, _, _, cumulative, callers) in entries.items():
        if name == function and Path(path).name == file:
            if caller is None:
                total += cumulative
            else:
                total += sum(each[3] for (_, _, by), each in callers.items() if by == caller)
    return 1e3 * total


if __name__ == "__main__":
    main()
