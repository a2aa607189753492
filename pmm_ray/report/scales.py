"""How the values of a swept parameter are laid out along an axis: as levels, evenly, or by their logarithm."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from pmm_ray.report.sweeps import Setting, ordered, written

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

_MOST_LEVELS = 12


@dataclass(frozen=True)
class Scale:
    """Places of a parameter's values.

    Attributes:
        kind: 'levels': texts, switches, and numbers of few values (a grid), evenly spaced, each named on the axis;
            'linear' or 'log': numbers as they are, on such an axis.
        levels: the values of 'levels', in order.
        edges: of the cells, ascending: around each level, or of equal width in `kind`.
    """

    kind: Literal["levels", "linear", "log"]
    levels: tuple[Setting, ...]
    edges: NDArray[np.floating]

    @property
    def cells(self) -> int:
        """How many there are between the edges."""
        return len(self.edges) - 1

    def place(self, value: Setting) -> float:
        """Where the value stands: the number of its level, or itself."""
        if self.kind == "levels":
            return float(self.levels.index(value))
        assert isinstance(value, int | float)
        return float(value)

    def cell(self, value: Setting) -> int:
        """The number of the value's cell."""
        return int(np.clip(np.searchsorted(self.edges, self.place(value), side="right") - 1, 0, self.cells - 1))

    def centres(self) -> NDArray[np.floating]:
        """The middle of each cell."""
        low, high = self.edges[:-1], self.edges[1:]
        return np.sqrt(low * high) if self.kind == "log" else (low + high) / 2

    def name(self, axes: Axes, key: str, *, vertical: bool = False) -> None:
        """Give one axis of a figure the key as its label, and limits and ticks."""
        from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

        axis: Axis = axes.yaxis if vertical else axes.xaxis
        (axes.set_ylim if vertical else axes.set_xlim)(self.edges[0], self.edges[-1])
        axis.set_label_text(key)
        if self.kind == "levels":
            names = [written(level) for level in self.levels]
            axis.set_major_locator(FixedLocator(range(len(names))))
            axis.set_major_formatter(FuncFormatter(lambda at, _: names[round(at)]))
            if not vertical and sum(map(len, names)) > 24:
                axis.set_tick_params(labelrotation=30)
            return
        if self.kind == "log":
            (axes.set_yscale if vertical else axes.set_xscale)("log")
            axis.set_minor_locator(NullLocator())
        decades = math.log10(self.edges[-1] / self.edges[0]) if self.kind == "log" else 0
        steps = (1.0,) if decades > 4 else (1.0, 2.0, 5.0) if decades < 1.5 else (1.0, 3.0)
        axis.set_major_locator(LogLocator(subs=steps, numticks=20) if self.kind == "log" else MaxNLocator(6))
        axis.set_major_formatter(FuncFormatter(lambda at, _: f"{at:g}"))


def scale_of(values: Iterable[Setting]) -> Scale:
    """The scale that shows these values best.

    Numbers that come again and again, few of them, are levels. Others are on a logarithmic axis if they span a decade
    and their median lies nearer to the middle of that than to the middle of a linear axis.
    """
    given = list(values)
    levels = tuple(ordered(given))
    numbers = [float(v) for v in given if isinstance(v, int | float) and not isinstance(v, bool)]
    few = 0 < len(levels) <= _MOST_LEVELS and len(given) >= 2 * len(levels)
    if few or len(numbers) < len(given):
        return Scale("levels", levels, np.arange(len(levels) + 1) - 0.5)
    bins = int(np.clip(round(math.sqrt(len(given) / 2)), 3, 10))
    if _logarithmic(numbers):
        low, high = math.log10(min(numbers)), math.log10(max(numbers))
        return Scale("log", (), 10 ** _edges(low, high, bins))
    return Scale("linear", (), _edges(min(numbers, default=0.0), max(numbers, default=1.0), bins))


def _edges(low: float, high: float, bins: int) -> NDArray[np.floating]:
    margin = 0.03 * (high - low) or 0.05 * abs(high) or 0.5
    return np.linspace(low - margin, high + margin, bins + 1)


def _logarithmic(numbers: Sequence[float]) -> bool:
    low, high = min(numbers, default=0.0), max(numbers, default=0.0)
    if low <= 0 or high < 10 * low:
        return False
    middle = float(np.median(numbers))
    linear = (middle - low) / (high - low)
    return abs(math.log(middle / low) / math.log(high / low) - 0.5) < abs(linear - 0.5)
