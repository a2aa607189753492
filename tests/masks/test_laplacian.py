"""Matting Laplacians and their system against their definitions and pymatting's own estimators."""

from __future__ import annotations

import math
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse

from pmm_ray.masks.jit import cache_folder
from pmm_ray.masks.laplacian import LEAST_EPSILON, laplacian, pymatting, solve

KINDS = ("closed_form", "knn", "random_walk")


@pytest.mark.parametrize("kind", KINDS)
def test_a_laplacian_is_symmetric_semi_definite_and_constants_cost_nothing(photo, kind):
    image, _ = photo(9, 11)
    matrix = laplacian(image, kind=kind, epsilon=1e-4)
    dense = matrix.toarray()
    assert matrix.shape == (99, 99)
    np.testing.assert_allclose(dense, dense.T, atol=1e-9)
    np.testing.assert_allclose(dense.sum(axis=1), 0, atol=1e-9)
    assert np.linalg.eigvalsh(dense).min() > -1e-8


def test_a_grey_photos_is_semi_definite_down_to_the_least_epsilon():
    grey = np.random.default_rng(0).integers(0, 256, (9, 11, 1), dtype=np.uint8).repeat(3, axis=2)
    matrix = laplacian(grey, kind="closed_form", epsilon=LEAST_EPSILON).toarray()
    assert np.linalg.eigvalsh(matrix).min() > -1e-6


def test_closed_form_is_levins_equation_in_one_window(photo):
    image, epsilon = np.random.default_rng(0).integers(0, 256, (3, 3, 3), dtype=np.uint8), 0.2
    colours = image.reshape(9, 3) / 255
    centred = colours - colours.mean(axis=0)
    spread = centred.T @ centred / 9 + epsilon / 9 * np.eye(3)
    expected = np.eye(9) - (1 + centred @ np.linalg.solve(spread, centred.T)) / 9
    np.testing.assert_allclose(laplacian(image, kind="closed_form", epsilon=epsilon).toarray(), expected, atol=1e-9)


def test_the_search_for_nearest_neighbours_keeps_to_one_thread(photo, monkeypatch):
    import numba

    library, threads = pymatting(), []
    search = library.knn
    monkeypatch.setattr(library, "knn", lambda *a, **k: threads.append(numba.get_num_threads()) or search(*a, **k))
    before = numba.get_num_threads()
    laplacian(photo(8, 9)[0], kind="knn", epsilon=1e-4)
    assert threads == [1, 1] and numba.get_num_threads() == before


def test_the_random_walk_weighs_eight_neighbours_by_their_colours_by_hand():
    image = np.zeros((2, 3, 3), np.uint8)
    image[:, 2] = 255
    weights = -laplacian(image, kind="random_walk", epsilon=1e-4).toarray()
    # pixel 0 has neighbours 1, 3, 4 of its own colour; pixel 1 meets 2 and 5 across the edge, with the least weight
    assert weights[0].round(6).tolist() == [-3, 1, 0, 1, 1, 0]
    assert weights[1].round(6).tolist() == pytest.approx([1, -3.0002, 1e-4, 1, 1, 1e-4], abs=1e-6)


def test_the_random_walk_weighs_a_little_difference_by_its_exponential_by_hand():
    image = np.full((3, 3, 3), 40, np.uint8)
    image[1, 1] = (46, 40, 32)
    weights = -laplacian(image, kind="random_walk", epsilon=1e-4).toarray()
    expected = np.exp(-900 * (6**2 + 8**2) / 255**2)  # 0.25
    np.testing.assert_allclose(np.delete(weights[4], 4), expected, atol=1e-12)
    np.testing.assert_allclose(weights[0], [-2 - expected, 1, 0, 1, expected, 0, 0, 0, 0], atol=1e-12)


def test_knn_counts_how_often_pixels_are_among_each_others_nearest():
    image = np.random.default_rng(0).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    expected = np.zeros((42, 42))
    for count, weight in ((20, 2), (10, 0.1)):
        features = [(*image[y, x] / 255, weight * y / 5, weight * x / 6) for y in range(6) for x in range(7)]
        for i, one in enumerate(features):
            nearest = sorted(range(42), key=lambda j: math.dist(one, features[j]))[:count]
            for j in nearest:
                expected[i, j] -= 1
                expected[j, i] -= 1
    np.fill_diagonal(expected, 0)
    np.fill_diagonal(expected, -expected.sum(axis=1))
    np.testing.assert_allclose(laplacian(image, kind="knn", epsilon=1e-4).toarray(), expected)


