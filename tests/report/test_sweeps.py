"""The figures of merit of a sweep, and its pictures."""

import math
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pmm_ray.report import canvas
from pmm_ray.report.heat_map import heat_map
from pmm_ray.report.scales import scale_of
from pmm_ray.report.sweep_figures import history, importance_bars, slices
from pmm_ray.report.sweeps import Tried, best, best_against_default, importance, written


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were written, as matplotlib holds them."""
    figures = []
    save = canvas.save

    def keep(made, path, *, legend=False):
        figures.append(made)
        save(made, path, legend=legend)

    for module in ("heat_map", "sweep_figures"):
        monkeypatch.setattr(f"pmm_ray.report.{module}.save", keep)
    return figures


def is_picture(path: Path) -> bool:
    with Image.open(path) as image:
        image.load()
        return image.format == "PNG" and min(image.size) > 100


def legend(figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def random_settings(count: int, score) -> list[Tried]:
    draw = random.Random(0)
    settings = (
        {"s": draw.uniform(0.05, 1), "alpha": 0.5 * 64 ** draw.random(), "maker": draw.choice(["ppg", "baseline"])}
        for _ in range(count)
    )
    return [Tried(setting, score(setting)) for setting in settings]


def test_the_best_is_the_highest_complete_score_and_the_first_of_equals():
    lucky = Tried({"s": 1}, 0.9, shares=0.1)
    assert best([Tried({"s": 2}, None), lucky, Tried({"s": 3}, 0.0), Tried({"s": 4}, 0.4), Tried({"s": 5}, 0.4)]) == (
        Tried({"s": 4}, 0.4)
    )
    assert best([lucky]) is None and best([]) is None


def test_importance_names_the_parameter_that_the_score_follows_and_by_how_much():
    tried = random_settings(200, lambda setting: 0.3 + 0.2 * setting["s"] + 0.1 * (setting["maker"] == "ppg"))
    shares = importance(tried, keys=["s", "alpha", "maker"])
    # variance of 0.2 s over a range of 0.95: 0.0030; of 0.1 at even odds: 0.0025
    assert shares["s"] == pytest.approx(0.55, abs=0.08) and shares["maker"] == pytest.approx(0.45, abs=0.08)
    assert shares["alpha"] < 0.02
    assert shares == importance(tried, keys=["s", "alpha", "maker"])


def test_no_parameter_explains_scores_drawn_by_lot_or_all_equal_scores():
    lot = random.Random(1)
    assert sum(importance(random_settings(60, lambda _: lot.random()), keys=["s", "alpha", "maker"]).values()) < 0.1
    assert importance(random_settings(20, lambda _: 0.5), keys=["s"]) == {"s": 0.0}


def test_importance_is_not_made_by_a_few_hopeless_settings_nor_of_few_settings_nor_of_failed_ones():
    tried = random_settings(100, lambda setting: 0.3 + 0.2 * setting["s"])
    lost = [Tried({"s": 0.5, "alpha": alpha, "maker": "ppg"}, 0.0) for alpha in (31.0, 31.5, 32.0)]
    shares = importance([*tried, *lost], keys=["s", "alpha"])
    assert shares["s"] > 0.7 and shares["alpha"] < 0.2
    assert importance([*tried[:9], *(Tried(one.setting, None) for one in tried)], keys=["s"]) == {}


def test_a_parameter_that_some_settings_lack_is_weighed_all_the_same():
    tried = random_settings(60, lambda setting: 0.5 if setting["maker"] == "ppg" else 0.3 + 0.1 * setting["s"])
    tried = [
        one if one.setting["maker"] == "baseline" else Tried({"maker": "ppg", "alpha": 1}, one.score) for one in tried
    ]
    assert importance(tried, keys=["s", "maker"])["s"] > 0.3


def test_the_table_sets_the_best_against_the_default():
    default = {"s": 0.3, "maker": "ppg", "cvs": True}
    tried = [
        Tried(default, 0.341, default=True),
        Tried({"s": 0.43219, "maker": "baseline", "cvs": False}, 0.479),
        Tried({"s": 0.9, "maker": "ppg", "cvs": True}, 0.6, shares=0.5),
    ]
    more = {"val": ((0.40, 0.42), (0.44, 0.46))}
    table = best_against_default(tried, keys=list(default), default=default, label="train masks", more=more)
    assert [column.name for column in table.columns] == ["", "default", "best", "gain"]
    assert table.cells() == [
        ["s", "0.3", "0.4322", "-"],
        ["maker", "ppg", "baseline", "-"],
        ["cvs", "true", "false", "-"],
        ["train masks", "34.10", "47.90", "+13.80"],
        ["val", "41.0 ± 1.4", "45.0 ± 1.4", "+4.0 ± 0.0"],
    ]
    nothing = best_against_default([], keys=["s"], default={}, label="train masks")
    assert nothing.cells() == [["s", "-", "-", "-"], ["train masks", "-", "-", "-"]]


def test_values_are_written_as_yaml_spells_them():
    assert [written(v) for v in (0.3, 11.0, 5, True, None, "ppg", 1e-5)] == (
        ["0.3", "11", "5", "true", "null", "ppg", "1e-05"]
    )


def test_grids_and_texts_are_levels_and_numbers_spread_over_decades_are_logarithmic():
    draw = random.Random(0)
    assert scale_of(["ppg", "baseline"]).levels == ("baseline", "ppg")
    assert scale_of([0.2, 0.1, 11.0] * 4).levels == (0.1, 0.2, 11.0)
    assert scale_of([True, False, True]).levels == (False, True)
    assert scale_of([draw.uniform(0.01, 1) for _ in range(50)]).kind == "linear"
    assert scale_of([0.5 * 64 ** draw.random() for _ in range(50)]).kind == "log"
    assert scale_of([-1.0, 0.0, 5.0]).kind == "linear"
    for values in ([0.3], [0.0], [], [1.0, 100.0, 3.0, 10.0]):
        scale = scale_of(values)
        assert np.all(np.diff(scale.edges) > 0)
        assert all(scale.edges[scale.cell(v)] <= v <= scale.edges[scale.cell(v) + 1] for v in values)


def test_a_grid_shows_the_best_complete_score_of_each_cell_whatever_the_third_parameter(tmp_path, drawn):
    tried = [
        Tried({"s": s, "t": t, "alpha": alpha}, s + t / 10 + alpha / 1000, default=s == 0.2 and t == 0.1 and alpha == 4)
        for s in (0.1, 0.2, 0.3)
        for t in (0.1, 0.2)
        for alpha in (4, 8)
    ]
    tried = [one for one in tried if (one.setting["s"], one.setting["t"]) != (0.3, 0.2)]
    tried += [Tried({"s": 0.3, "t": 0.2, "alpha": 4}, 0.99, shares=0.1), Tried({"s": 0.3, "t": 0.2, "alpha": 8}, None)]
    heat_map(tried, "s", "t", tmp_path / "x.png", title="grid")
    axes = drawn[0].axes[0]
    cells = {tuple(map(float, text.get_position())): text.get_text() for text in axes.texts}
    assert cells == {(0, 0): "11.8", (1, 0): "21.8", (2, 0): "31.8", (0, 1): "12.8", (1, 1): "22.8"}
    assert legend(drawn[0]) == ["stopped early", "failed", "default: 21.40", "best: 31.80"]
    assert is_picture(tmp_path / "x.png")


def test_settings_at_random_are_points_where_they_are(tmp_path, drawn):
    tried = random_settings(40, lambda setting: 0.5 - 0.2 * abs(setting["s"] - 0.5))
    heat_map(tried, "s", "alpha", tmp_path / "x.png")
    axes = drawn[0].axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("linear", "log")
    points = [tuple(point) for of in axes.collections[1:2] for point in of.get_offsets()]
    assert points == [(one.setting["s"], one.setting["alpha"]) for one in tried]
    star = axes.collections[-1].get_offsets()[0]
    assert tuple(star) == (best(tried).setting["s"], best(tried).setting["alpha"])


def test_a_slice_for_each_parameter_with_the_default_marked(tmp_path, drawn):
    tried = random_settings(30, lambda setting: 0.3 + 0.2 * setting["s"])
    slices(tried, tmp_path / "x.png", keys=["s", "alpha", "maker", "s"], default={"s": 0.3, "maker": "ppg"})
    panels = [axes for axes in drawn[0].axes if axes.get_visible()]
    assert [axes.get_xlabel() for axes in panels] == ["s", "alpha", "maker", "s"]
    assert [axes.get_xscale() for axes in panels] == ["linear", "log", "linear", "linear"]
    dashed = [[line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "--"] for axes in panels]
    assert dashed == [[0.3], [], [1.0], [0.3]]


def test_history_rises_with_complete_settings_alone(tmp_path, drawn):
    scores = [(0.3, 1.0), (None, 1.0), (0.9, 0.5), (0.2, 1.0), (0.4, 1.0)]
    tried = [Tried({"s": n}, score, shares, default=n == 0) for n, (score, shares) in enumerate(scores)]
    history(tried, tmp_path / "x.png")
    line = drawn[0].axes[0].lines[0]
    assert [round(value) for value in line.get_ydata()] == [30, 30, 30, 30, 40]
    assert legend(drawn[0]) == ["best so far", "complete", "stopped early", "failed", "default: 30.00", "best: 40.00"]


def test_pictures_of_nothing_and_of_one_setting_are_drawn_without_an_error(tmp_path):
    for number, tried in enumerate(([], [Tried({"s": 0.3}, None)], [Tried({"s": 0.3, "t": "x"}, 0.4, default=True)])):
        paths = [tmp_path / f"{number}-{name}.png" for name in ("map", "slices", "bars", "history")]
        heat_map(tried, "s", "t", paths[0])
        slices(tried, paths[1], keys=["s", "t"], default={})
        importance_bars(importance(tried, keys=["s"]), paths[2])
        history(tried, paths[3])
        assert all(is_picture(path) for path in paths)


def test_a_picture_is_the_same_bytes_each_time(tmp_path):
    tried = random_settings(20, lambda setting: 0.5 + math.sin(setting["s"]) / 10)
    for name in "ab":
        heat_map(tried, "s", "maker", tmp_path / f"{name}.png", title="twice")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
