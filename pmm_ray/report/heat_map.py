"""The score of a sweep over two of its parameters, as a heat map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pmm_ray.report.canvas import figure, save
from pmm_ray.report.marks import Places, circles, crosses, percent, star_and_diamond, strips
from pmm_ray.report.scales import Scale, scale_of
from pmm_ray.report.sweeps import Tried

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.cm import ScalarMappable


def heat_map(tried: Sequence[Tried], x: str, y: str, path: Path, *, title: str = "", label: str = "mIoU, %") -> None:
    """Draw cells that show the best complete setting in them, whatever its other parameters were.

    A grid has its scores written in. Settings drawn at random are points on binned cells.

    Args:
        tried: settings without `x` or `y` are left out.
        x: key of the parameter to the right.
        y: key of the parameter upwards.
        path: PNG to write.
        title: above the figure.
        label: of the score.
    """
    known = [one for one in tried if x in one.setting and y in one.setting]
    across, up = (scale_of([one.setting[key] for one in known]) for key in (x, y))
    grid = across.kind == up.kind == "levels"
    made = figure(title, width=max(5, 1.8 + 0.55 * across.cells) if grid else 6, height=max(4, 1.4 + 0.4 * up.cells))
    axes = made.add_subplot()
    across.name(axes, x)
    up.name(axes, y, vertical=True)
    shades = _shades(known)
    cell_of = {id(one): (up.cell(one.setting[y]), across.cell(one.setting[x])) for one in known}
    cells = np.full((up.cells, across.cells), math.nan)
    for one in known:
        if one.complete:
            cells[cell_of[id(one)]] = np.fmax(cells[cell_of[id(one)]], percent(one))
    drawn = axes.pcolormesh(across.edges, up.edges, cells, cmap=shades.cmap, edgecolors="white")
    drawn.set(norm=shades.norm, alpha=1 if grid else 0.45)
    made.colorbar(shades, ax=axes, label=f"{label}; a cell shows its best", extend="min")
    if grid:
        _write(axes, cells, shades)
        bare = [one for one in known if math.isnan(cells[cell_of[id(one)]])]
        _points(axes, bare, {place: (right, above) for place, (above, right) in cell_of.items()}, shades)
        # in the corner, so that the figure in the cell can be read
        corners = {place: (right + 0.33, above + 0.3) for place, (above, right) in cell_of.items()}
        star_and_diamond(axes, known, corners, size=130)
    else:
        places = _places(known, (x, across), (y, up))
        _points(axes, known, places, shades)
        star_and_diamond(axes, known, places, size=230)
    save(made, path, legend=True)


def _shades(known: Sequence[Tried]) -> ScalarMappable:
    """Colours from the tenth percentile to the best, so that a few bad settings do not make all others look alike."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    scores = [percent(one) for one in known if one.score is not None] or [0.0, 100.0]
    low, high = float(np.percentile(scores, 10)), max(scores)
    return ScalarMappable(Normalize(low if high > low else low - 1, high), "viridis")


def _places(known: Sequence[Tried], across: tuple[str, Scale], up: tuple[str, Scale]) -> Places:
    """Where each setting is, those of one level beside each other."""
    right, above = (
        {id(one): scale.place(one.setting[key]) + spread.get(id(one), 0) for one in known}
        for key, scale in (across, up)
        for spread in [strips(known, key) if scale.kind == "levels" else {}]
    )
    return {place: (right[place], above[place]) for place in right}


def _points(axes: Axes, members: Sequence[Tried], places: Places, shades: ScalarMappable) -> None:
    colours = shades.to_rgba(np.array([percent(one) for one in members]))
    circles(axes, members, places, {id(one): colour for one, colour in zip(members, colours, strict=True)})
    crosses(axes, members, places)


def _write(axes: Axes, cells: NDArray[np.float64], shades: ScalarMappable) -> None:
    for (row, column), value in np.ndenumerate(cells):
        if not math.isnan(value):
            red, green, blue, _ = shades.to_rgba(np.array([value]))[0]
            ink = "black" if 0.3 * red + 0.6 * green + 0.1 * blue > 0.5 else "white"
            axes.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=8, color=ink)
