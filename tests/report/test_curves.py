from pathlib import Path

import pytest
from PIL import Image

from pmm_ray.report.curves import class_bars, threshold_curve


def is_picture(path: Path) -> bool:
    with Image.open(path) as image:
        image.load()
        return image.format == "PNG" and min(image.size) > 100


def test_curves_and_bars_are_written_as_png_and_the_same_each_time(tmp_path):
    paths = [tmp_path / f"{n}.png" for n in range(3)]
    threshold_curve({"a": {"0.1": 0.3, "0.2": 0.4}, "b": {0.1: 0.2, 0.2: float("nan")}}, paths[0], title="CAM")
    class_bars({"mask": {"cat": 0.5, "dog": None}, "val": {"cat": 0.4, "dog": float("nan")}}, paths[1])
    threshold_curve({"a": {"0.1": 0.3, "0.2": 0.4}, "b": {0.1: 0.2, 0.2: float("nan")}}, paths[2], title="CAM")
    assert all(is_picture(path) for path in paths)
    assert paths[0].read_bytes() == paths[2].read_bytes()


@pytest.mark.parametrize("draw", [threshold_curve, class_bars])
def test_nothing_to_show_is_an_empty_figure_not_an_error(draw, tmp_path):
    draw({}, tmp_path / "x.png")
    assert is_picture(tmp_path / "x.png")


def test_a_threshold_without_a_score_has_no_point(tmp_path):
    scored, bare = tmp_path / "scored.png", tmp_path / "bare.png"
    threshold_curve({"CAM": {"0.1": 0.3, "0.2": None}, "blind": {"0.1": None}}, scored)
    threshold_curve({"CAM": {"0.1": 0.3}, "blind": {}}, bare)
    assert scored.read_bytes() == bare.read_bytes()
