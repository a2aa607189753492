from __future__ import annotations

import itertools

import pytest

from pmm_ray.config import Config
from pmm_ray.search.proposals import proposer
from pmm_ray.search.space import Dimension, Space, parse
from pmm_ray.settings import build

SPACE = {
    "masks.s": {"uniform": [0, 0.6]},
    "masks.alpha": {"loguniform": [0.5, 32]},
    "masks.maker": {"choice": ["ppg", "baseline"]},
    "masks.crf.iterations": {"int": [1, 3]},
}
MATTING = build({"masks": {"maker": "matting"}})
FIRST = {"masks.s": 0.3, "masks.alpha": 11.0, "masks.maker": "ppg", "masks.crf.iterations": 2}


def space(**only: object) -> Space:
    return parse(only or SPACE, Config(), trial="masks")


def drawn(name: str, count: int, *, seed: int = 0) -> list[dict]:
    source = proposer(name, space(), seed=seed, first=FIRST)
    return [source.ask() for _ in range(count)]


@pytest.mark.parametrize("name", ["random", "quasi_random", "optuna"])
def test_the_first_is_the_given_one_and_all_lie_in_the_space(name):
    settings = drawn(name, 30)
    assert settings[0] == FIRST
    for values in settings:
        assert list(values) == list(SPACE)
        assert 0 <= values["masks.s"] <= 0.6
        assert 0.5 <= values["masks.alpha"] <= 32
        assert values["masks.maker"] in ("ppg", "baseline")
        assert values["masks.crf.iterations"] in (1, 2, 3)
    assert len({values["masks.s"] for values in settings}) > 25
    assert {values["masks.maker"] for values in settings} == {"ppg", "baseline"}


@pytest.mark.parametrize("name", ["random", "quasi_random", "optuna"])
def test_a_seed_repeats_them_and_another_does_not(name):
    assert drawn(name, 8, seed=1) == drawn(name, 8, seed=1)
    assert drawn(name, 8, seed=1)[1:] != drawn(name, 8, seed=2)[1:]


@pytest.mark.parametrize("name", ["random", "quasi_random"])
def test_more_settings_begin_with_the_same_ones(name):
    assert drawn(name, 20)[:5] == drawn(name, 5)


def test_quasi_random_points_leave_no_large_hole():
    # 64 Sobol points: every eighth of a dimension holds 8; by chance alone some eighth holds far fewer.
    settings = drawn("quasi_random", 65)[1:]
    counts = [sum(low <= values["masks.s"] / 0.6 * 8 < low + 1 for values in settings) for low in range(8)]
    assert min(counts) >= 6


def test_a_logarithmic_range_is_even_in_the_logarithm():
    alphas = [values["masks.alpha"] for values in drawn("quasi_random", 65)[1:]]
    # 0.5 .. 4 and 4 .. 32 are three octaves each
    assert 28 <= sum(alpha < 4 for alpha in alphas) <= 36


def test_a_list_has_nothing_twice_and_an_end():
    few = {"masks.maker": {"choice": ["ppg", "baseline", "threshold"]}}
    for name in ("grid", "random", "quasi_random"):
        source = proposer(name, space(**few), seed=0, first={"masks.maker": "baseline"})
        found = list(itertools.takewhile(lambda values: values is not None, (source.ask() for _ in range(10))))
        assert found[0] == {"masks.maker": "baseline"}
        assert sorted(values["masks.maker"] for values in found) == ["baseline", "ppg", "threshold"]


@pytest.mark.parametrize("values", [{"grid": [10, 11, 12]}, {"int": [10, 12]}])
def test_a_number_is_one_value_with_a_point_or_without(values):
    found = space(**{"masks.alpha": values})
    for name in ("grid", "random", "quasi_random"):
        source = proposer(name, found, seed=0, first=found.own)
        alphas = [values["masks.alpha"] for values in itertools.takewhile(bool, iter(source.ask, None))]
        assert sorted(map(repr, alphas)) == ["10.0", "11.0", "12.0"]
    source = proposer("optuna", found, seed=0, first=found.own)
    source.tell(found.own, 0.5)
    assert {repr(source.ask()["masks.alpha"]) for _ in range(20)} == {"10.0", "11.0", "12.0"}


@pytest.mark.parametrize("name", ["grid", "random", "quasi_random", "optuna"])
def test_no_values_are_proposed_that_do_not_go_together(name):
    kind = "grid" if name == "grid" else "uniform"
    ends = {"masks.trimap.high": {kind: [0.1, 0.6]}, "masks.trimap.low": {kind: [0.1, 0.6]}}
    source = proposer(name, parse(ends, MATTING, trial="masks"), seed=0, first=dict.fromkeys(ends, 0.2))
    found = list(itertools.takewhile(lambda values: values is not None, (source.ask() for _ in range(30))))
    assert len(found) == (4 if name == "grid" else 30)
    assert all(values["masks.trimap.low"] <= values["masks.trimap.high"] for values in found)


@pytest.mark.parametrize("name", ["random", "quasi_random", "optuna"])
def test_where_chance_finds_nothing_that_goes_together_there_is_an_end(name):
    ranges = (Dimension("masks.trimap.high", "uniform", (0.1, 0.6)), Dimension("masks.trimap.low", "uniform", (0.7, 1)))
    source = proposer(name, Space(ranges, MATTING), seed=0, first={"masks.trimap.high": 0.6, "masks.trimap.low": 0.6})
    assert source.ask() is not None and source.ask() is None


def test_optuna_goes_where_the_scores_are_better():
    # The best is at s = 0.5, whatever else; by chance alone a fifth would come within 0.06 of it.
    source = proposer("optuna", space(), seed=0, first=FIRST)
    late = []
    for number in range(60):
        values = source.ask()
        source.tell(values, 1 - abs(values["masks.s"] - 0.5))
        if number >= 30:
            late.append(abs(values["masks.s"] - 0.5) < 0.06)
    assert sum(late) > 15


def test_optuna_learns_from_an_earlier_run():
    def told(best: float) -> list[float]:
        source = proposer("optuna", space(), seed=0, first=FIRST)
        for values in drawn("random", 40):
            source.tell(values, 1 - abs(values["masks.s"] - best))
        source.ask()
        return [source.ask()["masks.s"] for _ in range(8)]

    assert sum(told(0.1)) / 8 < 0.25
    assert sum(told(0.55)) / 8 > 0.4


def test_optuna_bears_failures_and_settings_outside_its_space():
    source = proposer("optuna", space(), seed=0, first=FIRST | {"masks.alpha": 100.0})
    for _ in range(20):
        source.tell(source.ask(), None)
    source.tell(FIRST | {"masks.alpha": 100.0}, 0.9)
    assert source.ask()["masks.alpha"] <= 32


def test_numbers_have_four_digits():
    for name in ("random", "quasi_random", "optuna"):
        for values in drawn(name, 10):
            assert values["masks.alpha"] == float(f"{values['masks.alpha']:.4g}")