def estimated(kind, image, trimap):
    """pymatting's own matte, which holds the known pixels by a weight and divides rows of two kinds by their sums."""
    name = {"closed_form": "cf", "knn": "knn", "random_walk": "rw"}[kind]
    options = {"laplacian_kwargs": {"epsilon": 1e-4}} if kind == "closed_form" else {}
    return getattr(pymatting(), f"estimate_alpha_{name}")(image / 255, trimap, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_the_matte_is_the_one_that_pymatting_estimates(photo, kind):
    image, inside = photo(24, 30)
    trimap = np.full((24, 30), 0.5)
    trimap[:, :8], trimap[:, -6:] = 1, 0
    known, values = (trimap != 0.5).ravel(), (trimap == 1).ravel()[None].astype(float)
    start = np.full(values.shape, 0.5)
    found = solve(laplacian(image, kind=kind, epsilon=1e-4), known, values, start)[0][0].clip(0, 1)
    expected = estimated(kind, image, trimap)
    assert np.abs(found.reshape(24, 30) - expected).mean() < 0.02
    assert ((found.reshape(24, 30) > 0.5) == inside).mean() > 0.98


def test_the_system_is_solved_as_densely_and_shares_add_up_to_one(photo):
    image, _ = photo(8, 10)
    matrix, rng = laplacian(image, kind="closed_form", epsilon=1e-3), np.random.default_rng(0)
    known = rng.random(80) < 0.3
    values = np.eye(3)[rng.integers(0, 3, 80)].T
    found, solved = solve(matrix, known, values, rng.random((3, 80)))
    assert solved.all()
    dense = matrix.toarray()
    inner, outer = dense[np.ix_(~known, ~known)], dense[np.ix_(~known, known)]
    np.testing.assert_allclose(found[:, ~known], np.linalg.solve(inner, -outer @ values[:, known].T).T, atol=2e-3)
    np.testing.assert_array_equal(found[:, known], values[:, known])
    np.testing.assert_allclose(found.sum(axis=0), 1, atol=5e-3)


def test_values_of_nothing_but_zeros_have_zeros_as_their_solution_and_nothing_unknown_needs_none(photo):
    matrix = laplacian(photo(5, 5)[0], kind="random_walk", epsilon=1e-4)
    known = np.arange(25) < 5
    assert not solve(matrix, known, np.zeros((1, 25)), np.ones((1, 25)))[0].any()
    values = np.arange(25.0)[None]
    np.testing.assert_array_equal(solve(matrix, np.full(25, True), values, np.zeros((1, 25)))[0], values)


def test_what_is_tied_to_nothing_known_takes_the_mean_of_its_start():
    # two paths 0-1-2 and 3-4-5, their inner pixels with twice the diagonal
    path = np.array([[1, -1, 0], [-1, 2, -1], [0, -1, 1]])
    matrix = scipy.sparse.csr_matrix(np.kron(np.eye(2), path).astype(float))
    known, values = np.arange(6) == 0, np.array([[0.7, 0, 0, 0, 0, 0]])
    start = np.array([[0, 0.1, 0.9, 0.2, 0.4, 0.6]])
    (found,), solved = solve(matrix, known, values, start)
    assert solved.all()
    np.testing.assert_allclose(found, [0.7] * 3 + [(0.2 + 2 * 0.4 + 0.6) / 4] * 3, atol=1e-3)
    assert not solve(matrix, known, 0 * values, start)[0].any()


def test_a_set_that_too_few_steps_do_not_solve_is_told_and_stays_as_it_began(photo, monkeypatch):
    matrix = laplacian(photo(8, 10)[0], kind="closed_form", epsilon=1e-4)
    known = np.arange(80) % 7 == 0
    values = np.stack([known * (np.arange(80) < 40.0), np.zeros(80)])
    start = np.random.default_rng(0).random((2, 80))
    monkeypatch.setattr("pmm_ray.masks.laplacian._MOST_STEPS", 1)
    found, solved = solve(matrix, known, values, start)
    assert solved.tolist() == [False, True]
    np.testing.assert_array_equal(found[0], np.where(known, values[0], start[0]))
    assert not found[1].any()


def test_there_is_no_other_kind(photo):
    with pytest.raises(ValueError, match="no matting Laplacian 'deep'"):
        laplacian(photo(5, 5)[0], kind="deep", epsilon=1)


def test_the_library_is_compiled_into_our_cache_and_found_there(tmp_path):
    """Not the library, which takes half a minute, but a module that asks numba for a cache as it does."""
    script = (
        "import sys, time; sys.path.insert(0, sys.argv[1])\n"
        "from pmm_ray.masks.jit import kept, one_process_at_a_time\n"
        "with one_process_at_a_time(), kept('pymatting'): import eager\n"
        "print(sum(eager.f.stats.cache_hits.values()), sum(eager.f.stats.cache_misses.values()))"
    )
    (tmp_path / "eager.py").write_text("from numba import njit\n@njit('f8(f8)', cache=True)\ndef f(x): return 2 * x\n")
    said = [
        subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)],
            capture_output=True,
            text=True,
            check=True,
            env={"XDG_CACHE_HOME": str(tmp_path / "home"), "PATH": ""},
            cwd=Path(__file__).parents[2],
        ).stdout
        for _ in range(2)
    ]
    assert said == ["0 1\n", "1 0\n"]
    assert len(list((tmp_path / "home/pmm_ray/pymatting/functions").glob("*.nbi"))) == 1


def test_the_library_is_kept_in_our_cache_and_leaves_torchs_threads_as_many_as_they_were():
    script = (
        "import sys, torch; torch.set_num_threads(1)\n"
        "import numba, numpy as np\n"
        "from pmm_ray.masks.laplacian import laplacian\n"
        "laplacian(np.zeros((4, 4, 3), np.uint8), kind='knn', epsilon=1e-4)\n"
        "torch.ones(9).sum(); print(torch.get_num_threads(), numba.threading_layer())\n"
        "print(sys.modules['pymatting.laplacian.cf_laplacian']._cf_laplacian.stats.cache_path)"
    )
    folder = Path(__file__).parents[2]
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=folder)
    assert found.stdout == f"1 workqueue\n{cache_folder('pymatting')}/functions\n"


def test_one_process_imports_the_library_at_a_time(monkeypatch):
    held = []

    @contextmanager
    def holding():
        held.append("lock")
        yield
        held.append("free")

    monkeypatch.setattr("pmm_ray.masks.jit.one_process_at_a_time", holding)
    monkeypatch.setitem(sys.modules, "pymatting", None)  # what an import of it finds
    with pytest.raises(ImportError):
        pymatting.__wrapped__()
    assert held == ["lock"]
