from __future__ import annotations

import numpy as np
import pytest

from pmm_ray.search.choice import by_few, counts_of, mious, rank_correlation


def one_photo(hits: int, misses: int) -> np.ndarray:
    """Two classes: the background always right, the other hit and missed (called background) so often."""
    return np.array([[100, 0, 0], [misses, hits, 0]])


def test_miou_of_sums_hand_worked():
    counts = np.stack([one_photo(10, 0), one_photo(0, 10)])
    # Together: background 200 / 210, the class 10 / 20.
    assert mious(counts.sum(axis=0)) == pytest.approx((200 / 210 + 0.5) / 2)
    np.testing.assert_allclose(mious(counts), [1, (100 / 110) / 2])


def test_sparse_tables_become_the_same_counts_and_photos_without_truth_are_left_out():
    names = ["b", "a", "c"]
    tables = [
        {"name": names, "truth": [[1], None, [0, 1]], "predicted": [[2], None, [0, 1]], "pixels": [[7], None, [5, 6]]},
        {"name": names, "truth": [[1], None, [0, 1]], "predicted": [[1], None, [1, 1]], "pixels": [[7], None, [5, 6]]},
    ]
    counts = counts_of(tables, num_classes=2, seed=0)
    np.testing.assert_array_equal(
        counts, [[[[0, 0, 0], [0, 0, 7]], [[5, 0, 0], [0, 6, 0]]], [[[0, 0, 0], [0, 7, 0]], [[0, 5, 0], [0, 6, 0]]]]
    )


def test_photos_are_told_by_their_names_in_whatever_order_a_table_has_them():
    one = {"name": ["a", "b"], "truth": [[0], [1]], "predicted": [[0], [1]], "pixels": [[5], [7]]}
    turned = {column: values[::-1] for column, values in one.items()}
    counts = counts_of([one, turned], num_classes=2, seed=0)
    np.testing.assert_array_equal(counts[0], counts[1])


def test_a_setting_that_is_better_on_every_photo_is_chosen_by_any_few():
    counts = np.stack([[one_photo(10 - worse, worse)] * 30 for worse in (4, 0, 7)])
    full = mious(counts.sum(axis=1))
    choice = by_few(counts, full, photos=3, draws=20, seed=0)
    assert set(choice.scores) == {full[1]}
    assert choice.rank == pytest.approx(1)


def test_few_photos_choose_worse_than_many_where_photos_differ():
    rng = np.random.default_rng(0)
    # Settings of a true quality, and photos that hide it behind noise.
    hits = np.clip(np.linspace(40, 60, 12)[:, None] + rng.normal(0, 20, (12, 200)), 0, 100).round().astype(int)
    counts = np.array([[one_photo(h, 100 - h) for h in row] for row in hits])
    full = mious(counts.sum(axis=1))
    few, many = (by_few(counts, full, photos=n, draws=50, seed=1) for n in (2, 100))
    assert np.mean(few.scores) < np.mean(many.scores) <= full.max()
    assert few.rank < many.rank


def test_rank_correlation_hand_worked():
    a = np.array([1.0, 2, 3, 4])
    assert rank_correlation(a, a**3) == pytest.approx(1)
    assert rank_correlation(a, -a) == pytest.approx(-1)
    # ranks 1 2 3 4 and 2 1 4 3: 1 - 6 * 4 / (4 * 15) = 0.6
    assert rank_correlation(a, np.array([0.2, 0.1, 0.4, 0.3])) == pytest.approx(0.6)
    assert rank_correlation(a, np.ones(4)) == 0
