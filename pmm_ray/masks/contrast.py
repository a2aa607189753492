"""How well a mask parts what can be seen without ground truth: the CAMs, and the photo's colours.

Both are shares of explained variance (the correlation ratio eta^2): of all that varies over the pixels, how much is
variance between the mask's segments and not within them. A mask that is all background, or all foreground, explains
nothing, and one that leaves pixels undecided the less, the more it leaves. One that follows the CAMs alone explains the
CAMs best and cuts through objects; one that follows colours alone knows nothing of classes. Their geometric mean over a
set ranks mask settings much as ground truth does where the CAMs are where the objects are; it cannot see that a CAM
points at the wrong thing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pmm_ray.data.dataset import IGNORE


class Explained:
    """eta^2 of segmentations of the same pixels: between-segment variance over total variance.

    Args:
        values: (C, N), finite; both variances are summed over the channels.
    """

    def __init__(self, values: NDArray[np.floating]) -> None:
        x = np.asarray(values, np.float64)
        self._centred = x - x.mean(axis=1, keepdims=True)
        self._total = float((self._centred**2).sum())

    def by(self, segments: NDArray[np.integer]) -> float:
        """In [0, 1], for segments (N,) of ids >= 0; 0 where nothing varies, or there is no second segment.

        255, undecided, is no segment: what varies there is not explained. The segments next to it do not gain by what
        they leave out, hence the share of the pixels that are decided is a factor.
        """
        ids = np.flatnonzero(np.bincount(segments)[:IGNORE])
        if not self._total > 0 or len(ids) < 2:
            return 0.0
        members = (segments == ids[:, None]).astype(np.float64)
        between = (self._centred @ members.T) ** 2 / members.sum(axis=1)
        decided = members.sum() / members.shape[1]
        return min(decided * float(between.sum()) / self._total, 1.0)


class Contrasts:
    """What masks of one image explain of its CAM and of its colours, at N pixels.

    Args:
        colours: (3, N), in any unit.
        cam: (K, N), K >= 1.
        class_ids: The K ids of its channels.
    """

    def __init__(self, colours: NDArray[np.floating], cam: NDArray[np.floating], class_ids: Sequence[int]) -> None:
        self._colours = Explained(colours)
        self._cams = [(k, Explained(x[None])) for k, x in zip(class_ids, cam, strict=True)]

    def of(self, mask: NDArray[np.uint8]) -> tuple[float, float]:
        """(cam share, colour share), each in [0, 1], of a mask (N,) of ids.

        The first is the mean over the classes, each of which parts its own CAM from all else; a class of which the mask
        holds nothing explains nothing.
        """
        shares = [cam.by(np.where(mask == IGNORE, IGNORE, mask == k)) for k, cam in self._cams]
        return float(np.mean(shares)), self._colours.by(mask)


def contrast(cam_shares: Sequence[float], colour_shares: Sequence[float]) -> float | None:
    """The score of a set of masks: the geometric mean of the two shares, each averaged over the images first.

    In [0, 1]; None of no images.
    """
    if not len(cam_shares):
        return None
    return float(np.sqrt(np.mean(cam_shares) * np.mean(colour_shares)))
