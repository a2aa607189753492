"""How long work shows that it moves: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

_SECONDS_BETWEEN_LINES = 10.0


class Progress(Protocol):
    """Work under way."""

    def advance(self, n: int = 1, note: str = "") -> None:
        """`n` more units are done; `note` (a loss, a count of failures) is shown beside them."""
        ...


class _Lines:
    """Plain lines on standard error, at most one in some seconds; the last unit is always told."""

    def __init__(self, title: str, total: int):
        self._title, self._total, self._done = title, total, 0
        self._start = time.monotonic()
        self._told = self._start

    def advance(self, n: int = 1, note: str = "") -> None:
        self._done += n
        now = time.monotonic()
        if n <= 0 or (now - self._told < _SECONDS_BETWEEN_LINES and self._done < self._total):
            return
        self._told = now
        line = f"{self._title}: {self._done}/{self._total} after {now - self._start:.0f} s"
        print(f"{line}, {note}" if note else line, file=sys.stderr, flush=True)


@contextmanager
def progress(title: str, total: int) -> Iterator[Progress]:
    """Show `title` and how many of `total` units are done while the block runs.

    Standard error carries it, so that standard output stays a program's result. Call `advance` from one thread at a
    time.
    """
    if not sys.stderr.isatty():
        yield _Lines(title, total)
        return
    from rich import progress as rich
    from rich.console import Console

    columns = (
        rich.TextColumn("{task.description}", markup=False),
        rich.BarColumn(bar_width=30),
        rich.MofNCompleteColumn(),
        rich.TimeElapsedColumn(),
        rich.TimeRemainingColumn(),
        rich.TextColumn("{task.fields[note]}", markup=False),
    )
    with rich.Progress(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task(title, total=total, note="")

        class _Bar:
            def advance(self, n: int = 1, note: str = "") -> None:
                bars.advance(task, n)
                if note:
                    bars.update(task, note=note)

        yield _Bar()
