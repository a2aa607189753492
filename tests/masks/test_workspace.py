from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from pmm_ray.masks import workspace
from pmm_ray.masks.crf import DenseCRF
from pmm_ray.masks.workspace import Workspace, borrow, give_back


@pytest.fixture
def nothing_idle(monkeypatch):
    """No workspace lies ready, and what is given back meanwhile goes with the test."""
    monkeypatch.setattr(workspace, "_idle", type(workspace._idle)(maxlen=4))


def test_a_name_asked_again_has_the_same_memory():
    work = Workspace()
    first = work.array("c", (6, 4), np.float32)
    held = work.size
    assert first.shape == (6, 4)
    assert first.dtype == np.float32
    assert first.flags.c_contiguous
    again = work.array("c", (3, 4), np.int64)
    assert again.shape == (3, 4)
    assert again.dtype == np.int64
    assert np.shares_memory(first, again)
    assert work.size == held


def test_a_larger_array_grows_its_memory():
    work = Workspace()
    work.array("c", (10,), np.float32)
    larger = work.array("c", (1000,), np.float32)
    larger[:] = np.arange(1000)
    assert work.size >= larger.nbytes
    assert np.shares_memory(larger, work.array("c", (1000,), np.float32))


def test_two_names_never_share_memory():
    work = Workspace()
    assert not np.shares_memory(work.array("a", (100,), np.uint8), work.array("b", (100,), np.uint8))


@pytest.mark.parametrize("shape", [(0,), (3, 0, 2)])
def test_an_array_may_be_empty(shape):
    assert Workspace().array("none", shape, np.int32).shape == shape


def test_a_workspace_given_back_is_borrowed_again_and_only_once(nothing_idle):
    work = borrow()
    give_back(work)
    assert borrow() is work
    assert borrow() is not work


def test_too_large_a_workspace_is_not_kept(nothing_idle, monkeypatch):
    monkeypatch.setattr(workspace, "_KEPT_BYTES", 1000)
    small, large = borrow(), borrow()
    small.array("a", (100,), np.uint8)
    large.array("a", (1001,), np.uint8)
    give_back(small)
    give_back(large)
    assert borrow() is small
    assert borrow() is not large


def test_few_workspaces_are_kept(nothing_idle):
    for work in [borrow() for _ in range(20)]:
        give_back(work)
    assert len(workspace._idle) == 4


def problem(seed, photo):
    image, _ = photo(14 + seed, 19, seed)
    return image, np.random.default_rng(seed).random((3, 2, 14 + seed, 19))


def test_a_crf_gives_its_workspace_back_when_it_is_collected(nothing_idle, photo):
    image, scores = problem(0, photo)
    crf = DenseCRF(image)
    expected = crf.binary(scores)
    lent = {id(work) for work in workspace._idle}
    own = crf._engine._workspace
    assert id(own) not in lent
    del crf
    gc.collect()
    assert any(work is own for work in workspace._idle)
    # what it computed is its user's
    before = expected.copy()
    DenseCRF(image[::-1]).binary(scores)
    np.testing.assert_array_equal(expected, before)


def test_crfs_that_live_at_once_do_not_disturb_each_other(photo):
    problems = [problem(seed, photo) for seed in range(3)]
    alone = [DenseCRF(image).binary(scores) for image, scores in problems]
    many = [DenseCRF(image).multilabel(scores[0]) for image, scores in problems]
    filtered = [DenseCRF(image).filter(scores[0]) for image, scores in problems]
    crfs = [DenseCRF(image) for image, _ in problems]
    assert len({id(crf._engine._workspace) for crf in crfs}) == 3
    for _ in range(2):
        for crf, (_, scores), expected in zip(crfs, problems, alone, strict=True):
            np.testing.assert_array_equal(crf.binary(scores), expected)
        for crf, (_, scores), expected in zip(crfs, problems, filtered, strict=True):
            np.testing.assert_array_equal(crf.filter(scores[0]), expected)
        for crf, (_, scores), expected in zip(crfs, problems, many, strict=True):
            np.testing.assert_array_equal(crf.multilabel(scores[0]), expected)


def test_one_crf_serves_any_order_of_questions(photo):
    image, scores = problem(1, photo)
    crf = DenseCRF(image)
    first = crf.filter(scores[:, 0]), crf.binary(scores[:1]), crf.multilabel(scores[:, 0]), crf.binary(scores)
    again = crf.binary(scores), crf.multilabel(scores[:, 0]), crf.binary(scores[:1]), crf.filter(scores[:, 0])
    for a, b in zip(first, again[::-1], strict=True):
        np.testing.assert_array_equal(a, b)


def test_threads_with_crfs_of_their_own_get_what_one_thread_gets(photo):
    problems = [problem(seed % 4, photo) for seed in range(24)]

    def solve(each):
        image, scores = each
        crf = DenseCRF(image)
        return crf.binary(scores), crf.multilabel(scores[:, 1])

    one = [solve(each) for each in problems]
    with ThreadPoolExecutor(4) as pool:
        several = list(pool.map(solve, problems))
    for a, b in zip(one, several, strict=True):
        np.testing.assert_array_equal(a[0], b[0])
        np.testing.assert_array_equal(a[1], b[1])
