"""Timing and printing, the same for all benchmarks."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import ParamSpec, TypeVar

from rich.console import Console
from rich.table import Table

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def timed(
    function: Callable[Arguments, Result], *given: Arguments.args, **named: Arguments.kwargs
) -> tuple[float, Result]:
    """Milliseconds of this thread's CPU time, which other programs on the machine disturb least, and the result."""
    start = time.thread_time()
    result = function(*given, **named)
    return 1e3 * (time.thread_time() - start), result


def spread(values: Sequence[float]) -> str:
    """Smallest and largest, with three digits."""
    return f"{digits(min(values))} .. {digits(max(values))}"


def digits(value: float) -> str:
    """A number with about three digits."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def middle(values: Sequence[float]) -> str:
    """The median, with three digits."""
    return digits(median(values))


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *notes: str) -> None:
    """Print a table to standard output, notes below it."""
    table = Table(title=title, title_justify="left", title_style="bold")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left")
    for row in rows:
        table.add_row(*row)
    console = Console(width=118, highlight=False)
    console.print(table)
    for note in notes:
        console.print(note, markup=False)
    console.print()
