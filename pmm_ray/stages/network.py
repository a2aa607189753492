"""What the stages that run a network share: how many actors, and reading images and the model in one."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pmm_ray.cluster.session import check_gpu, cpus_each, own_gpu, resources, use_gpu, worker_slots
from pmm_ray.cluster.worker import Row, failed, one_line
from pmm_ray.config import ClusterConfig, PredictConfig
from pmm_ray.data.dataset import Photos
from pmm_ray.data.images import image_size, read_image
from pmm_ray.errors import UserError
from pmm_ray.stages.row_work import Actors


def network_actors(cluster: ClusterConfig, *, per_gpu: int = 1) -> Actors:
    """One actor per CPU, or `per_gpu` on each GPU, unless `cluster.infer_workers` says otherwise (0: this process).

    More actors than GPUs share them evenly: then work on the CPU (decoding, the CRF) keeps no GPU waiting.
    """
    if cluster.infer_workers == 0:
        return Actors(0, 0, 1 if own_gpu(cluster.gpu) else 0)
    have = resources()
    if use_gpu(cluster.gpu):
        workers = cluster.infer_workers or max(1, int(min(have.gpus * per_gpu, have.cpus)))
        return Actors(workers, 1, 1 / math.ceil(workers / have.gpus))
    workers = max(1, min(cluster.infer_workers or worker_slots(cpus=1), worker_slots(cpus=1)))
    return Actors(workers, max(1, cpus_each(workers)), 0)


def photo_rows(photos: Photos) -> list[Row]:
    """One row for each photo; `size` (0, 0) where it cannot be read, which the actor will report."""
    with ThreadPoolExecutor(8) as pool:
        sizes = list(pool.map(_size, (photo.image for photo in photos.photos)))
    return [
        {"name": photo.name, "image": photo.image, "labels": photo.labels, "size": size}
        for photo, size in zip(photos.photos, sizes, strict=True)
    ]


def _size(path: str) -> tuple[int, int]:
    try:
        return image_size(path)
    except Exception:
        return 0, 0


_OF_A_GPU = 0.9
"""Of its memory, what networks may take; the rest is for what each process has on it besides."""
_NO_ROOM = "needs more of the GPU than a worker's share: lower cluster.infer_workers, or choose smaller scales"
_SECTIONS = {"classifier": "cam", "segmenter": "seg", "joint": "rrm"}
"""Where the settings of each kind of network stand."""


class NetworkWorker:
    """Lives in an actor: the network, loaded once, and the loop over batches. A stage says what one batch gives."""

    def __init__(self, *, model: Path, actors: Actors):
        # On Linux, before the first tensor: maps of whole photos on large pages, which come and go at less cost.
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
        import torch

        from pmm_ray.nets.build import load_model

        if not actors.gpus and actors.cpus:
            torch.set_num_threads(int(actors.cpus))
        if actors.gpus:
            check_gpu()
        if 0 < actors.gpus < 1:
            # each keeps what it once had, and the last to come would find nothing left
            torch.cuda.set_per_process_memory_fraction(_OF_A_GPU * actors.gpus)
        self._actors = actors
        self.device = torch.device("cuda" if actors.gpus else "cpu")
        module, self.info = load_model(model)
        try:
            # On CPUs too this order of memory makes convolutions faster by a quarter.
            self.module: Any = module.to(self.device).to(memory_format=torch.channels_last)
        except torch.OutOfMemoryError as error:
            raise UserError(_NO_ROOM) from error

    @property
    def rate(self) -> str:
        """The key of the learning rate that the network was trained with."""
        return f"{_SECTIONS[self.info['kind']]}.train.lr"

    def __call__(self, rows: list[Row]) -> list[Row]:
        """Results for all rows; those whose image cannot be read have failed, the others go through the network."""
        with ThreadPoolExecutor(4) as pool:
            images = list(pool.map(_attempt(self.read), (row["image"] for row in rows)))
        good = [k for k, image in enumerate(images) if not isinstance(image, Exception)]
        worked = iter(self._guarded([rows[k] for k in good], [images[k] for k in good]) if good else [])
        return [next(worked) if k in good else failed(row, images[k]) for k, row in enumerate(rows)]

    def _guarded(self, rows: list[Row], images: list[NDArray[np.uint8]]) -> list[Row]:
        import torch

        try:
            return self.work(rows, images)
        except torch.OutOfMemoryError as error:
            raise ValueError(_NO_ROOM) from error
        except torch.AcceleratorError as error:
            # After such an error a GPU answers this process nothing more; another process tries the rows again.
            if not self._actors.workers:
                sys.exit(f"error: the GPU failed ({one_line(error)}); the same command goes on")
            print(f"the GPU failed, its worker ends: {error}", file=sys.stderr, flush=True)
            os._exit(1)

    def read(self, path: str) -> NDArray[np.uint8]:
        """A photo as (H, W, 3) uint8 RGB; raises ImageError if it cannot be used."""
        return read_image(path)

    def work(self, rows: list[Row], images: list[NDArray[np.uint8]]) -> list[Row]:
        """Results of rows whose images (H, W, 3) uint8 RGB are given."""
        raise NotImplementedError


class SegmentationWorker(NetworkWorker):
    """A segmentation network, and its prediction of a batch of images."""

    def __init__(self, *, model: Path, actors: Actors, predict: PredictConfig, label_filter: bool):
        super().__init__(model=model, actors=actors)
        self._predict, self._label_filter = predict, label_filter

    def kept(self, row: Row) -> list[int] | None:
        """Ids that the prediction may hold; None: all."""
        return [0, *row["labels"]] if self._label_filter else None

    def probabilities(self, rows: list[Row], images: list[NDArray[np.uint8]]) -> Iterator[NDArray[np.float32]]:
        """(L, H, W) softmax averaged over scales and mirror images, of the ids in `kept`, image by image.

        Those of a shrunk photo are averaged at its reduced size, and enlarged only when their turn comes.
        """
        import torch

        from pmm_ray.inference import average, shrunk, whole_views
        from pmm_ray.nets.inputs import resize

        views = partial(whole_views, scales=self._predict.scales, flip=self._predict.flip)
        pixels = [torch.from_numpy(image).permute(2, 0, 1) for image in images]
        pixels = [shrunk(image, max_short_side=self._predict.max_short_side) for image in pixels]
        sizes = [(image.shape[1], image.shape[2]) for image in pixels]
        maps = average(
            lambda batch: self.module(batch)["main"].softmax(dim=1),
            pixels,
            [view for k, size in enumerate(sizes) for view in views(k, size)],
            channels=[self.kept(row) for row in rows],
            targets=sizes,
            mean=self.info["mean"],
            std=self.info["std"],
            batch_size=self._predict.batch_size,
            device=self.device,
        )
        # enlarged on the CPU: maps of a large photo may be more than a GPU has room for
        maps = [found.cpu() for found in maps]
        return (
            resize(found[None], (image.shape[0], image.shape[1]))[0].numpy()
            for found, image in zip(maps, images, strict=True)
        )


def _attempt(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def tried(argument: Any) -> Any:
        try:
            return function(argument)
        except Exception as error:
            return error

    return tried
