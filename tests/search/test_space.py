from __future__ import annotations

from typing import get_args

import pytest
import yaml

from pmm_ray.config import Config
from pmm_ray.errors import UserError
from pmm_ray.search.space import Kind, parse
from pmm_ray.settings import build, changed, load_sweep
from pmm_ray.sweep import main

CONFIG = Config()


def test_keys_may_be_dotted_or_nested_and_null_removes_one():
    tree = {
        "masks.s": {"uniform": [0, 0.6]},
        "masks": {"alpha": {"loguniform": [0.5, 32]}, "crf": {"preset": {"choice": ["ppg", "irn"]}}},
        "masks.t": None,
    }
    space = parse(tree, CONFIG, trial="masks")
    assert space.keys == ("masks.s", "masks.alpha", "masks.crf.preset")
    assert [(d.kind, d.values) for d in space.dimensions] == [
        ("uniform", (0, 0.6)),
        ("loguniform", (0.5, 32)),
        ("choice", ("ppg", "irn")),
    ]


def test_a_grid_is_every_combination_the_last_key_fastest():
    space = parse(
        {"masks.maker": {"grid": ["ppg", "baseline"]}, "pus.beta": {"grid": [1, 2]}}, CONFIG, trial="segmentation"
    )
    assert [tuple(values.values()) for values in space.grid()] == [
        ("ppg", 1), ("ppg", 2), ("baseline", 1), ("baseline", 2)
    ]  # fmt: skip


def test_a_range_of_whole_numbers_is_a_list_and_one_of_numbers_is_none():
    space = parse({"masks.crf.iterations": {"int": [3, 5]}}, CONFIG, trial="masks")
    assert [values["masks.crf.iterations"] for values in space.grid()] == [3, 4, 5]
    with pytest.raises(UserError, match=r"sweep.space.masks.s: a grid needs values"):
        list(parse({"masks.s": {"uniform": [0, 1]}}, CONFIG, trial="masks").grid())


def test_numbers_in_exponent_form_are_numbers_although_yaml_reads_text():
    tree = yaml.safe_load(
        "{seg.train.lr: {loguniform: [1e-4, 1e-2]}, "
        "seg.train.warmup: {choice: [0, 1e1]}, seg.train.crop: {int: [64, 1e2]}}"
    )
    rates, warmup, crop = parse(tree, CONFIG, trial="segmentation").dimensions
    assert (rates.values, warmup.values) == ((1e-4, 1e-2), (0, 10))
    assert changed(CONFIG, {"seg.train.warmup": warmup.values[1]}).seg.train.warmup == 10
    assert crop.listed == tuple(range(64, 101))


def test_the_base_configs_own_values_are_read_by_key():
    space = parse({"masks.s": {"uniform": [0, 1]}, "masks.crf.preset": {"choice": ["irn"]}}, CONFIG, trial="masks")
    assert space.own == {"masks.s": 0.3, "masks.crf.preset": "ppg"}


MATTING = build({"masks": {"maker": "matting", "trimap": {"low": 0.1, "high": 0.3}}})


def test_values_of_two_keys_need_only_go_with_each_other():
    tree = {"masks.trimap.high": {"grid": [0.3, 0.6]}, "masks.trimap.low": {"grid": [0.1, 0.5]}}
    space = parse(tree, MATTING, trial="masks")
    assert [tuple(values.values()) for values in space.grid()] == [(0.3, 0.1), (0.6, 0.1), (0.6, 0.5)]
    assert space.read({"masks.trimap.high": 0.3, "masks.trimap.low": 0.5}) is None
    # 0.7 is above every one that there is
    tree["masks.trimap.low"] = {"grid": [0.1, 0.7]}
    with pytest.raises(UserError, match=r"masks\.trimap: low must be at most high, got low 0\.7 and high 0\.3"):
        parse(tree, MATTING, trial="masks")


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, "nothing varies"),
        ({"masks.alpa": {"uniform": [1, 2]}}, "sweep.space.masks.alpa: not a key .* did you mean masks.alpha"),
        ({"pus.beta": {"uniform": [1, 2]}}, "sweep.space.pus.beta: not a key that this sweep can vary"),
        ({"masks.alpha": {"uniform": [0, 2]}}, r"masks.alpha: .*greater than 0, got 0 \(sweep.space\)"),
        ({"masks.maker": {"choice": ["ppg", "pgg"]}}, "masks.maker: .*'pgg'"),
        ({"masks.s": {"unifrm": [0, 1]}}, "sweep.space.masks.s.unifrm: give one of uniform"),
        ({"masks.s": {"uniform": [1]}}, r"sweep.space.masks.s.uniform: give \[lowest, highest\]"),
        ({"masks.s": {"uniform": [1, 0.5]}}, r"give \[lowest, highest\]"),
        ({"masks.s": {"uniform": 0.5}}, "give a list, got 0.5"),
        ({"masks.s": {"loguniform": [0, 1]}}, "the lowest must be above 0"),
        ({"masks.crf.iterations": {"int": [1, 2.5]}}, "give whole numbers"),
        ({"masks.s": {"choice": [0.1, 0.1]}}, "a value is there twice"),
        ({"masks.alpha": {"choice": [4, 4.0]}}, "a value is there twice"),
        ({"masks.s": {"choice": [[0.1]]}}, "values must be numbers, words"),
    ],
)
def test_what_makes_no_sense_is_refused_with_the_key_and_the_mend(tree, message):
    with pytest.raises(UserError, match=message):
        parse(tree, CONFIG, trial="masks")


