"""Mask settings by the dozen: 1, 8 and 32 of them on each photo at once, against passes with pydensecrf.

The first table is the work on photos alone, in this process and one thread: read photo and CAM, make the masks of all
settings, score them. A pass with pydensecrf is the loop of the published code (`plain_loop.py`) on the same photo and
CAM, scored the same way; n settings are n passes. The second table is whole sweeps on Ray Tune, from the first trial's
start to the record of the last, with Ray already up: every setting is a trial in a process of its own.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import measure
import numpy as np
import photos
import plain_loop
from measure import digits, middle, spread
from PIL import Image

from pmm_ray.artefacts import Artefact, Store
from pmm_ray.cluster.session import session
from pmm_ray.cluster.worker import Row
from pmm_ray.config import Config, MasksConfig, SweepConfig
from pmm_ray.data.cams import full_size, read_cam
from pmm_ray.data.images import read_image, read_label
from pmm_ray.data.load import load_dataset
from pmm_ray.masks.crf import compile_engine
from pmm_ray.method import Method
from pmm_ray.metrics import confusion
from pmm_ray.pipeline import Runner
from pmm_ray.places import place
from pmm_ray.search.conduct import Sweep, conduct
from pmm_ray.search.proposals import proposer
from pmm_ray.search.space import Space, parse
from pmm_ray.settings import build, changed
from pmm_ray.stages.score_masks import score_part, score_rows
from pmm_ray.tracking import RunHandle

COUNTS = (1, 8, 32)
_CLASSES = 21
_SPACE = {
    "masks.s": {"uniform": [0, 0.6]},
    "masks.t": {"uniform": [0.02, 0.3]},
    "masks.alpha": {"loguniform": [0.5, 32]},
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    photos.add_arguments(parser)
    parser.add_argument("--photos", type=int, default=24, help="of the first table (default 24)")
    parser.add_argument("--sweep-photos", type=int, default=233, help="of the second; 0: no second table (default 233)")
    given = parser.parse_args(arguments)
    folder = photos.photo_folder(given.shared)
    with tempfile.TemporaryDirectory(prefix="bench") as temporary:
        count = max(given.photos, given.sweep_photos)
        _write_set(Path(temporary) / "set", folder, photos.choose(folder, count), count)
        config = _config(Path(temporary) / "set", Path(temporary), given.sweep_photos or None)
        data = load_dataset(cache=Path(temporary) / "digests", **dict(config.data))
        with session(config.cluster):
            run = Runner(config, Store(Path(temporary)), RunHandle())
            cams = Method(run, config, data, 0).cams()
            rows = score_rows(data.train.photos, cams, data.train.truth, seed=0)
            _one_process(rows[: given.photos], config)
            if given.sweep_photos:
                _whole(config, data, run)


def _write_set(root: Path, folder: Path, names: list[str], count: int) -> None:
    """Photos, CAMs and ground truth at the size of most photos of VOC 2012."""
    for entry in photos.write_voc(root, folder, names, count=count, stride=4):
        truth = root / "SegmentationClass" / f"{entry}.png"
        truth.parent.mkdir(exist_ok=True)
        with Image.open(root / "JPEGImages" / f"{entry}.jpg") as photo:
            size = photo.size
        with Image.open(folder / "SegmentationClass" / f"{entry.partition('_')[2]}.png") as mask:
            mask.resize(size, Image.Resampling.NEAREST).save(truth)


def _config(root: Path, store: Path, limit: int | None) -> Config:
    return build(
        {
            "store": str(store),
            "data": {"kind": "voc", "root": str(root), "labels": "image_labels.json", "limit": limit, "val_list": None},
            "cam": {"npy": str(root / "cams_npy")},
            "tracking": {"enabled": False},
        }
    )


def _settings(config: Config, space: Space, count: int, maker: str) -> list[MasksConfig]:
    """Settings by chance."""
    source = proposer("random", space, seed=0, first=space.own)
    drawn = (source.ask() for _ in range(count + 1))
    return [changed(config, {**values, "masks.maker": maker}).masks for values in list(drawn)[1:] if values]


def _one_process(rows: list[Row], config: Config) -> None:
    space = parse(_SPACE, config, trial="masks")
    compile_engine()
    _plain_pass(rows[0])
    plain = [measure.timed(_plain_pass, row)[0] for row in rows]
    table = []
    for maker in ("ppg", "baseline"):
        settings = _settings(config, space, max(COUNTS), maker)
        alone = 0.0
        for count in COUNTS:
            # every shape of work once, not timed
            score_part(rows[:2], settings[:count], num_classes=_CLASSES)
            times = [measure.timed(score_part, [row], settings[:count], num_classes=_CLASSES)[0] for row in rows]
            alone = alone or sum(times)
            ratios = [count * one / spent for one, spent in zip(plain, times, strict=True)]
            name = f"{maker}, {count} setting{'s' if count > 1 else ''}"
            passes = middle([count * each for each in plain])
            table.append([name, middle(times), digits(sum(times) / alone), passes, middle(ratios), spread(ratios)])
    measure.show(
        f"Settings on each of {len(rows)} photos of {photos.SHORT} x {photos.LONG}, one thread",
        ("", "ms a photo", "to one setting", "pydensecrf ms", "ratio", "min .. max"),
        table,
        "Thread CPU time, medians over photos. pydensecrf: PPG, so many passes over the photo.",
    )


def _plain_pass(row: Row) -> None:
    """One setting as the published code does it, scored."""
    image, stored = read_image(row["image"]), read_cam(place(row["cam"]), row["row"])
    maps = {k - 1: x.astype(np.float16) for k, x in zip(stored.class_ids, full_size(stored), strict=True)}
    confusion(plain_loop.make_mask(image, maps), read_label(row["truth"]), num_classes=_CLASSES)


def _whole(config: Config, data: Any, run: Runner) -> None:
    table, alone = [], 0.0
    for searcher, count in (*(("random", count) for count in COUNTS), ("optuna", max(COUNTS))):
        how = SweepConfig(searcher=searcher, settings=count, metric="masks", seed=count)
        named = config.model_copy(update={"name": f"{searcher}-{count}"})
        # another seed each time, and no default setting in common, so that nothing is found done
        named = changed(named, {"masks.alpha": 5 + count / 100 + len(searcher)})
        sweep = Sweep(named, how, parse(_SPACE, named, trial="masks"), data, run.store)
        start = time.monotonic()
        record = conduct(sweep, run, RunHandle())
        seconds = time.monotonic() - start
        assert len(record.all) == count and all(one.ending == "done" for one in record.all)
        alone = alone or seconds
        work = sum(_seconds(one.artefact) for one in record.all)
        table.append([f"{searcher}, {count}", digits(seconds), digits(seconds / alone), digits(work)])
    measure.show(
        f"Sweeps over {len(data.train.photos)} photos of {photos.SHORT} x {photos.LONG} on Ray Tune",
        ("settings", "wall s", "to one setting", "work s"),
        table,
        "wall: with the start of trials and workers; work: the workers' time on photos, summed over settings.",
    )


def _seconds(artefact: str) -> float:
    return float(Artefact("score_masks", "", Path(artefact)).manifest["seconds"])


if __name__ == "__main__":
    main()
