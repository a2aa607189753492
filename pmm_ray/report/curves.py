"""Figures of curves and bars (matplotlib, drawn to files without a screen)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from pmm_ray.report.canvas import COLOURS, figure, plain, save


def threshold_curve(curves: Mapping[str, Mapping[float, float | None]], path: Path, *, title: str = "") -> None:
    """mIoU of CAMs over the background threshold, one line per name, the best point of each marked and named.

    Args:
        curves: name -> {threshold: mIoU in [0, 1]}; thresholds may be texts, as JSON keeps them. Where nothing could be
            scored (None, NaN) there is no point.
        path: PNG to write.
        title: above the figure.
    """
    made = figure(title)
    axes = made.add_subplot()
    plain(axes, "background threshold", "mIoU, %")
    for number, (name, curve) in enumerate(curves.items()):
        points = sorted((float(t), 100 * miou) for t, miou in curve.items() if miou is not None and math.isfinite(miou))
        if not points:
            continue
        best = max(points, key=lambda point: point[1])
        colour = COLOURS[number % len(COLOURS)]
        label = f"{name}: {best[1]:.2f} at {best[0]:g}"
        axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=3, label=label)
        axes.plot(*best, color=colour, marker="o", markersize=8, fillstyle="none")
    save(made, path, legend=True)


def class_bars(scores: Mapping[str, Mapping[str, float | None]], path: Path, *, title: str = "") -> None:
    """IoU of each class as horizontal bars, one colour per name; a class without a figure (None, NaN) has no bar.

    Args:
        scores: name -> {class: IoU in [0, 1]}; the classes of the first name give the order, downwards.
        path: PNG to write.
        title: above the figure.
    """
    classes = list(dict.fromkeys(name for of_class in scores.values() for name in of_class))
    thickness = 0.8 / max(len(scores), 1)
    made = figure(title, height=1.2 + 0.28 * len(classes))
    axes = made.add_subplot()
    plain(axes, "IoU, %", "")
    for number, (name, of_class) in enumerate(scores.items()):
        known = [(place, 100 * v) for place, c in enumerate(classes) if (v := of_class.get(c)) is not None and v == v]
        places = [place - 0.4 + (number + 0.5) * thickness for place, _ in known]
        widths = [width for _, width in known]
        axes.barh(places, widths, height=thickness * 0.9, color=COLOURS[number % len(COLOURS)], label=name)
    axes.set_yticks(range(len(classes)), classes)
    axes.set_ylim(max(len(classes), 1) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    save(made, path, legend=len(scores) > 1)