@pytest.mark.parametrize(
    ("tree", "config"),
    [
        ({"masks.s": {"uniform": [0, 1]}}, {"masks": {"cvs": False}}),
        ({"masks.trimap.high": {"uniform": [0.3, 1]}}, {}),
        ({"masks.trimap.high": {"uniform": [0.3, 1]}}, {"masks": {"maker": "matting", "trimap": {"source": "crf"}}}),
        ({"masks.threshold": {"choice": [0.1]}, "masks.maker": {"choice": ["ppg", "baseline"]}}, {}),
    ],
)
def test_a_key_that_no_setting_reads_is_refused(tree, config):
    with pytest.raises(UserError, match=r"sweep\.space\.masks\.[a-z.]+: no setting of this sweep reads it"):
        parse(tree, build(config), trial="masks")


def test_a_key_that_some_setting_reads_is_searched():
    tree = {"masks.threshold": {"choice": [0.1, 0.3]}, "masks.maker": {"choice": ["ppg", "threshold"]}}
    assert parse(tree, CONFIG, trial="masks").keys == ("masks.threshold", "masks.maker")


def test_a_key_that_some_setting_reads_is_searched_in_a_space_of_any_size():
    tree = {
        "masks.maker": {"choice": ["ppg", "threshold"]},
        "masks.threshold": {"choice": [0.1, 0.3]},
        "masks.s": {"uniform": [0, 0.6]},
        "masks.t": {"uniform": [0, 0.3]},
        "masks.alpha": {"choice": [1, 2, 4, 8, 16]},
        "masks.crf.bilateral_compat": {"choice": [1, 2, 4, 8]},
        "masks.crf.gaussian_compat": {"choice": [1, 2, 4, 8]},
        "masks.crf.iterations": {"choice": [1, 2, 5, 10]},
    }
    assert parse(tree, CONFIG, trial="masks").keys == tuple(tree)


@pytest.mark.parametrize("weights", [{"uniform": [0, 2]}, {"choice": [0.5, 2]}])
def test_a_weight_above_0_is_what_has_its_losss_keys_read(weights):
    tree = {"cam.train.equivariance": weights, "cam.train.equivariance_scale": {"uniform": [0.2, 0.5]}}
    assert parse(tree, CONFIG, trial="segmentation").keys == tuple(tree)


def test_recipes_without_a_cam_classifier_are_not_searched():
    with pytest.raises(UserError, match=r"^recipe=rrm_two_step: .*use recipe=pmm"):
        parse({"masks.s": {"uniform": [0, 1]}}, build({"recipe": "rrm_two_step"}), trial="masks")


def test_the_base_of_a_sweep_file_comes_first_wherever_the_file_stands(tmp_path):
    base, other, sweep = (tmp_path / f"{name}.yaml" for name in ("base", "other", "sweep"))
    base.write_text("masks: {alpha: 3, s: 0.1}\n")
    other.write_text("masks: {alpha: 5}\n")
    sweep.write_text(f"base: [{base}]\nsweep: {{space: {{masks.s: {{uniform: [0, 1]}}}}}}\n")
    for files in ([sweep, other], [other, sweep]):
        config, _, _ = load_sweep([str(file) for file in files], [])
        assert (config.masks.alpha, config.masks.s) == (5, 0.1)
    with pytest.raises(UserError, match=r"base: it stands in the sweep file"):
        load_sweep([str(sweep)], [f"base=[{other}]"])
    second = tmp_path / "second.yaml"
    second.write_text(sweep.read_text())
    with pytest.raises(UserError, match=r"sweep\.yaml and .*second\.yaml: base: both have one"):
        load_sweep([str(sweep), str(second)], [])


def test_a_sweep_file_is_merged_over_its_base_and_under_what_follows(tmp_path):
    base, data, sweep = tmp_path / "base.yaml", tmp_path / "data.yaml", tmp_path / "sweep.yaml"
    base.write_text("masks: {alpha: 3, s: 0.1, t: 0.2}\nname: base\n")
    data.write_text("masks: {t: 0.4}\n")
    sweep.write_text(
        f"base: [{base}]\nname: mine\nmasks: {{alpha: 5}}\n"
        "sweep: {settings: 9, space: {masks.s: {uniform: [0, 1]}, masks.t: {uniform: [0, 1]}}}\n"
    )
    words = ["sweep.settings=4", "sweep.space.masks.alpha={loguniform: [1, 2]}", "sweep.seed=3"]
    config, how, tree = load_sweep([str(sweep), str(data)], words)
    assert (config.name, config.masks.alpha, config.masks.s, config.masks.t) == ("mine", 5, 0.1, 0.4)
    assert (how.settings, how.seed) == (4, 3)
    assert set(parse(tree, config, trial="masks").keys) == {"masks.s", "masks.t", "masks.alpha"}


def test_a_misspelt_key_of_the_sweep_is_named_with_the_nearest(tmp_path):
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text("sweep: {space: {masks.s: {uniform: [0, 1]}}}\n")
    with pytest.raises(UserError, match=r"sweep.searchr: no such key \(command line\); did you mean sweep.searcher"):
        load_sweep([str(sweep)], ["sweep.searchr=grid"])
    with pytest.raises(UserError, match="no sweep file"):
        load_sweep([], [])
    sweep.write_text("base: conf/recipe/pmm.yaml\n")
    with pytest.raises(UserError, match="base: a list of config files"):
        load_sweep([str(sweep)], [])


def test_the_help_of_a_sweep_says_what_its_file_may_hold(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    told = capsys.readouterr().out
    for key in ("base=", "sweep.space=", "sweep.searcher=", "masks.alpha="):
        assert f"  {key}" in told
    for kind in get_args(Kind):
        assert f"  {kind}: [" in told
