import csv
import io
import math
from dataclasses import dataclass

from rich.console import Console

from pmm_ray.report.tables import Column, Table, ablation_table, cycle_table, seeds_table, shown


@dataclass(frozen=True)
class Measured:
    row: str
    seed: int
    values: dict[str, float]
    variant: str = ""
    cycle: int | None = None


def test_one_value_has_two_decimals_and_seeds_mean_and_sample_deviation():
    assert shown(0.36813) == "36.81"
    assert shown((0.30, 0.32, 0.34)) == "32.0 ± 2.0"  # deviations -2, 0, 2: sqrt(8 / 2)
    assert shown((0.5,)) == "50.00"
    assert shown(None) == shown(()) == shown(math.nan) == "-"
    assert shown(0.012, "points") == "+1.20" and shown((-0.01, -0.03), "points") == "-2.0 ± 1.4"


def test_a_table_is_the_same_figures_in_markdown_csv_records_and_on_a_terminal():
    table = Table("T", (Column("", "text"), Column("val")), (("a|b", 0.5), ("[c]", (0.25, 0.75)), ("d", None)), "note")
    assert table.markdown() == (
        "**T**\n\n"
        "|      | val         |\n"
        "| ---- | ----------: |\n"
        "| a\\|b | 50.00       |\n"
        "| [c]  | 50.0 ± 35.4 |\n"
        "| d    | -           |\n"
        "\nnote\n"
    )
    assert table.records() == [
        {"row": "a|b", "val": 50.0},
        {"row": "[c]", "val": 50.0, "val sd": 35.355339},
        {"row": "d", "val": None},
    ]
    assert list(csv.DictReader(io.StringIO(table.csv())))[1] == {"row": "[c]", "val": "50.0", "val sd": "35.355339"}
    console = Console(width=100, file=io.StringIO())
    console.print(table.rich())
    printed = console.file.getvalue()
    assert all(text in printed for text in ("T", "[c]", "50.0 ± 35.4", "note"))


def test_cycles_are_compared_with_the_one_before_on_the_best_measured_metric():
    scores = [
        Measured("CAM", 0, {"train masks": 0.3}),
        Measured("cycle 0", 0, {"train masks": 0.40, "PUS active": 0.25, "val": 0.50, "val + CRF": 0.52}, cycle=0),
        Measured("cycle 1", 0, {"train masks": 0.45, "val": 0.49, "val + CRF": 0.55}, cycle=1),
    ]
    table = cycle_table(scores)
    assert [c.name for c in table.columns] == [
        "",
        "train masks",
        "val",
        "val + CRF",
        "PUS active",
        "change of val + CRF",
    ]
    assert table.cells() == [
        ["CAM", "30.00", "-", "-", "-", "-"],
        ["cycle 0", "40.00", "50.00", "52.00", "25.00", "-"],
        ["cycle 1", "45.00", "49.00", "55.00", "-", "+3.00"],
    ]


def test_the_change_is_taken_within_each_seed():
    figures = [(0, 0, 0.1), (0, 1, 0.5), (1, 0, 0.2), (1, 1, 0.6)]
    scores = [Measured(f"cycle {cycle}", seed, {"val": v}, cycle=cycle) for cycle, seed, v in figures]
    assert cycle_table(scores).cells()[1] == ["cycle 1", "40.0 ± 28.3", "+10.0 ± 0.0"]


def test_without_ground_truth_there_is_a_table_with_names_only():
    table = cycle_table([Measured("CAM", 0, {}), Measured("cycle 0", 0, {}, cycle=0)])
    assert table.cells() == [["CAM"], ["cycle 0"]] and cycle_table([]).cells() == []


def test_of_variants_the_best_mean_over_seeds_is_shown_and_said_so():
    scores = [
        Measured("CRF baseline", seed, {"train masks": value}, variant)
        for variant, values in {"alpha 4": (0.30, 0.34), "alpha 8": (0.33, 0.33), "alpha 11": (0.40, 0.10)}.items()
        for seed, value in enumerate(values)
    ]
    assert ablation_table(scores).cells() == [["CRF baseline, alpha 8 (best of 3)", "33.0 ± 0.0"]]


def test_a_mean_over_frequent_classes_is_shown_only_where_it_differs():
    same = Measured("CAM", 0, {"val": 0.5, "val (frequent)": 0.5, "train masks": 0.3, "train masks (frequent)": 0.4})
    assert [c.name for c in ablation_table([same]).columns] == ["", "val", "train masks", "train masks (frequent)"]


def test_each_seed_has_its_figure_beside_the_mean():
    scores = [Measured("CAM", 0, {"train masks": 0.3}), Measured("CAM", 2, {"train masks": 0.4, "val": 0.2})]
    table = seeds_table(scores)
    assert [c.name for c in table.columns] == ["", "measured on", "mean ± sd", "seed 0", "seed 2"]
    assert table.cells() == [
        ["CAM", "train masks", "35.0 ± 7.1", "30.00", "40.00"],
        ["CAM", "val", "20.00", "-", "20.00"],
    ]
