import math

from pmm_ray.flat import cell, flatten, numbers, shortened, texts


def test_nested_names_are_joined_and_empty_mappings_stay():
    assert flatten({"a": {"b": {"c": 1}, "d": {}}, "e": None}) == {"a.b.c": 1, "a.d": {}, "e": None}


def test_only_finite_numbers_are_metrics():
    iou = {"cat": 0.25, "dog": None, "cow": math.nan}
    facts = {"miou": 0.5, "iou": iou, "protocol": "train", "n": 3, "failed": [[1]]}
    assert numbers(facts) == {"miou": 0.5, "iou/cat": 0.25, "n": 3.0}


def test_values_are_spelled_as_yaml_spells_them():
    values = {"a": None, "b": True, "c": (1, 2), "d": "text", "e": 1e-3}
    assert texts(values) == {"a": "null", "b": "true", "c": "[1, 2]", "d": "text", "e": "0.001"}


def test_unequal_long_values_stay_unequal_when_cut():
    one, two = shortened("x" * 200 + "1", 100), shortened("x" * 200 + "2", 100)
    assert len(one) == len(two) == 100 and one != two
    assert shortened("x" * 100, 100) == "x" * 100


def test_a_cell_has_no_nan():
    assert [cell(v) for v in (1, 0.5, math.nan, math.inf, None, "a", [1])] == [1, 0.5, None, None, None, "a", "[1]"]
