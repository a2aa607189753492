"""Mean-field inference of the dense CRF on lattices (Kraehenbuehl and Koltun 2011, algorithm 1), Potts compatibility.

A kernel's filter is F = D S B S^T D with S^T splat, B blur, S slice and D = diag(1 / sqrt(filter(1))), the symmetric
normalisation. Everything but B folds into one weight per point and vertex, `w = barycentric * norm * sqrt(alpha)`, used
by splat and slice alike; alpha is the lattice's.

L labels: `Q <- softmax(c + sum_k compat_k F_k Q)` with c = log(score), from Q = softmax(c) on. Two labels need one
channel: with s = Q1 - Q0 = tanh(logit / 2) and c = log(score1 / score0) the same update is
`s <- tanh((c + sum_k compat_k F_k s) / 2)`.

Values are [point][lane]: the lanes of a row are problems, or each problem's labels, side by side. Every lane has its
own compat_k, so that problems on one image share its lattices whatever else they differ in. One iteration is a blur of
each lattice and one pass over the points, in which chunks of points are sliced, squashed and splatted. Since the
filters are linear, vertices keep their sums from one iteration to the next, and only points whose values moved are
splatted again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from pmm_ray.masks.jit import jit
from pmm_ray.masks.lattice import TOGETHER, Lattice
from pmm_ray.masks.vectors import I64, Arguments, Vector, instructions, transpose
from pmm_ray.masks.workspace import Workspace

_LANES = 8
"""Lanes in which problems are solved side by side; one problem of more labels takes more."""
_CHUNK = 8192
"""Numbers that stay in the processor's first cache from slice to splat."""
_STILL = np.float32(1e-5)
"""A point none of whose values moved by more is not splatted again until its moves add up to more."""
_TOGETHER = (0,) * 32
"""Two-label values squashed at a time."""
_FOUR, _EIGHT, _ONE = (0,) * 4, (0,) * 8, (0,)
_PLANE, _COLOUR = 3, 6
"""Corners of a simplex in the two lattices."""


@dataclass(frozen=True)
class Kernel:
    """A normalised Gaussian kernel on N points: a lattice with everything that is pointwise folded into its weights.

    Attributes:
        lattice: Its weights are the folded ones.
        norm: (P,) float32, 1 / sqrt(filter(1)).
    """

    lattice: Lattice
    norm: NDArray[np.float32]

    def copy(self) -> Kernel:
        """One that no workspace holds."""
        return Kernel(self.lattice.copy(), self.norm.copy())

    def filter(self, values: NDArray[np.float32], *, workspace: Workspace) -> NDArray[np.float32]:
        """F values: (C, N) float32 -> (C, N) float32."""
        room, corners = self.lattice.weights.shape
        result = np.empty(values.shape, np.float32)
        for first in range(0, len(values), len(_EIGHT)):
            some = values[first : first + len(_EIGHT)]
            width = _lanes_for(len(some))
            rows = workspace.array("rows", (room, width), np.float32)
            rows[:] = 0
            rows[: values.shape[1], : len(some)] = some.T
            buffers = workspace.array("filter", (3, self.lattice.neighbours.shape[1], width), np.float32)
            _filter(rows, self.lattice.arrays, buffers, (0,) * width, (0,) * corners)
            result[first : first + len(some)] = rows[: values.shape[1], : len(some)].T
        return result


def kernel(lattice: Lattice, *, workspace: Workspace) -> Kernel:
    """The symmetrically normalised kernel of weight 1. Takes the lattice over: its weights are changed."""
    corners, vertices, _ = lattice.neighbours.shape
    buffers = workspace.array("filter", (3, vertices, 1), np.float32)
    ones = workspace.array("rows", (len(lattice.simplex), 1), np.float32)
    norm = workspace.array("norm", (len(lattice.simplex),), np.float32)
    _normalise(lattice.arrays, np.float32(lattice.alpha), norm, ones, buffers, (0,) * corners)
    return Kernel(lattice, norm)


# What happens at points. Python over vectors of lanes, run while compiling; a lattice is an argument's number.


def _rows(a: Arguments, which: int, row: int, width: int, points: int = 1) -> list[Vector]:
    """Rows of an array [row][width], from the row on that another argument tells."""
    return [a.load(which, a.place(row, times=width, plus=i * width), width) for i in range(points)]


