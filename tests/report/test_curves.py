from pathlib import Path

import pytest
from PIL import Image

from pmm_ray.report.curves import class_bars, loss_curves, read_metrics, threshold_curve


def is_picture(path: Path) -> bool:
    with Image.open(path) as image:
        image.load()
        return image.format == "PNG" and min(image.size) > 100


def test_curves_bars_and_losses_are_written_as_png_and_the_same_each_time(tmp_path):
    paths = [tmp_path / f"{n}.png" for n in range(4)]
    threshold_curve({"a": {"0.1": 0.3, "0.2": 0.4}, "b": {0.1: 0.2, 0.2: float("nan")}}, paths[0], title="CAM")
    class_bars({"mask": {"cat": 0.5, "dog": None}, "val": {"cat": 0.4, "dog": float("nan")}}, paths[1])
    loss_curves({"CAM": [{"epoch": 0, "loss": 1.0}, {"epoch": 1, "loss": 0.1}], "new": []}, paths[2])
    threshold_curve({"a": {"0.1": 0.3, "0.2": 0.4}, "b": {0.1: 0.2, 0.2: float("nan")}}, paths[3], title="CAM")
    assert all(is_picture(path) for path in paths)
    assert paths[0].read_bytes() == paths[3].read_bytes()


@pytest.mark.parametrize("draw", [threshold_curve, class_bars, loss_curves])
def test_nothing_to_show_is_an_empty_figure_not_an_error(draw, tmp_path):
    draw({}, tmp_path / "x.png")
    assert is_picture(tmp_path / "x.png")


def test_a_half_written_last_line_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"epoch": 0, "loss": 1.0}\n{"epoch": 1, "lo')
    assert read_metrics(path) == [{"epoch": 0, "loss": 1.0}]
