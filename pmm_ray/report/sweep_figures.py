"""Pictures of a sweep: a slice for each parameter, importance, and history. See `heat_map` for two parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pmm_ray.report.canvas import COLOURS, figure, plain, save
from pmm_ray.report.marks import circles, crosses, percent, star_and_diamond, strips
from pmm_ray.report.scales import scale_of
from pmm_ray.report.sweeps import FEWEST, Setting, Tried, default_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BLUE, _, _GREEN = COLOURS[:3]


def slices(
    tried: Sequence[Tried],
    path: Path,
    *,
    keys: Sequence[str],
    default: Mapping[str, Setting],
    title: str = "",
    label: str = "mIoU, %",
) -> None:
    """Draw a panel for each parameter: the score over its value, and a line for the best complete setting about there.

    Args:
        tried: failed settings are left out.
        path: PNG to write.
        keys: the parameters, in order.
        default: the default's value of each, a dashed line; none where it lacks one.
        title: above the figure.
        label: of the score.
    """
    wide = max(1, min(3, len(keys)))
    high = max(1, math.ceil(len(keys) / wide))
    made = figure(title, width=0.6 + 2.7 * wide, height=0.9 + 2.3 * high)
    panels = made.subplots(high, wide, sharey=True, squeeze=False).ravel()
    for number, (axes, key) in enumerate(zip(panels, keys, strict=False)):
        _slice(axes, [one for one in tried if key in one.setting and one.score is not None], key, default)
        axes.set_ylabel("" if number % wide else label)
    for axes in panels[len(keys) :]:
        axes.set_visible(False)
    save(made, path, legend=True)


def _slice(axes: Axes, known: Sequence[Tried], key: str, default: Mapping[str, Setting]) -> None:
    plain(axes, key, "")
    scale = scale_of([*(one.setting[key] for one in known), *([default[key]] if key in default else [])])
    scale.name(axes, key)
    top = np.full(scale.cells, math.nan)
    for one in known:
        if one.complete:
            cell = scale.cell(one.setting[key])
            top[cell] = np.fmax(top[cell], percent(one))
    line: dict[str, Any] = {"color": _GREEN, "linewidth": 1.2, "label": "best about there"}
    spread: Mapping[int, float] = {}
    if scale.kind == "levels":
        spread = strips(known, key)
        axes.stairs(top, scale.edges, baseline=None, **line)
    else:
        there = ~np.isnan(top)
        axes.plot(scale.centres()[there], top[there], **line)
    if key in default:
        axes.axvline(scale.place(default[key]), color="0.4", linestyle="--", linewidth=1)
    places = {id(one): (scale.place(one.setting[key]) + spread.get(id(one), 0), percent(one)) for one in known}
    circles(axes, known, places)
    star_and_diamond(axes, known, places)


def importance_bars(shares: Mapping[str, float], path: Path, *, title: str = "") -> None:
    """Draw what `sweeps.importance` found, the greatest on top; `shares`: key -> share of the score's variance."""
    made = figure(title, height=1.2 + 0.3 * max(len(shares), 2))
    axes = made.add_subplot()
    plain(axes, "explains of the score's variance, %", "")
    axes.set_xlim(0, 100 * max([1.0, *shares.values()]))
    keys = sorted(shares, key=lambda key: shares[key])
    axes.barh(range(len(keys)), [100 * shares[key] for key in keys], color=_BLUE, height=0.6)
    axes.set_yticks(range(len(keys)), keys)
    for place, key in enumerate(keys):
        axes.text(100 * shares[key] + 1, place, f"{100 * shares[key]:.0f}", va="center", fontsize=8)
    if not keys:
        axes.text(0.5, 0.5, f"fewer than {FEWEST} settings were scored", transform=axes.transAxes, ha="center")
    save(made, path)


def history(tried: Sequence[Tried], path: Path, *, title: str = "", label: str = "mIoU, %") -> None:
    """Draw the score of each setting in the order of `tried`, the best complete one so far, and the default's score."""
    made = figure(title)
    axes = made.add_subplot()
    plain(axes, "setting", label)
    axes.set_xlim(0, len(tried) + 1)
    axes.locator_params(axis="x", integer=True)
    numbers = range(1, len(tried) + 1)
    if any(one.complete for one in tried):
        reached = np.fmax.accumulate([percent(one) if one.complete else math.nan for one in tried])
        axes.step(numbers, reached, where="post", color=_GREEN, label="best so far")
    if start := default_of(tried):
        axes.axhline(percent(start), color="0.4", linestyle="--", linewidth=1)
    circles(axes, tried, {id(one): (number, percent(one)) for number, one in zip(numbers, tried, strict=True)})
    bottom = axes.get_ylim()[0]
    places = {
        id(one): (number, bottom if one.score is None else percent(one))
        for number, one in zip(numbers, tried, strict=True)
    }
    crosses(axes, tried, places)
    axes.set_ylim(bottom=bottom)
    star_and_diamond(axes, tried, places)
    save(made, path, legend=True)