def _sliced(a: Arguments, totals: list[Vector], at: int, lattice: int, corners: int) -> list[Vector]:
    """total + sum_j weight_j * at[vertex_j], for the points from argument 0 on."""
    simplex, weights, vertices = ((lattice, entry) for entry in range(3))
    count = totals[0].count
    inside = [a.element(simplex, a.place(0, plus=i)) for i in range(len(totals))]
    totals = list(totals)
    for j in range(corners):
        # point after point, so that none waits for its own last sum
        for i, s in enumerate(inside):
            vertex = a.element(vertices, a.shift(s, times=corners, plus=j))
            weight = a.spread(weights, a.place(0, times=corners, plus=i * corners + j), count)
            totals[i] = totals[i].plus_product(a.load(at, a.shift(vertex, times=count), count), weight)
    return totals


def _splat(a: Arguments, value: Vector, sums: int, lattice: int, corners: int) -> None:
    """sums[vertex_j] += weight_j * value, for the point that is argument 0."""
    simplex, weights, vertices = ((lattice, entry) for entry in range(3))
    s = a.element(simplex, a.place(0))
    for j in range(corners):
        place = a.shift(a.element(vertices, a.shift(s, times=corners, plus=j)), times=value.count)
        weight = a.spread(weights, a.place(0, times=corners, plus=j), value.count)
        a.store(sums, place, a.load(sums, place, value.count).plus_product(value, weight))


def _expm1(x: Vector) -> Vector:
    """e^x - 1 by Taylor to degree 7 at x / 8, doubled three times; x is kept within -20 and 20.

    Doubling e^x itself would double its rounding error too, and mean field makes much of a little.
    """
    x = x.choose(x < 20.0, x.constant(20.0))
    y = x.choose(x > -20.0, x.constant(-20.0)) * (1 / 8)
    e = y.constant(1 / math.factorial(7))
    for degree in range(6, 0, -1):
        e = y.constant(1 / math.factorial(degree)).plus_product(y, e)
    e = y * e
    for _ in range(3):
        e = (e + e).plus_product(e, e)
    return e


def _larger(a: Vector, b: Vector) -> Vector:
    return a.choose(a > b, b)


@intrinsic
def _half_tanh(typingctx, values, place, count):
    """s = tanh(logit / 2) = (1 - e) / (1 + e), e = e^-logit, in place, for numbers that follow each other."""

    def build(a: Arguments) -> None:
        less = _expm1(a.load(0, a.place(1), a.length(2)) * -1.0)
        a.store(0, a.place(1), less * -1.0 / (less + 2.0))

    return instructions(types.void(values, types.intp, count), build)


@intrinsic
def _softmax(typingctx, values, row, lanes, group):
    """Q = softmax(logit) over each group of a row's lanes, in place."""

    def build(a: Arguments) -> None:
        width, together = a.length(2), a.length(3)
        (x,) = _rows(a, 0, 1, width)
        e = _expm1(x - x.fold(_larger, together)) + 1.0
        a.store(0, a.place(1, times=width), e / e.fold(Vector.__add__, together))

    return instructions(types.void(values, types.intp, lanes, group), build)


@intrinsic
def _slice_both(typingctx, p, c, g, g_at, b, b_at, logit, i, lanes, points):
    """logit = c + S_g g_at + S_b b_at: of the points from p on, into the rows from i on."""

    def build(a: Arguments) -> None:
        width = a.length(8)
        totals = _sliced(a, _rows(a, 1, 0, width, a.length(9)), 3, 2, _PLANE)
        for k, total in enumerate(_sliced(a, totals, 5, 4, _COLOUR)):
            a.store(6, a.place(7, times=width, plus=k * width), total)

    signature = types.void(types.intp, c, g, g_at, b, b_at, logit, types.intp, lanes, points)
    return instructions(signature, build)


@intrinsic
def _moved(typingctx, new, i, old, p, still, lanes):
    """Whether any lane of new[i] is farther than `still` from that of old[p]."""

    def codegen(context, builder, signature, values):
        a = Arguments(context, builder, signature, values)
        (new,), (old,) = _rows(a, 0, 1, a.length(5)), _rows(a, 2, 3, a.length(5))
        move = new - old
        return _larger(move, move * -1.0).any_above(a.number(4, new.count))

    return types.boolean(new, types.intp, old, types.intp, types.float32, lanes), codegen


