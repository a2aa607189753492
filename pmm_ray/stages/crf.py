"""The dense CRF as stages use it: made of the settings, and compiled before the images come."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pmm_ray.cluster.worker import Worker
from pmm_ray.config import CrfConfig
from pmm_ray.data.dataset import Photos
from pmm_ray.masks.crf import CrfParams, DenseCRF, compile_engine, crf_params


def dense_crf(image: NDArray[np.uint8], crf: CrfConfig) -> DenseCRF:
    """The CRF that the settings ask for, on an image (H, W, 3) uint8 RGB."""
    return DenseCRF(image, params=params_of(crf), backend=crf.backend)


def params_of(crf: CrfConfig) -> CrfParams:
    """The constants that the settings ask for."""
    return crf_params(**crf.model_dump(exclude={"backend"}))


def most_labels(photos: Photos) -> int:
    """The most that the CRF meets on one photo if it is given the background and the image-level labels."""
    return 1 + max((len(photo.labels) for photo in photos.photos), default=0)


def compiling_first(make_worker: Callable[[], Worker], crf: CrfConfig, *, labels: int) -> Worker:
    """A worker whose CRF is compiled, for so many labels at most, when it starts.

    That happens once on each machine, while the other workers there wait for it.
    """
    if crf.backend == "numba":
        compile_engine(labels=labels)
    return make_worker()
