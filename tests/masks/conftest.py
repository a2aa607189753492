"""CRFs to put in place of the real one: one that does nothing, and two that are slow and obvious.

Of those, one visits all pairs of pixels; the other is on the real one's lattices, and in double precision.
"""

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


def place(image, params: CrfParams):
    """Fresh lattices of the two kernels, {"gaussian", "bilateral"}, each in memory of its own."""
    from pmm_ray.masks import lattice
    from pmm_ray.masks.workspace import Workspace

    (height, width), g, b = image.shape[:2], Workspace(), Workspace()
    plane = lattice.place_features(height, width, sxy=params.gaussian_sxy, workspace=g)
    colour = lattice.colour_features(image, sxy=params.bilateral_sxy, srgb=params.bilateral_srgb, workspace=b)
    count = height * width
    return {"gaussian": lattice.build(plane, count, g), "bilateral": lattice.build(colour, count, b)}


class DoubleFilter:
    """splat, blur, slice in float64 on an engine's lattice that no kernel has been made of, by numpy's bincount."""

    def __init__(self, lattice, count):
        self.weights, self.vertices = (
            lattice.weights[:count].astype(np.float64),
            lattice.vertices[lattice.simplex[:count]],
        )
        self.neighbours, self.alpha = lattice.neighbours, lattice.alpha
        self.norm = 1 / np.sqrt(self(np.ones((1, count)))[0] + 1e-20)

    def __call__(self, values):
        """(C, N) -> (C, N)."""
        return np.stack([self._one(row) for row in values])

    def normalised(self, values):
        return self.norm * self(self.norm * values)

    def _one(self, row):
        shares = (self.weights * row[:, None]).ravel()
        at = np.bincount(self.vertices.ravel(), shares, self.neighbours.shape[1])
        for left, right in self.neighbours.transpose(0, 2, 1):
            at = at + 0.5 * (at[left] + at[right])
            at[0] = 0
        return self.alpha * (self.weights * at[self.vertices]).sum(1)


class DoubleCrf:
    """Mean field in float64 on the engine's lattices."""

    def __init__(self, image, params: CrfParams):
        self.shape, self.iterations = image.shape[:2], params.iterations
        lattices = place(np.ascontiguousarray(image), params)
        count = self.shape[0] * self.shape[1]
        self.filters = {name: DoubleFilter(lattice, count) for name, lattice in lattices.items()}
        self.compats = {"gaussian": params.gaussian_compat, "bilateral": params.bilateral_compat}

    def _message(self, values):
        return sum(self.compats[name] * each.normalised(values) for name, each in self.filters.items())

    def multilabel(self, probs):
        c = np.log(np.maximum(np.asarray(probs, np.float32), np.float32(1e-5)).astype(np.float64)).reshape(
            len(probs), -1
        )
        q = self._softmax(c)
        for _ in range(self.iterations):
            q = self._softmax(c + self._message(q))
        return q.reshape(len(probs), *self.shape)

    def binary(self, scores):
        clipped = np.maximum(np.asarray(scores, np.float32), np.float32(1e-5)).astype(np.float64)
        c = np.log(clipped[:, 1] / clipped[:, 0]).reshape(len(scores), self.shape[0] * self.shape[1])
        s = np.tanh(c / 2)
        for _ in range(self.iterations if len(scores) else 0):
            s = np.tanh((c + self._message(s)) / 2)
        return ((1 + s) / 2).reshape(len(scores), *self.shape)

    @staticmethod
    def _softmax(logits):
        q = np.exp(logits - logits.max(axis=0))
        return q / q.sum(axis=0)


@pytest.fixture(scope="session")
def fresh_lattices():
    return place


@pytest.fixture(scope="session")
def double_filter():
    return DoubleFilter


@pytest.fixture(scope="session")
def double_crf():
    return DoubleCrf


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
