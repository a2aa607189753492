"""CRFs to put in place of the real one: one that does nothing, and one that is slow and obvious."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pmm_ray.masks.crf import PRESETS, CrfParams


class NoCrf:
    """Scores become probabilities and nothing else happens."""

    def __init__(self, shape):
        self.shape = shape

    def binary(self, scores):
        return (scores[:, 1] / scores.sum(axis=1)).astype(np.float32)

    def multilabel(self, probs):
        return (probs / probs.sum(axis=0)).astype(np.float32)


class BruteCrf:
    """Mean field with every pair of pixels visited in Python loops, for images of a few dozen pixels.

    k(i, j) = compat exp(-|f_i - f_j|^2 / 2), each kernel normalised symmetrically by its row sums: k / sqrt(n_i n_j).
    """

    def __init__(self, image, params: CrfParams = PRESETS["ppg"]):
        height, width = image.shape[:2]
        self.shape = (height, width)
        self.iterations = params.iterations
        places = [(y, x) for y in range(height) for x in range(width)]
        gaussian = [(y / params.gaussian_sxy, x / params.gaussian_sxy) for y, x in places]
        bilateral = [
            (y / params.bilateral_sxy, x / params.bilateral_sxy, *(int(v) / params.bilateral_srgb for v in image[y, x]))
            for y, x in places
        ]
        self.kernel = params.gaussian_compat * self._affinity(gaussian)
        self.kernel += params.bilateral_compat * self._affinity(bilateral)

    @staticmethod
    def _affinity(features):
        count = len(features)
        k = np.zeros((count, count))
        for i in range(count):
            for j in range(count):
                distance = sum((a - b) ** 2 for a, b in zip(features[i], features[j], strict=True))
                k[i, j] = math.exp(-distance / 2)
        norm = k.sum(axis=1)
        return k / np.sqrt(np.outer(norm, norm))

    def multilabel(self, probs):
        unary = np.log(np.maximum(probs, 1e-5)).reshape(len(probs), -1).T.astype(np.float64)
        logits = unary
        for _ in range(self.iterations):
            q = np.exp(logits - logits.max(axis=1, keepdims=True))
            q /= q.sum(axis=1, keepdims=True)
            logits = unary + self.kernel @ q
        q = np.exp(logits - logits.max(axis=1, keepdims=True))
        q /= q.sum(axis=1, keepdims=True)
        return q.T.reshape(len(probs), *self.shape).astype(np.float32)

    def binary(self, scores):
        return np.stack([self.multilabel(pair)[1] for pair in scores])


@pytest.fixture(scope="session")
def no_crf():
    return NoCrf


@pytest.fixture(scope="session")
def brute_crf():
    return BruteCrf


@pytest.fixture
def photo():
    """A maker of small pictures, two flat halves with a little noise: (image, which pixels are the left half)."""

    def make(height: int, width: int, seed: int = 0):
        rng = np.random.default_rng(seed)
        inside = np.arange(width)[None, :].repeat(height, 0) < (width + 1) // 2
        colour = np.where(inside[..., None], (200, 60, 40), (40, 90, 180))
        image = np.clip(colour + rng.integers(-4, 5, colour.shape), 0, 255).astype(np.uint8)
        return image, inside

    return make
