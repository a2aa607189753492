"""The permutohedral lattice against definitions in plain Python.

The slow oracle needs no ranks and no rounding to multiples. With z = E f / (d + 1), floor(z + theta) takes d + 1 values
while theta runs through [0, 1), and their average is z; their projections along (1, ..., 1), times d + 1, are the
vertices of the lattice's simplex around E f (the Kuhn triangulation). The share of theta is a vertex's weight.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pmm_ray.masks import lattice as engine
from pmm_ray.masks.crf import DenseCRF, crf_params
from pmm_ray.masks.lattice import KeyRangeError, build
from pmm_ray.masks.workspace import Workspace

DIMS = [2, 5, 7]
"""The two kernels' and the largest."""


def padded(points):
    """(N, d) float32 points -> (d, P), zeros from N on."""
    features = np.zeros((points.shape[1], -(-len(points) // 8) * 8), np.float32)
    features[:, : len(points)] = points.T
    return features


def lifted(point):
    """y = E f: column j of E is (1, ..., 1, -(j + 1), 0, ..., 0), of length 1, times sqrt(2 / 3) (d + 1)."""
    sides = len(point) + 1
    y = [0.0] * sides
    for j, f in enumerate(point):
        c = float(f) * math.sqrt(2 / 3) * sides / math.sqrt((j + 1) * (j + 2))
        for i in range(j + 1):
            y[i] += c
        y[j + 1] -= (j + 1) * c
    return y


def slow_simplex(point):
    """[(vertex, weight)] by the remainder 0 .. d of the vertex's coordinates modulo d + 1."""
    sides = len(point) + 1
    z = [y / sides for y in lifted(point)]
    turns = sorted(1 - (v - math.floor(v)) for v in z)
    corners = {}
    for start, end in zip([0.0, *turns], [*turns, 1.0], strict=True):
        at = [math.floor(v + (start + end) / 2) for v in z]
        vertex = tuple(sides * n - sum(at) for n in at)
        corners.setdefault(-sum(at) % sides, [vertex, 0.0])[1] += end - start
    return [tuple(corners.get(r, (None, 0.0))) for r in range(sides)]


def random_points(count, dims, spread, seed=0):
    return np.random.default_rng(seed).uniform(-spread, spread, (count, dims)).astype(np.float32)


def vertex_of_id(lattice, points):
    """Which vertex every id stands for, by the oracle; asserts that ids and vertices are one to one."""
    names = {}
    for p, point in enumerate(points):
        for vertex_id, (vertex, weight) in zip(lattice.vertices[lattice.simplex[p]], slow_simplex(point), strict=True):
            # a face is shared by two simplices, and rounding decides
            if weight > 1e-4:
                assert names.setdefault(int(vertex_id), vertex) == vertex
    assert len(set(names.values())) == len(names)
    return names


@pytest.mark.parametrize("dims", DIMS)
def test_weights_are_shares_that_sum_to_one(dims):
    points = random_points(304, dims, 4)
    weights = build(padded(points), len(points), Workspace()).weights
    assert weights.shape == (304, dims + 1)
    assert weights.min() > -1e-5
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("dims", DIMS)
@pytest.mark.parametrize("spread", [0.5, 4])
def test_simplices_and_weights_are_those_of_the_kuhn_triangulation(dims, spread):
    points = random_points(300, dims, spread)
    lattice = build(padded(points), len(points), Workspace())
    expected = [slow_simplex(point) for point in points]
    np.testing.assert_allclose(lattice.weights[:300], [[w for _, w in simplex] for simplex in expected], atol=1e-5)
    vertex_of_id(lattice, points)
    # equal simplices have equal numbers, and only they
    inside = [p for p in range(300) if min(w for _, w in expected[p]) > 1e-4]
    assert len(inside) > 200
    pairs = {(int(lattice.simplex[p]), tuple(v for v, _ in expected[p])) for p in inside}
    assert len(pairs) == len({number for number, _ in pairs}) == len({simplex for _, simplex in pairs})


@pytest.mark.parametrize("dims", DIMS)
def test_vertices_by_their_weights_give_the_lifted_point_back(dims):
    points = random_points(200, dims, 3)
    lattice = build(padded(points), len(points), Workspace())
    names = vertex_of_id(lattice, points)
    for p, point in enumerate(points):
        corners = zip(lattice.vertices[lattice.simplex[p]].tolist(), lattice.weights[p].tolist(), strict=True)
        back = sum(w * np.array(names.get(v, [0] * (dims + 1))) for v, w in corners)
        np.testing.assert_allclose(back, lifted(point), atol=1e-2 if dims > 5 else 3e-3)


@pytest.mark.parametrize("dims", DIMS)
def test_neighbours_are_one_step_along_a_direction_away(dims):
    # a step: one coordinate by d, every other by -1
    points = random_points(400, dims, 1.2)
    lattice = build(padded(points), len(points), Workspace())
    names = vertex_of_id(lattice, points)
    ids = {vertex: number for number, vertex in names.items()}
    met = 0
    for number, vertex in names.items():
        for j in range(dims + 1):
            step = [dims if i == j else -1 for i in range(dims + 1)]
            for side, sign in ((0, 1), (1, -1)):
                beside = tuple(v + sign * s for v, s in zip(vertex, step, strict=True))
                found = int(lattice.neighbours[j, number, side])
                assert ids.get(beside, found if found not in names else 0) == found
                met += found > 0
    assert met > 10


@pytest.mark.parametrize("dims", DIMS)
def test_neighbours_are_mutual_and_vertex_0_is_nobodys(dims):
    lattice = build(padded(random_points(301, dims, 2)), 301, Workspace())
    count = lattice.neighbours.shape[1]
    assert lattice.vertices.min() == 1
    assert lattice.vertices.max() == count - 1
    for after, before in lattice.neighbours.transpose(0, 2, 1):
        assert after[0] == before[0] == 0
        has = np.flatnonzero(after)
        np.testing.assert_array_equal(before[after[has]], has)
        has = np.flatnonzero(before)
        np.testing.assert_array_equal(after[before[has]], has)
        assert (after[1:] != np.arange(1, count)).all()


@pytest.mark.parametrize("count", [1, 3, 4, 5, 8, 9, 15, 301])
def test_points_beyond_the_last_weigh_nothing_and_change_no_other(count):
    points = random_points(304, 5, 2)
    whole = build(padded(points), 304, Workspace())
    part = build(padded(points[:count]), count, Workspace())
    assert len(part.simplex) == len(part.weights) == -(-count // 8) * 8
    np.testing.assert_array_equal(part.weights[count:], 0)
    np.testing.assert_array_equal(part.weights[:count], whole.weights[:count])
    np.testing.assert_array_equal(part.simplex[:count], whole.simplex[:count])
    assert part.simplex.min() >= 0
    assert part.simplex.max() < len(part.vertices)


def test_a_count_that_is_no_multiple_of_four_brings_the_origins_vertices():
    # as in the reference implementation; here a simplex far away, whose own vertices are 6
    points = np.full((4, 5), 40, np.float32) + random_points(4, 5, 1e-3)
    assert build(padded(points), 4, Workspace()).neighbours.shape[1] == 1 + 6
    assert build(padded(points[:3]), 3, Workspace()).neighbours.shape[1] == 1 + 6 + 6


def test_a_workspace_used_before_changes_nothing():
    used = Workspace()
    build(padded(random_points(900, 5, 9)), 900, used)
    points = random_points(303, 5, 2)
    fresh, again = build(padded(points), 303, Workspace()), build(padded(points), 303, used)
    for a, b in zip(fresh.arrays, again.arrays, strict=True):
        np.testing.assert_array_equal(a, b)


def test_features_of_pixels_are_x_y_and_colour_over_the_widths():
    image = np.random.default_rng(0).integers(0, 256, (3, 5, 3)).astype(np.uint8)
    colour = engine.colour_features(image, sxy=2, srgb=4, workspace=Workspace())
    plane = engine.place_features(3, 5, sxy=2, workspace=Workspace())
    assert colour.shape == (5, 16)
    for y in range(3):
        for x in range(5):
            np.testing.assert_array_equal(colour[:, 5 * y + x], [x / 2, y / 2, *(image[y, x] / 4)])
    np.testing.assert_array_equal(colour[:, 15:], 0)
    np.testing.assert_array_equal(plane, colour[:2])


def key_parts(keys, strides, radices):
    """The digits of mixed-radix numbers; the last place takes what is left."""
    digits = []
    for stride, radix in zip(strides.tolist(), radices, strict=True):
        digits.append(keys // stride % radix)
    assert (keys >= 0).all()
    assert (keys < int(strides[-1]) * radices[-1]).all()
    return np.stack(digits, -1)


@settings(deadline=None, max_examples=150)
@given(
    st.sampled_from(DIMS).flatmap(
        lambda dims: st.lists(st.tuples(st.floats(-2, 4), st.floats(-2, 4)), min_size=dims, max_size=dims)
    ),
    st.integers(0, 2**32 - 1),
)
def test_keys_tell_all_vertices_and_simplices_of_any_box_apart(box, seed):
    """Unpacked, the keys are cells, ranks and vertices again, with room for neighbours beside them: so no two agree."""
    dims = len(box)
    sides = dims + 1
    rng = np.random.default_rng(seed)
    sizes = np.array([[10**a, 10**b] for a, b in box])
    points = rng.uniform(-sizes[:, 0], sizes[:, 1], (48, dims)).astype(np.float32)
    features = padded(points)
    try:
        low, high = engine._cell_bounds(features)
        simplex_strides, vertex_strides = engine._strides(low, high, dims)
    except KeyRangeError:
        with pytest.raises(KeyRangeError):
            build(features, 48, Workspace())
        return
    corners = (0,) * sides
    weights, packed = np.empty((56, sides), np.float32), np.empty(48, np.int64)
    engine._embed(features, low, simplex_strides, weights, packed, corners)
    keys = np.empty((48, sides), np.int64)
    engine._corner_keys(features, np.arange(48, dtype=np.int32), low, vertex_strides, keys, corners)

    spans = [int(h - w) + 1 for w, h in zip(low[:dims], high[:dims], strict=True)]
    cells = key_parts(packed >> 3 * dims, simplex_strides, spans)
    ranks = (packed[:, None] >> 3 * np.arange(dims)) & 7
    assert all(len(set(row)) == dims and max(row) < sides for row in ranks.tolist())
    vertices = key_parts(keys, vertex_strides, [(span + 4) * sides for span in spans])
    # neighbours: -1 or +d in any coordinate
    assert vertices.min() >= 1
    assert all(vertices[..., i].max() + dims < (span + 4) * sides for i, span in enumerate(spans))
    vertices = vertices + (low[:dims] - 2) * sides
    np.testing.assert_array_equal(vertices % sides, np.arange(sides)[:, None].repeat(dims, 1)[None].repeat(48, 0))
    np.testing.assert_array_equal(vertices[:, 0], (cells + low[:dims]) * sides)
    for p, point in enumerate(points):
        # where float32 leaves the simplex in no doubt
        slow = slow_simplex(point)
        if min(w for _, w in slow) > 1e-6 * (1 + np.abs(lifted(point)).max()):
            np.testing.assert_array_equal(vertices[p], [v[:dims] for v, _ in slow])


@pytest.mark.parametrize(
    "narrow",
    [
        {"bilateral_srgb": 0.001},
        {"bilateral_sxy": 1e-4},
        {"gaussian_sxy": 1e-6},
        {"gaussian_sxy": 1e-50},
        {"bilateral_srgb": 1e-50},
        {"bilateral_srgb": 1e-37},
    ],
)
def test_kernels_too_narrow_for_exact_keys_are_refused(narrow):
    image = np.random.default_rng(0).integers(0, 256, (20, 31, 3)).astype(np.uint8)
    crf = DenseCRF(image, params=crf_params("ppg", **narrow))
    for _ in range(2):
        with pytest.raises(ValueError, match="the CRF kernel is too narrow for this image"):
            crf.binary(np.ones((1, 2, 20, 31)))
        with pytest.raises(ValueError, match="the CRF kernel is too narrow for this image"):
            crf.multilabel(np.ones((3, 20, 31)))


def test_kernels_wider_than_float32_see_no_difference_between_pixels():
    image = np.random.default_rng(0).integers(0, 256, (4, 5, 3)).astype(np.uint8)
    wide = crf_params("ppg", bilateral_srgb=1e300, bilateral_sxy=1e300, gaussian_sxy=1e300)
    values = np.random.default_rng(1).random((1, 4, 5))
    np.testing.assert_allclose(
        DenseCRF(image, params=wide).filter(values, normalised=True), np.full((1, 4, 5), values.mean()), rtol=1e-5
    )
