"""Mask makers that stop where they need the CRF, so that many of them can meet on one image and share its lattices.

A maker is written as a generator: it yields the scores of the problems that it wants solved, is sent the probabilities,
and returns its mask. Alone it meets a CRF at once (`finish`). With others on the same image (`finish_together`) the
problems of all are solved side by side, in the lanes of the engine's vectors: a further setting of s, t or alpha then
costs a tenth of what the first one does.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Generator, Sequence

import numpy as np
from numpy.typing import NDArray

from pmm_ray.masks.cam import FloatArray, Mask
from pmm_ray.masks.crf import Crf, DenseCRF

Steps = Generator[FloatArray, FloatArray, Mask]
"""Yields (K, 2, H, W) scores of two-label problems and is sent (K, H, W), the foreground's probabilities; or yields
(L, H, W), one problem of several labels, and is sent (L, H, W). Returns the mask, (H, W) uint8."""


def finish(steps: Steps, crf: Crf) -> Mask:
    """Run one maker to its mask, every problem on `crf`."""
    try:
        scores = next(steps)
        while True:
            scores = steps.send(crf.binary(scores) if scores.ndim == 4 else crf.multilabel(scores))
    except StopIteration as end:
        return end.value


def finish_together(makers: Sequence[Steps], crf: DenseCRF, weights: NDArray[np.floating]) -> list[Mask]:
    """Run makers on one image to their masks, in their order, problems of the same shape side by side.

    A mask differs from that of `finish` at single pixels at most, whose probabilities are within 1e-4 of each other:
    problems that share a pass decide together which points still move.

    Args:
        makers: At least one.
        crf: On the image; the lattices of all.
        weights: (len(makers), 2), each maker's weights of the Gaussian and the bilateral kernel.
    """
    masks: dict[int, Mask] = {}
    answers: dict[int, FloatArray | None] = dict.fromkeys(range(len(makers)))
    while answers:
        wanted: dict[tuple[int, int], dict[int, FloatArray]] = defaultdict(dict)
        for maker, answer in answers.items():
            try:
                scores = next(makers[maker]) if answer is None else makers[maker].send(answer)
            except StopIteration as end:
                masks[maker] = end.value
            else:
                wanted[scores.ndim, scores.shape[-3]][maker] = scores
        answers = {}
        for (dimensions, _), asked in wanted.items():
            solved = _binary if dimensions == 4 else _multilabel
            answers |= solved(asked, crf, weights)
    return [masks[maker] for maker in range(len(makers))]


def _binary(asked: dict[int, FloatArray], crf: DenseCRF, weights: NDArray[np.floating]) -> dict[int, FloatArray]:
    counts = [len(scores) for scores in asked.values()]
    found = crf.binary(np.concatenate([*asked.values()]), weights=np.repeat(weights[[*asked]], counts, axis=0))
    return dict(zip(asked, np.split(found, np.cumsum(counts)[:-1]), strict=True))


def _multilabel(asked: dict[int, FloatArray], crf: DenseCRF, weights: NDArray[np.floating]) -> dict[int, FloatArray]:
    return dict(zip(asked, crf.multilabel(np.stack([*asked.values()]), weights=weights[[*asked]]), strict=True))
