"""The permutohedral lattice: Gaussian filtering of values at N points in d dimensions (Adams, Baek, Davis 2010).

A filter is `slice(blur(splat(values)))`. Points are lifted onto the hyperplane of d + 1 coordinates that sum to 0,
where the lattice's simplices tile space; each point lies in one simplex and shares its value among the d + 1 vertices
by barycentric weights (splat); values spread along the d + 1 lattice directions with weights 1/2, 1, 1/2 (blur); each
point reads its vertices with the same weights (slice).

What depends on the points alone is computed once, here. Vertices are few (some ten thousand for a photo) and simplices
not many more, so a point stores which simplex it lies in, and only distinct simplices look their vertices up.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from pmm_ray.masks.jit import jit
from pmm_ray.masks.vectors import I32, I64, Arguments, Vector, instructions, prefetch, transpose
from pmm_ray.masks.workspace import Workspace

TOGETHER = 8
"""Points that go through the geometry at a time, one a lane."""
_AHEAD = 12
_ROUND = 12582912.0
"""1.5 * 2^23: adding and subtracting it rounds a float32 below 2^22 to the nearest integer, ties to even."""
_RANK_BITS = 3
"""Of a coordinate's rank in a packed simplex; enough for 7 dimensions."""


_NARROW = "the CRF kernel is too narrow for this image, raise its sxy or srgb"


class KeyRangeError(ValueError):
    """The lattice is too fine for exact 64-bit keys."""


@dataclass(frozen=True)
class Lattice:
    """N points on a lattice of M vertices and S simplices.

    Attributes:
        simplex: (P,) int32, the simplex a point lies in; P is N rounded up to a multiple of `TOGETHER`.
        weights: (P, d + 1) float32, its barycentric weights; 0 from row N on.
        vertices: (S, d + 1) int32, vertex ids 1..M of a simplex, in the order of the weights.
        neighbours: (d + 1, M + 1, 2) int32, the two vertices beside each vertex in each direction; 0, a vertex whose
            value is always 0, where there is none. Row 0 belongs to that vertex.
    """

    simplex: NDArray[np.int32]
    weights: NDArray[np.float32]
    vertices: NDArray[np.int32]
    neighbours: NDArray[np.int32]

    @property
    def arrays(self) -> tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.int32], NDArray[np.int32]]:
        """All of it, for compiled loops."""
        return self.simplex, self.weights, self.vertices, self.neighbours

    def copy(self) -> Lattice:
        """One that no workspace holds."""
        return Lattice(self.simplex.copy(), self.weights.copy(), self.vertices.copy(), self.neighbours.copy())

    @property
    def alpha(self) -> float:
        """The factor that makes blurring preserve sums of a constant, `1 / (1 + 2^-d)`."""
        return float(np.float32(1 / (1 + 2.0 ** -(self.weights.shape[1] - 1))))


# Widths beyond float32 make features of 0, or infinite ones, which `build` refuses.
@np.errstate(all="ignore")
def place_features(height: int, width: int, *, sxy: float, workspace: Workspace) -> NDArray[np.float32]:
    """Features of all pixels, row by row, for the kernel in position: x / sxy, y / sxy; padded as `build` asks."""
    features = workspace.array("features", (2, _room(height * width)), np.float32)
    _place(features, height, width, np.float32(sxy))
    return features


@np.errstate(all="ignore")
def colour_features(image: NDArray[np.uint8], *, sxy: float, srgb: float, workspace: Workspace) -> NDArray[np.float32]:
    """Features for the bilateral kernel: x / sxy, y / sxy, r / srgb, g / srgb, b / srgb."""
    height, width, _ = image.shape
    features = workspace.array("features", (5, _room(height * width)), np.float32)
    _place(features, height, width, np.float32(sxy))
    shades = np.arange(256, dtype=np.float32) / np.float32(srgb)
    _colour(features, image.reshape(-1, 3), shades)
    return features


