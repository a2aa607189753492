"""Reliable labels of a training batch, made while the network goes on: one crop a task, the tasks on threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pmm_ray.config import ReliableConfig
from pmm_ray.data.dataset import IGNORE
from pmm_ray.masks.cam import FloatArray, Mask, divided_by_peak
from pmm_ray.masks.reliable import reliable_labels
from pmm_ray.stages.crf import dense_crf

MakeLabels = Callable[[NDArray[np.uint8], FloatArray, Sequence[int]], Mask]
"""(H, W, 3) uint8 RGB, (K, H, W) CAM in [0, 1], K ids -> (H, W) uint8 with 255."""


@dataclass(frozen=True)
class LabelledCrop:
    """A training crop as its labels were made: image (H, W, 3), CAM (K, H, W) of `class_ids`, mask (H, W) uint8.

    Of a CAM that is not `finite` nothing was made.
    """

    image: NDArray[np.uint8]
    cam: FloatArray
    class_ids: tuple[int, ...]
    mask: Mask
    finite: bool = True


class Labeller:
    """Starts the making of a batch's labels on the threads of a pool; the CRF engine leaves Python's lock to others."""

    def __init__(self, make: MakeLabels, pool: Executor):
        self._make, self._pool = make, pool

    def begin(
        self, images: Tensor, cams: Sequence[Tensor], class_ids: Sequence[tuple[int, ...]], inside: Tensor
    ) -> list[Future[LabelledCrop]]:
        """Labels of a batch, under way.

        Args:
            images: (N, 3, H, W) uint8 RGB.
            cams: N of (K, H, W), >= 0, not normalised, K as many as the image has labels.
            class_ids: N times those K ids.
            inside: (N, H, W) bool, False where the crop was filled, not photo.
        """
        pictures, photo = images.movedim(1, -1).cpu().numpy(), inside.cpu().numpy()
        return [
            self._pool.submit(label_crop, picture, cam.float().cpu().numpy(), ids, area, self._make)
            for picture, cam, ids, area in zip(pictures, cams, class_ids, photo, strict=True)
        ]


def label_crop(
    image: NDArray[np.uint8], cam: FloatArray, class_ids: tuple[int, ...], inside: NDArray[np.bool_], make: MakeLabels
) -> LabelledCrop:
    """Labels of one crop, made of its photo alone: what was filled in has no part in the CAM's maximum or in the CRF.

    It is 255 there, and its CAM 0. A CAM with a value that is no number labels nothing, and is told of.
    """
    mask, scores, finite = np.full(inside.shape, IGNORE, np.uint8), np.zeros_like(cam), bool(np.isfinite(cam).all())
    if inside.any() and finite:
        rows, columns = (np.flatnonzero(inside.any(axis=axis)) for axis in (1, 0))
        area = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        scores[:, *area] = divided_by_peak(cam[:, *area])
        mask[area] = make(np.ascontiguousarray(image[area]), scores[:, *area], class_ids)
    return LabelledCrop(image, scores, class_ids, mask, finite)


def masks_of(crops: Sequence[LabelledCrop], device: torch.device) -> Tensor:
    """(N, H, W) int64, as losses take masks."""
    return torch.from_numpy(np.stack([crop.mask for crop in crops])).to(device, torch.int64)


def label_maker(labels: ReliableConfig) -> MakeLabels:
    """What the settings ask for."""
    numbers = labels.model_dump(exclude={"scales", "crf"})

    def make(image: NDArray[np.uint8], cam: FloatArray, class_ids: Sequence[int]) -> Mask:
        return reliable_labels(image, cam, class_ids, crf=dense_crf(image, labels.crf), **numbers)

    return make