@intrinsic
def _splat_both(typingctx, p, g, g_sums, g_compat, b, b_sums, b_compat, new, i, old, lanes):
    """Splat new[i] - old[p] at point p of both lattices, times the kernels' weights in each lane; old[p] = new[i]."""

    def build(a: Arguments) -> None:
        width = a.length(10)
        (new,), (old,) = _rows(a, 7, 8, width), _rows(a, 9, 0, width)
        _splat(a, (new - old) * a.load(3, I64(0), width), 2, 1, _PLANE)
        _splat(a, (new - old) * a.load(6, I64(0), width), 5, 4, _COLOUR)
        a.store(9, a.place(0, times=width), new)

    signature = types.void(types.intp, g, g_sums, g_compat, b, b_sums, b_compat, new, types.intp, old, lanes)
    return instructions(signature, build)


@intrinsic
def _splat_point(typingctx, p, values, lattice, sums, lanes, corners):
    """sums += S^T values, for one point of one lattice."""

    def build(a: Arguments) -> None:
        (value,) = _rows(a, 1, 0, a.length(4))
        _splat(a, value, 3, 2, a.length(5))

    return instructions(types.void(types.intp, values, lattice, sums, lanes, corners), build)


@intrinsic
def _slice_points(typingctx, p, values, lattice, at, lanes, corners, points):
    """values = S at, for the points from p on of one lattice."""

    def build(a: Arguments) -> None:
        width = a.length(4)
        rows = _rows(a, 1, 0, width, a.length(6))
        for i, value in enumerate(_sliced(a, [row.constant(0.0) for row in rows], 3, 2, a.length(5))):
            a.store(1, a.place(0, times=width, plus=i * width), value)

    return instructions(types.void(types.intp, values, lattice, at, lanes, corners, points), build)


@intrinsic
def _blur_vertex(typingctx, target, v, source, a, b, lanes):
    """target[v] = source[v] + (source[a] + source[b]) / 2."""

    def build(a: Arguments) -> None:
        width = a.length(5)
        (middle,), (left,), (right,) = (_rows(a, 2, vertex, width) for vertex in (1, 3, 4))
        a.store(0, a.place(1, times=width), middle.plus_product(left + right, 0.5))

    return instructions(types.void(target, types.intp, source, types.intp, types.intp, lanes), build)


# Loops over them. `lattice`, `g` and `b` are (simplex, weights, vertices, neighbours); buffers (3, M + 1, lanes) hold
# the splatted sums and two more to blur in.


@jit
def _blur(lattice, buffers, lanes):
    """B of the first buffer, along every direction in turn. Returns which of the other two holds it."""
    neighbours = lattice[3]
    # vertex 0 stands for every missing neighbour
    buffers[:, 0] = 0
    read, write, free = buffers[0], buffers[1], buffers[2]
    for j in range(neighbours.shape[0]):
        for v in range(1, neighbours.shape[1]):
            _blur_vertex(write, v, read, neighbours[j, v, 0], neighbours[j, v, 1], lanes)
        read, write, free = write, free, write
    return read


@jit
def _filter(values, lattice, buffers, lanes, corners):
    """values (P, lanes) <- S B S^T values."""
    buffers[0] = 0
    for p in range(len(values)):
        _splat_point(p, values, lattice, buffers[0], lanes, corners)
    at = _blur(lattice, buffers, lanes)
    for p in range(0, len(values), len(_FOUR)):
        _slice_points(p, values, lattice, at, lanes, corners, _FOUR)


@jit
def _normalise(lattice, alpha, norm, ones, buffers, corners):
    """norm = 1 / sqrt(filter(1)), and weights *= norm * sqrt(alpha)."""
    weights = lattice[1]
    root = np.float32(np.sqrt(alpha))
    ones[:] = 1
    _filter(ones, lattice, buffers, _ONE, corners)
    for p in range(len(ones)):
        norm[p] = np.float32(1.0 / np.sqrt(np.float64(ones[p, 0] * alpha) + 1e-20))
    for p in range(len(ones)):
        weight = norm[p] * root
        for j in range(len(corners)):
            weights[p, j] *= weight


@jit
def _slice_chunk(first, rows, c, g, g_at, b, b_at, logit, lanes):
    for i in range(0, rows, len(_FOUR)):
        _slice_both(first + i, c, g, g_at, b, b_at, logit, i, lanes, _FOUR)


