"""Settings of a sweep as marks in a picture.

The same everywhere: full circles for complete settings, hollow ones for those stopped early, crosses for failed ones, a
star for the best and a diamond for the default.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pmm_ray.report.canvas import COLOURS
from pmm_ray.report.sweeps import Setting, Tried, best

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Places = Mapping[int, tuple[float, float]]
"""id() of a setting -> where its mark goes: right, up."""

_BEST: dict[str, Any] = {"marker": "*", "color": COLOURS[1], "edgecolor": "white", "zorder": 6}
_DEFAULT: dict[str, Any] = {"marker": "D", "color": "white", "edgecolor": "black", "zorder": 5}


def percent(one: Tried) -> float:
    """The score times 100; NaN if it failed."""
    return math.nan if one.score is None else 100 * one.score


def strips(members: Sequence[Tried], key: str) -> dict[int, float]:
    """Offsets within +-0.3 that lay the settings of one level side by side, in the order in which they were tried."""
    levels: dict[Setting, list[Tried]] = {}
    for one in members:
        levels.setdefault(one.setting[key], []).append(one)
    return {
        id(one): float(offset)
        for alike in levels.values()
        for one, offset in zip(alike, np.linspace(-0.3, 0.3, len(alike) + 2)[1:-1], strict=True)
    }


def circles(axes: Axes, members: Sequence[Tried], places: Places, shades: Mapping[int, Any] | None = None) -> None:
    """A circle for each setting that has a score; `shades`: id() -> colour by the score, else one colour for all."""
    scored = [one for one in members if one.score is not None]
    for complete, name in ((True, "complete"), (False, "stopped early")):
        chosen = [one for one in scored if one.complete == complete]
        if not chosen:
            continue
        colours = [shades[id(one)] for one in chosen] if shades else [COLOURS[0]]
        right, above = zip(*(places[id(one)] for one in chosen), strict=True)
        axes.scatter(
            right,
            above,
            s=38,
            linewidths=1.3,
            zorder=3,
            facecolor=colours if complete else "none",
            edgecolor="white" if complete and shades else colours,
            label=None if complete and shades else name,
        )


def crosses(axes: Axes, members: Sequence[Tried], places: Places) -> None:
    """A cross for each failed setting."""
    failed = [places[id(one)] for one in members if one.score is None]
    if failed:
        right, above = zip(*failed, strict=True)
        axes.scatter(right, above, marker="x", s=28, color="0.45", zorder=3, clip_on=False, label="failed")


def star_and_diamond(axes: Axes, members: Sequence[Tried], places: Places, *, size: float = 170) -> None:
    """Mark the best and the default, with their scores in the legend; `size` of the star, in square points."""
    start = next((one for one in members if one.default and one.score is not None), None)
    if start:
        axes.scatter(*places[id(start)], label=f"default: {percent(start):.2f}", s=size * 0.3, **_DEFAULT)
    if top := best(members):
        axes.scatter(*places[id(top)], label=f"best: {percent(top):.2f}", s=size, **_BEST)
