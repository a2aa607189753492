"""A joint training step of RRM with and without what it makes on CPUs: reliable labels, and the dense energy.

The network is a MobileNetV2 at output stride 16 with random weights, the photos and the CAMs that labels are made of
are stored ones. All variants see the same batches in turns; a step is forward, backward and the optimiser's step. It
runs under the settings of memory that training workers have.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from statistics import median

import measure
import numpy as np
import photos
import torch
from measure import digits, middle, spread
from PIL import Image
from torch import Tensor

from pmm_ray.cluster.fit import KEEP_MEMORY, environment
from pmm_ray.config import ReliableConfig, RrmTrainConfig
from pmm_ray.losses.dense_energy import LatticeFilter
from pmm_ray.masks.crf import compile_engine
from pmm_ray.nets.build import build_joint
from pmm_ray.stages.label_crops import LabelledCrop, Labeller, label_maker
from pmm_ray.stages.rrm_objective import RrmObjective
from pmm_ray.teams import LocalTeam

CLASSES = 20
TRAIN, LABELS = RrmTrainConfig(), ReliableConfig()
VARIANTS = {
    "labels and energy": (True, True, LABELS.scales),
    "labels given, energy": (False, True, LABELS.scales),
    "labels, no energy": (True, False, LABELS.scales),
    "labels given, no energy": (False, False, LABELS.scales),
    "... and CAMs of scale 1 alone": (False, False, (1.0,)),
}
"""Whether labels are made, whether there is an energy, and the scales whose CAMs are computed."""
COMPARED = "labels given, no energy"


@dataclass(frozen=True)
class Batch:
    """What a step is given, and the CAMs that stand for the network's own."""

    images: Tensor
    labels: Tensor
    cams: list[Tensor]

    @property
    def targets(self) -> tuple[Tensor, Tensor]:
        """Labels, and all of the crop is photo."""
        return self.labels, torch.ones(len(self.images), *self.images.shape[2:], dtype=torch.bool)


class Measured(RrmObjective):
    """Computes the network's CAMs, and goes on with stored ones: an untrained network's are no work for a CRF."""

    stored: Sequence[Tensor] = ()

    def _cams(self, inputs: Tensor, maps: Tensor, class_ids: Sequence[Sequence[int]]) -> list[Tensor]:
        super()._cams(inputs, maps, class_ids)
        return list(self.stored)


class Remembering(Labeller):
    """Makes the labels of a batch once."""

    def __init__(self, labeller: Labeller):
        self._labeller = labeller
        self._known: dict[bytes, list[Future[LabelledCrop]]] = {}

    def begin(
        self, images: Tensor, cams: Sequence[Tensor], class_ids: Sequence[tuple[int, ...]], inside: Tensor
    ) -> list[Future[LabelledCrop]]:
        """Labels that are there already, but for the first time."""
        key = images[:, :, ::8, ::8].numpy().tobytes()
        if key not in self._known:
            self._known[key] = self._labeller.begin(images, cams, class_ids, inside)
        return self._known[key]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    photos.add_arguments(parser)
    parser.add_argument("--batch", type=int, default=16, help="photos in a batch (default 16)")
    parser.add_argument("--crop", type=int, default=192, help="side of the crops (default 192)")
    parser.add_argument("--batches", type=int, default=2, help="different batches (default 2)")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each variant on each batch (default 3)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch, and of the labels")
    given = parser.parse_args(arguments)
    folder = photos.photo_folder(given.shared)
    torch.set_num_threads(given.threads)
    names = photos.choose(folder, given.batch * given.batches)
    examples = [photos.load(folder, name) for name in names]
    batches = [
        _batch(examples[first : first + given.batch], given.crop) for first in range(0, len(examples), given.batch)
    ]
    compile_engine(labels=1 + max(len(example.class_ids) for example in examples), problems=2, channels=CLASSES + 1)
    with ThreadPoolExecutor(given.threads) as pool:
        variants = {name: _Variant(*what, pool=pool) for name, what in VARIANTS.items()}
        times: dict[str, list[float]] = {name: [] for name in variants}
        for turn in range(given.rounds + 1):
            for batch in batches:
                for name, variant in variants.items():
                    spent = variant.step(batch)
                    # the first turn warms up
                    times[name] += [spent] if turn else []
    _show(times, given, mean_classes=float(np.mean([len(example.class_ids) for example in examples])))