@jit
def _squash_chunk(rows, logit, coupled, lanes, group):
    """Log scores to values: of the labels in each group of lanes if `coupled`, else of two labels in each lane."""
    if coupled:
        for i in range(rows):
            _softmax(logit, i, lanes, group)
    else:
        # all of the last vector, whose end may not belong to the chunk's rows
        for place in range(0, rows * len(lanes), len(_TOGETHER)):
            _half_tanh(logit, place, _TOGETHER)


@jit
def _splat_chunk(first, rows, new, old, g, g_sums, g_compat, b, b_sums, b_compat, lanes, points):
    """Bring `old`, and what both lattices hold of it, to `new` where it moved; `points` fill eight lanes."""
    few = len(points)
    for some in range(0, rows, few):
        # eight numbers at once first, since few move after the first iterations
        if few > 1 and not _moved(new, some // few, old, (first + some) // few, _STILL, _EIGHT):
            continue
        for i in range(some, some + few):
            if _moved(new, i, old, first + i, _STILL, lanes):
                _splat_both(first + i, g, g_sums, g_compat, b, b_sums, b_compat, new, i, old, lanes)


@jit
def _solve(c, value, out, iterations, coupled, g, g_compat, g_buffers, b, b_compat, b_buffers, lanes, group, points):
    """Mean field on c (P, lanes); `value` is of the same shape.

    `out` (problems, labels, N) receives the probabilities of all labels, each problem's in a group of lanes, if
    `coupled`; else (1, problems, N) the foreground's.
    """
    room, width = c.shape
    # whole vectors of what is squashed together
    chunk = max(1, _CHUNK // (width * len(_TOGETHER))) * len(_TOGETHER)
    logit = np.empty((chunk, width), np.float32)
    value[:] = 0
    g_buffers[:2], b_buffers[:2] = 0, 0
    g_at, b_at = g_buffers[1], b_buffers[1]
    for iteration in range(iterations + 1):
        if iteration > 0:
            g_at, b_at = _blur(g, g_buffers, lanes), _blur(b, b_buffers, lanes)
        for first in range(0, room, chunk):
            rows = min(chunk, room - first)
            # at the start, the lattices hold nothing yet
            _slice_chunk(first, rows, c, g, g_at, b, b_at, logit, lanes)
            _squash_chunk(rows, logit, coupled, lanes, group)
            if iteration < iterations:
                _splat_chunk(first, rows, logit, value, g, g_buffers[0], g_compat, b, b_buffers[0], b_compat,
                             lanes, points)  # fmt: skip
            else:
                _write_chunk(first, logit, coupled, out, group)


@jit
def _write_chunk(first, logit, coupled, out, group):
    """The values, lane by lane: as they are if `coupled`, else as the foreground's probability (1 + s) / 2."""
    problems, labels, count = out.shape
    for k in range(problems):
        for n in range(labels):
            lane = k * len(group) + n
            for i in range(min(len(logit), count - first)):
                value = logit[i, lane]
                out[k, n, first + i] = value if coupled else np.float32(0.5) + np.float32(0.5) * value


@dataclass(frozen=True)
class Problem:
    """What a solver needs besides scores and the kernels' weights.

    Attributes:
        gaussian: The kernel in position, d = 2.
        bilateral: That in position and colour, d = 5.
        iterations: >= 0.
        floor: Scores are clipped here from below.
        workspace: For everything that does not outlive the call.
    """

    gaussian: Kernel
    bilateral: Kernel
    iterations: int
    floor: float
    workspace: Workspace

    def two_labels(self, scores: NDArray[np.float32], compats: NDArray[np.float32]) -> NDArray[np.float32]:
        """Solve K independent problems; scores (K, 2, N), {background, foreground}, >= 0, finite.

        Args:
            scores: As said.
            compats: (K, 2) float32, each problem's weights of the two kernels, >= 0.

        Returns:
            (K, N) float32, the foreground's probability.
        """
        problems, _, count = scores.shape
        out = np.empty((problems, count), np.float32)
        for first in range(0, problems, _LANES):
            some = scores[first : first + _LANES]
            c = self._rows("c", _lanes_for(len(some)))
            _ratios(some, np.float32(self.floor), c, (0,) * c.shape[1])
            weights = _padded(compats[first : first + _LANES], c.shape[1])
            self._solve(np.log(c, out=c), weights, out[None, first : first + len(some)], group=None)
        return out

    def many_labels(self, scores: NDArray[np.float32], compats: NDArray[np.float32]) -> NDArray[np.float32]:
        """Solve K independent problems of L labels.

        Args:
            scores: (K, L, N) as above.
            compats: (K, 2) as above.

        Returns:
            (K, L, N) float32, probabilities.
        """
        problems, labels, _ = scores.shape
        out = np.empty(scores.shape, np.float32)
        group = _lanes_for(labels)
        together = max(1, _LANES // group)
        for first in range(0, problems, together):
            some = scores[first : first + together]
            width = _lanes_for(len(some)) * group
            c = self._rows("c", width)
            _clipped(some, np.float32(self.floor), c, group)
            weights = _padded(np.repeat(compats[first : first + together], group, axis=0), width)
            self._solve(np.log(c, out=c), weights, out[first : first + len(some)], group=group)
        return out

    def _rows(self, name: str, width: int) -> NDArray[np.float32]:
        return self.workspace.array(name, (len(self.gaussian.norm), width), np.float32)

    def _solve(
        self, c: NDArray[np.float32], compats: NDArray[np.float32], out: NDArray[np.float32], *, group: int | None
    ) -> None:
        """`group`: the lanes of a problem of several labels; None: each lane is a problem of two."""
        width = c.shape[1]
        sides: list[object] = []
        for name, kernel, compat in zip(("g", "b"), (self.gaussian, self.bilateral), compats.T, strict=True):
            shape = (3, kernel.lattice.neighbours.shape[1], width)
            sides += [kernel.lattice.arrays, compat.copy(), self.workspace.array(name, shape, np.float32)]
        # eight numbers are looked at together
        points = (0,) * max(1, len(_EIGHT) // width)
        lanes = (0,) * width
        coupled = group is not None
        _solve(c, self._rows("value", width), out, self.iterations, coupled, *sides, lanes, (0,) * (group or width),
               points)  # fmt: skip


def _lanes_for(count: int) -> int:
    """Lanes that processors have: 1, 2, 4, or a multiple of 8."""
    return next((width for width in (1, 2, 4) if width >= count), -(-count // 8) * 8)


def _padded(compats: NDArray[np.float32], width: int) -> NDArray[np.float32]:
    """(width, 2): the weights of lanes, 0 in those that hold no problem."""
    padded = np.zeros((width, 2), np.float32)
    padded[: len(compats)] = compats
    return padded


@intrinsic
def _interleave(typingctx, channels, i, room, rows, p, lanes):
    """rows[p + j, k] = channels[k, i + j] for as many j as lanes, a power of two; `room` is a channel's length."""

    def build(a: Arguments) -> None:
        width = a.length(5)
        starts = [a.builder.add(a.place(1), a.place(2, times=k)) for k in range(width)]
        for j, row in enumerate(transpose([a.load(0, start, width) for start in starts])):
            a.store(3, a.place(4, times=width, plus=j * width), row)

    return instructions(types.void(channels, types.intp, types.intp, rows, types.intp, lanes), build)


@jit
def _ratios(scores, floor, c, lanes):
    """c[p, k] = foreground over background score of problem k, 1 where there is no problem or no point."""
    problems, _, count = scores.shape
    chunk = _CHUNK // TOGETHER
    ratios = np.ones((len(lanes), chunk), np.float32)
    for first in range(0, len(c), chunk):
        rows = min(chunk, count - first)
        for k in range(problems):
            background, foreground = scores[k, 0, first : first + rows], scores[k, 1, first : first + rows]
            for p in range(rows):
                above = foreground[p] if foreground[p] > floor else floor
                below = background[p] if background[p] > floor else floor
                ratios[k, p] = above / below
        if rows < chunk:
            ratios[:, rows:] = 1
        for p in range(0, min(chunk, len(c) - first), len(lanes)):
            _interleave(ratios, p, chunk, c, first + p, lanes)


@jit
def _clipped(scores, floor, c, group):
    """c[p, k group + n] = score n of problem k from `floor` up; nearly 0 for no label, 1 for no point or problem."""
    problems, labels, count = scores.shape
    c[count:] = 1
    c[:, problems * group :] = 1
    for first in range(0, count, TOGETHER):
        for k in range(problems):
            for n in range(group):
                for p in range(first, min(first + TOGETHER, count)):
                    c[p, k * group + n] = max(scores[k, n, p], floor) if n < labels else np.float32(1e-37)
