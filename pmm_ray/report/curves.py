"""Figures of curves and bars (matplotlib, drawn to files without a screen)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pmm_ray.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which colour-weak eyes tell apart.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def threshold_curve(curves: Mapping[str, Mapping[float, float]], path: Path, *, title: str = "") -> None:
    """mIoU of CAMs over the background threshold, one line per name, the best point of each marked and named.

    Args:
        curves: name -> {threshold: mIoU in [0, 1]}; thresholds may be texts, as JSON keeps them.
        path: PNG to write.
        title: above the figure.
    """
    figure, axes = _figure(title, "background threshold", "mIoU, %")
    for number, (name, curve) in enumerate(curves.items()):
        points = sorted((float(threshold), 100 * miou) for threshold, miou in curve.items() if math.isfinite(miou))
        if not points:
            continue
        best = max(points, key=lambda point: point[1])
        colour = _COLOURS[number % len(_COLOURS)]
        label = f"{name}: {best[1]:.2f} at {best[0]:g}"
        axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=3, label=label)
        axes.plot(*best, color=colour, marker="o", markersize=8, fillstyle="none")
    _finish(figure, axes, path, legend=True)


def class_bars(scores: Mapping[str, Mapping[str, float | None]], path: Path, *, title: str = "") -> None:
    """IoU of each class as horizontal bars, one colour per name; a class without a figure (None, NaN) has no bar.

    Args:
        scores: name -> {class: IoU in [0, 1]}; the classes of the first name give the order, downwards.
        path: PNG to write.
        title: above the figure.
    """
    classes = list(dict.fromkeys(name for of_class in scores.values() for name in of_class))
    thickness = 0.8 / max(len(scores), 1)
    figure, axes = _figure(title, "IoU, %", "", height=1.2 + 0.28 * len(classes))
    for number, (name, of_class) in enumerate(scores.items()):
        known = [(place, 100 * v) for place, c in enumerate(classes) if (v := of_class.get(c)) is not None and v == v]
        places = [place - 0.4 + (number + 0.5) * thickness for place, _ in known]
        widths = [width for _, width in known]
        axes.barh(places, widths, height=thickness * 0.9, color=_COLOURS[number % len(_COLOURS)], label=name)
    axes.set_yticks(range(len(classes)), classes)
    axes.set_ylim(max(len(classes), 1) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    _finish(figure, axes, path, legend=len(scores) > 1)


def _figure(title: str, across: str, up: str, *, height: float = 3.4) -> tuple[Any, Axes]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    return figure, axes


def _finish(figure: Any, axes: Axes, path: Path, *, legend: bool) -> None:
    if legend and axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