class _Variant:
    def __init__(self, labels: bool, energy: bool, scales: Sequence[float], *, pool: ThreadPoolExecutor):
        torch.manual_seed(0)
        net = build_joint(
            backbone="mobilenetv2_100",
            options={"pad_type": "same"},
            output_stride=16,
            weights="none",
            num_classes=CLASSES + 1,
            channels=256,
            dilation=6,
        )
        labeller = Labeller(label_maker(LABELS), pool)
        self.objective = Measured(
            net,
            mean=(0.5,) * 3,
            std=(0.5,) * 3,
            team=LocalTeam(),
            labeller=labeller if labels else Remembering(labeller),
            scales=scales,
            names=tuple(map(str, range(CLASSES + 1))),
            joint_from=0.0,
            make_filter=partial(LatticeFilter, sxy=TRAIN.energy_sxy / 2, srgb=TRAIN.energy_srgb, map=pool.map),
            energy_weight=TRAIN.energy_weight if energy else 0.0,
            energy_gradient=TRAIN.energy_gradient,
        ).to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(self.objective.parameters(), lr=1e-6)

    def step(self, batch: Batch) -> float:
        """Milliseconds of wall time."""
        self.objective.stored = batch.cams
        start = time.perf_counter()
        self.objective(batch.images, batch.targets)["loss"].backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return 1e3 * (time.perf_counter() - start)


def _batch(examples: Sequence[photos.Example], crop: int) -> Batch:
    """The middle of each photo, its short side resized to the crop's."""
    images, cams, labels = [], [], torch.zeros(len(examples), CLASSES)
    for number, example in enumerate(examples):
        height, width = example.shape
        scale = crop / min(height, width)
        size = max(crop, round(width * scale)), max(crop, round(height * scale))
        top, left = (size[1] - crop) // 2, (size[0] - crop) // 2
        photo = np.asarray(Image.fromarray(example.image).resize(size, Image.Resampling.BILINEAR))
        order = np.argsort(example.class_ids)
        maps = [
            Image.fromarray(m.astype(np.float32)).resize(size, Image.Resampling.BILINEAR) for m in example.cam[order]
        ]
        images.append(torch.from_numpy(photo[top : top + crop, left : left + crop].copy()).movedim(-1, 0))
        stacked = np.stack([np.asarray(m)[top : top + crop, left : left + crop] for m in maps])
        cams.append(torch.from_numpy(np.clip(stacked, 0, 1)))
        labels[number, [i - 1 for i in example.class_ids]] = 1
    return Batch(torch.stack(images), labels, cams)


def _show(times: dict[str, list[float]], given: argparse.Namespace, *, mean_classes: float) -> None:
    rows = []
    for name, spent in times.items():
        ratios = [one / other for one, other in zip(spent, times[COMPARED], strict=True)]
        rows.append([name, middle(spent), spread(spent), digits(median(ratios)), spread(ratios)])
    measure.show(
        f"A training step, {given.batch} crops of {given.crop} x {given.crop}, {given.threads} threads",
        ("", "ms", "min .. max", "ratio", "min .. max"),
        rows,
        f"Wall time, {given.batches} batches, {given.rounds} turns; {mean_classes:.2f} of {CLASSES} classes a photo.",
        f"Ratios are to '{COMPARED}' of the same turn.",
    )


if __name__ == "__main__":
    if not KEEP_MEMORY.keys() <= os.environ.keys():
        # the C library reads them when a process starts
        with environment(KEEP_MEMORY):
            os.execv(sys.executable, [sys.executable, *sys.argv])
    main()