def _room(count: int) -> int:
    """`count` rounded up to whole vectors."""
    return -(-count // TOGETHER) * TOGETHER


@jit
def _place(features, height, width, sxy):
    features[:, height * width :] = 0
    for y in range(height):
        for x in range(width):
            features[0, y * width + x] = np.float32(x) / sxy
            features[1, y * width + x] = np.float32(y) / sxy


@jit
def _colour(features, pixels, shades):
    for channel in range(3):
        for p in range(len(pixels)):
            features[2 + channel, p] = shades[pixels[p, channel]]


def build(features: NDArray[np.float32], count: int, workspace: Workspace) -> Lattice:
    """Place points on the lattice.

    Args:
        features: (d, P) float32, 1 <= d <= 7, already divided by the kernel's widths; P is `count` rounded up to a
            multiple of `TOGETHER`, and the columns from `count` on are 0.
        count: N >= 1.
        workspace: Holds the lattice, which is valid until another is built there.

    Raises:
        KeyRangeError: The points spread so far that vertices cannot be told apart by 64-bit keys.
    """
    dims, room = features.shape
    corners = (0,) * (dims + 1)
    low, high = _cell_bounds(features)
    simplex_strides, vertex_strides = _strides(low, high, dims)
    # Rows more than points: vectors are stored over the end of a row.
    weights = workspace.array("weights", (room + TOGETHER, dims + 1), np.float32)
    packed = workspace.array("packed", (room,), np.int64)
    _embed(features, low, simplex_strides, weights, packed, corners)
    # The reference implementation takes points in fours and fills the last four up with the origin, whose vertices then
    # take part in the blur.
    packed = packed[: -(-count // 4) * 4]
    simplex = workspace.array("simplex", (room,), np.int32)
    firsts = _distinct(packed, simplex, expected=count // 3, workspace=workspace).firsts
    simplex[len(packed) :] = 0
    weights[count:] = 0
    corner_keys = workspace.array("keys", (_room(len(firsts)), dims + 1), np.int64)
    _corner_keys(features, firsts, low, vertex_strides, corner_keys, corners)
    corner_keys = corner_keys[: len(firsts)].ravel()
    vertices = workspace.array("vertices", corner_keys.shape, np.int32)
    found = _distinct(corner_keys, vertices, expected=count // 6, workspace=workspace)
    # vertex 0 is the one that stands for none
    vertices += 1
    neighbours = workspace.array("neighbours", (dims + 1, len(found.keys) + 1, 2), np.int32)
    _neighbours(found.keys, found.table, vertex_strides, neighbours)
    return Lattice(simplex, weights[:room], vertices.reshape(-1, dims + 1), neighbours)


# Geometry: Python over vectors of points, run while compiling.


def _scale(dims: int) -> list[float]:
    """What each feature is multiplied by before it is lifted: in double, then float32, as the reference computes it."""
    width = math.sqrt(2.0 / 3.0) * (dims + 1)
    return [float(np.float32(1.0 / math.sqrt(float((i + 2) * (i + 1))) * width)) for i in range(dims)]


def _lift(features: list[Vector]) -> list[Vector]:
    """y = E f, with E as in Adams et al., p. 5, scaled by the blur's expected width: d + 1 coordinates of sum 0."""
    scale = _scale(len(features))
    lifted = []
    total = features[0].constant(0.0)
    for j in range(len(features), 0, -1):
        c = features[j - 1] * scale[j - 1]
        lifted.append(total - c * float(j))
        total = total + c
    return [total, *reversed(lifted)]


def _enclosing_simplex(lifted: list[Vector]) -> tuple[list[Vector], list[Vector], list[Vector]]:
    """Which simplex y lies in (Adams et al., p. 9).

    Returns:
        Per coordinate: the nearest vertex of remainder 0, in units of d + 1 (whole float32 numbers); the rank of y's
        distance from it, 0 for the largest (int32); that distance, in units of d + 1.
    """
    corners = len(lifted)
    side = float(corners)
    inverse = float(np.float32(1) / np.float32(corners))
    cells = [(y * inverse + _ROUND) - _ROUND for y in lifted]
    total = cells[0]
    for cell in cells[1:]:
        total = total + cell
    distances = [y - cell * side for y, cell in zip(lifted, cells, strict=True)]
    excess = total.to(I32)
    ranks = [excess] * corners
    for i in range(corners):
        for j in range(i + 1, corners):
            less = distances[i] < distances[j]
            ranks[i] = ranks[i].plus_if(less, 1)
            ranks[j] = ranks[j].choose(less, ranks[j] + 1)
    # The nearest multiples need not sum to 0: move the coordinates that lost, or won, most in the rounding.
    for i in range(corners):
        over, under = ranks[i] > corners - 1, ranks[i] < 0
        ranks[i] = ranks[i].plus_if(over, -corners).plus_if(under, corners)
        cells[i] = cells[i].plus_if(over, -1.0).plus_if(under, 1.0)
        distances[i] = distances[i].plus_if(over, side).plus_if(under, -side)
    return cells, ranks, [distance * inverse for distance in distances]


def _barycentric(distances: list[Vector]) -> list[Vector]:
    """Weights of the d + 1 vertices of remainder 0 .. d: differences of the sorted distances (Adams et al., p. 10)."""
    falling = list(distances)
    last = len(falling) - 1
    for i in range(last):
        for j in range(last - i):
            a, b = falling[j], falling[j + 1]
            falling[j], falling[j + 1] = b.choose(a < b, a), a.choose(a < b, b)
    weights = [falling[last] + (falling[0].constant(1.0) - falling[0])]
    return weights + [falling[last - r] - falling[last - r + 1] for r in range(1, last + 1)]


def _columns(a: Arguments, dims: int) -> list[Vector]:
    """The columns that start at argument 1 in argument 0, features (d, argument 2)."""
    starts = [a.builder.add(a.place(1), a.place(2, times=i)) for i in range(dims)]
    return [a.load(0, start, TOGETHER) for start in starts]


@intrinsic
def _embed_some(typingctx, features, start, room, low, strides, weights, packed, corners):
    """Barycentric weights and packed simplices of the columns start .. start + 7."""

    def build(a: Arguments) -> None:
        sides = a.length(7)
        cells, ranks, distances = _enclosing_simplex(_lift(_columns(a, sides - 1)))
        key, rank_key = ranks[0].to(I64).constant(0), ranks[0].constant(0)
        for i in range(sides - 1):
            place = cells[i].to(I32).to(I64) - a.spread(3, I64(i), TOGETHER)
            key = key + place * a.spread(4, I64(i), TOGETHER)
            rank_key = rank_key + (ranks[i] << _RANK_BITS * i)
        a.store(6, a.place(1), (key << _RANK_BITS * (sides - 1)) + rank_key.to(I64))
        columns = _barycentric(distances)
        rows = transpose(columns + [columns[0].constant(0.0)] * (TOGETHER - sides))
        for k, row in enumerate(rows):
            # too long a row; the next overwrites its end
            a.store(5, a.place(1, times=sides, plus=k * sides), row.reorder(range(min(sides + 2, TOGETHER))))

    signature = types.void(features, types.intp, types.intp, low, strides, weights, packed, corners)
    return instructions(signature, build)


@intrinsic
def _corner_keys_some(typingctx, features, start, room, low, strides, keys, first, corners):
    """Packed keys, from row `first` on, of the vertices of the simplices of the columns start .. start + 7."""

    def build(a: Arguments) -> None:
        sides = a.length(7)
        dims = sides - 1
        cells, ranks, _ = _enclosing_simplex(_lift(_columns(a, dims)))
        strides = [a.spread(4, I64(i), TOGETHER) for i in range(dims)]
        home = step = strides[0].constant(0)
        for i in range(dims):
            # two cells of room below, for neighbours
            place = (cells[i].to(I32).to(I64) - a.spread(3, I64(i), TOGETHER) + 2) * sides
            home, step = home + place * strides[i], step + strides[i]
        columns = []
        for r in range(sides):
            # canonical simplex: every coordinate r up, but the r highest-ranked ones r - (d + 1)
            key = home + step * r
            for i in range(dims):
                key = (key - strides[i] * sides).choose(ranks[i] > dims - r, key)
            columns.append(key)
        for k, row in enumerate(transpose(columns + [home] * (TOGETHER - sides))):
            a.store(5, a.place(6, times=sides, plus=k * sides), row.reorder(range(sides)))

    signature = types.void(features, types.intp, types.intp, low, strides, keys, types.intp, corners)
    return instructions(signature, build)


@jit
def _embed(features, low, strides, weights, packed, corners):
    """Barycentric weights of all points, and the packed keys of their simplices."""
    for start in range(0, features.shape[1], TOGETHER):
        _embed_some(features, start, features.shape[1], low, strides, weights, packed, corners)


@jit
def _corner_keys(features, points, low, strides, keys, corners):
    """Packed keys (S, d + 1) of the vertices of the simplices that some points lie in, in the order of weights."""
    some = np.zeros((features.shape[0], TOGETHER), np.float32)
    for start in range(0, len(points), TOGETHER):
        for k in range(min(TOGETHER, len(points) - start)):
            for i in range(features.shape[0]):
                some[i, k] = features[i, points[start + k]]
        _corner_keys_some(some, 0, TOGETHER, low, strides, keys, start, corners)


# Keys: whole numbers that tell simplices and vertices apart exactly.


def _cell_bounds(features: NDArray[np.float32]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Bounds of every lifted coordinate's cell over the features' bounding box, which always holds the origin.

    Two units of slack cover rounding and bringing a point back onto the plane.
    """
    dims = len(features)
    scale = np.array(_scale(dims))
    least = np.minimum(features.min(axis=1), 0).astype(np.float64) * scale
    most = np.maximum(features.max(axis=1), 0).astype(np.float64) * scale
    low, high = np.empty(dims + 1), np.empty(dims + 1)
    for i in range(dims + 1):
        # y_i = sum_{j >= i} c_j - i c_{i - 1}, with c = scale * feature
        low[i], high[i] = least[i:].sum(), most[i:].sum()
        if i:
            low[i] -= i * most[i - 1]
            high[i] -= i * least[i - 1]
    low, high = np.floor(low / (dims + 1)) - 2, np.ceil(high / (dims + 1)) + 2
    if not (np.isfinite(low).all() and np.isfinite(high).all() and max(-low.min(), high.max()) * (dims + 1) < 2**21):
        raise KeyRangeError(f"{_NARROW}: lattice coordinates leave float32's integers")
    return low.astype(np.int64), high.astype(np.int64)


def _strides(low: NDArray[np.int64], high: NDArray[np.int64], dims: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Mixed-radix packing: which multiple of each coordinate makes a unique 64-bit key. The last coordinate is implied.

    A simplex is its vertex of remainder 0 in units of d + 1, and the ranks of the coordinates. A vertex has d + 1 times
    as many places per coordinate, and neighbours up to d away.
    """
    simplex, vertex = [], []
    place = 1
    for i in range(dims):
        simplex.append(place)
        place *= int(high[i] - low[i]) + 1
    if place << _RANK_BITS * dims >= 2**63:
        raise KeyRangeError(f"{_NARROW}: simplices do not fit 64-bit keys")
    place = 1
    for i in range(dims):
        vertex.append(place)
        place *= (int(high[i] - low[i]) + 5) * (dims + 1)
    if place >= 2**63:
        raise KeyRangeError(f"{_NARROW}: vertices do not fit 64-bit keys")
    return np.array(simplex, np.int64), np.array(vertex, np.int64)


@dataclass(frozen=True)
class _Distinct:
    """Different keys in order of appearance, where each came first, and the hash table of their numbers."""

    keys: NDArray[np.int64]
    firsts: NDArray[np.int32]
    table: NDArray[np.int32]


def _distinct(
    packed: NDArray[np.int64], numbers: NDArray[np.int32], *, expected: int, workspace: Workspace
) -> _Distinct:
    """Number the keys 0, 1, ... in order of appearance."""
    bits = max(4, (2 * expected).bit_length())
    while True:
        most = min(1 << (bits - 1), len(packed))
        keys, firsts = workspace.array("different", (most,), np.int64), workspace.array("firsts", (most,), np.int32)
        table = workspace.array("table", (1 << bits,), np.int32)
        table[:] = -1
        found = _number(packed, numbers, keys, firsts, table)
        if found >= 0:
            return _Distinct(keys[:found], firsts[:found], table)
        bits += 1


@jit
def _shift(table):
    """How far to shift a 64-bit product so that a row of the table is left."""
    shift, rows = 64, len(table)
    while rows > 1:
        shift, rows = shift - 1, rows >> 1
    return shift


@jit
def _slot(key, shift):
    """Table row of a key: the top bits of a product with 2^64 over the golden ratio (Knuth, vol. 3, 6.4)."""
    return np.int64((np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(shift))


@jit
def _number(packed, numbers, keys, firsts, table):
    """Number the keys and fill the table, which holds numbers alone: rows that are near in the image share cache lines.

    Returns how many there are, or -1 where they would fill more than half of the table (to grow it here would slow the
    loop).
    """
    mask, shift = len(table) - 1, _shift(table)
    found = 0
    last_key, last_number = np.int64(-1), np.int32(0)
    for p in range(len(packed)):
        if p + _AHEAD < len(packed):
            prefetch(table, _slot(packed[p + _AHEAD], shift))
        key = packed[p]
        if key != last_key:
            at = _slot(key, shift)
            number = table[at]
            while number >= 0 and keys[number] != key:
                at = (at + 1) & mask
                number = table[at]
            if number < 0:
                if found == len(keys):
                    return -1
                number = np.int32(found)
                table[at], keys[found], firsts[found] = number, key, p
                found += 1
            last_key, last_number = key, number
        numbers[p] = last_number
    return found


@jit
def _neighbours(keys, table, vertex_strides, result):
    """The two vertices beside each vertex along each of the d + 1 lattice directions; vertices count from 1."""
    corners, count = len(result), len(keys)
    mask, shift = len(table) - 1, _shift(table)
    all_down = -vertex_strides.sum()
    result[:] = 0
    for j in range(corners):
        # One step: coordinate j by d, every other by -1, so that the sum stays 0.
        step = all_down + (vertex_strides[j] * corners if j < corners - 1 else np.int64(0))
        for i in range(count):
            if i + _AHEAD < count:
                prefetch(table, _slot(keys[i + _AHEAD] + step, shift))
            key = keys[i] + step
            at = _slot(key, shift)
            number = table[at]
            while number >= 0 and keys[number] != key:
                at = (at + 1) & mask
                number = table[at]
            # without a branch: vertex 0 takes what has no neighbour
            result[j, i + 1, 0] = number + 1
            result[j, number + 1, 1] = i + 1
        result[j, 0, 1] = 0
