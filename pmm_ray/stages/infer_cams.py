"""A CAM classifier -> CAMs of the photos: multi-scale or multi-crop, kept for the image-level labels only."""

from __future__ import annotations

from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pmm_ray.artefacts import Artefact
from pmm_ray.cluster.worker import Row, failed, succeeded
from pmm_ray.config import CamInferConfig
from pmm_ray.data.cams import Cam
from pmm_ray.data.dataset import Photos
from pmm_ray.data.images import read_image, read_resizable
from pmm_ray.masks.cam import normalise
from pmm_ray.stages.cam_files import CAM_FACTS, remove_strays, write_shard
from pmm_ray.stages.network import NetworkWorker, network_actors, photo_rows
from pmm_ray.stages.row_work import Actors, work_on
from pmm_ray.stages.stage import MODEL, Context, Facts

if TYPE_CHECKING:
    from pmm_ray.inference import View


def infer_cams(*, photos: Photos, model: Artefact, infer: CamInferConfig, context: Context) -> Facts:
    """Write the CAM of every photo at image size / `infer.stride`, float16, normalised before it is rounded.

    Raises:
        UserError: no image got a CAM.
    """
    actors = network_actors(context.cluster)
    rows = photo_rows(photos)
    file, out = model.path.resolve() / MODEL, context.out.resolve()
    table, wrong = work_on(
        rows,
        partial(_CamWorker, model=file, actors=actors, infer=infer, out=out),
        facts=CAM_FACTS,
        context=context,
        actors=actors,
        # An image and its mirror image share a batch with those of its size.
        at_least=infer.batch_size // 2,
        key=itemgetter("size"),
    )
    remove_strays(context.out, table)
    return {"images": len(rows) - len(wrong), "failed": wrong}


class _CamWorker(NetworkWorker):
    def __init__(self, *, model: Path, actors: Actors, infer: CamInferConfig, out: Path):
        super().__init__(model=model, actors=actors)
        self._infer, self._out = infer, out

    def read(self, path: str) -> NDArray[np.uint8]:
        """A photo as (H, W, 3) uint8 RGB; raises ImageError if it cannot be used."""
        return read_image(path) if self._infer.short_side is None else read_resizable(path)

    def work(self, rows: list[Row], images: list[NDArray[np.uint8]]) -> list[Row]:
        results: list[Row] = []
        cams: list[Cam] = []
        for row, image, found in zip(rows, images, self._activations(rows, images), strict=True):
            if not np.isfinite(found).all():
                results.append(failed(row, f"the network's activation is not finite: lower {self.rate}"))
                continue
            height, width = image.shape[:2]
            cam = Cam(row["name"], tuple(row["labels"]), normalise(found).astype(np.float16), height, width)
            facts = {"row": len(cams), "classes": cam.class_ids, "height": height, "width": width}
            results.append(succeeded(row, facts | {"peak": found.max(axis=(1, 2), initial=0).tolist()}))
            cams.append(cam)
        if cams:
            shard = write_shard(self._out, cams)
            results = [result | {"shard": shard} if "row" in result else result for result in results]
        return results

    def _activations(self, rows: list[Row], images: list[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        """(K, h, w) averaged activations of each image's labels, not normalised."""
        import torch

        from pmm_ray.inference import average, shrunk

        infer = self._infer
        limit = infer.max_short_side if infer.short_side is None else None
        pixels = [shrunk(torch.from_numpy(image).permute(2, 0, 1), max_short_side=limit) for image in images]
        maps = average(
            self.module.cam,
            pixels,
            [view for k, image in enumerate(pixels) for view in self._views(k, (image.shape[1], image.shape[2]))],
            channels=[[label - 1 for label in row["labels"]] for row in rows],
            targets=[(-(-image.shape[0] // infer.stride), -(-image.shape[1] // infer.stride)) for image in images],
            mean=self.info["mean"],
            std=self.info["std"],
            batch_size=infer.batch_size,
            device=self.device,
        )
        return [found.cpu().numpy() for found in maps]

    def _views(self, k: int, size: tuple[int, int]) -> list[View]:
        from pmm_ray.inference import crop_views, whole_views

        infer = self._infer
        if infer.mode == "multi_scale":
            return whole_views(k, size, scales=infer.scales, flip=infer.flip, short_side=infer.short_side)
        return crop_views(
            k,
            size,
            scales=infer.scales,
            flip=infer.flip,
            short_side=infer.short_side,
            window=infer.window,
            stride=infer.window_stride,
        )
