"""Drawing matplotlib figures to files without a screen, in one style."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pmm_ray.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, which colour-weak eyes tell apart."""


def figure(title: str, *, width: float = 6, height: float = 3.4) -> Figure:
    """An empty figure of `width` x `height` inches at 130 dots an inch."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(width, height), dpi=130, layout="constrained")
    FigureCanvasAgg(made)
    made.suptitle(title, fontsize=10)
    return made


def plain(axes: Axes, across: str, up: str) -> None:
    """Name both directions, a faint grid behind, no frame above and to the right."""
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.9")
    axes.set_axisbelow(True)


def save(made: Figure, path: Path, *, legend: bool = False) -> None:
    """Write a PNG, the same bytes for the same figure, with one legend below of what the first axes name."""
    if legend and made.axes and made.axes[0].get_legend_handles_labels()[0]:
        handles, labels = made.axes[0].get_legend_handles_labels()
        made.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    with atomic_path(path) as temporary:
        made.savefig(temporary, format="png", metadata={"Software": None})
