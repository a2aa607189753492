"""Result tables: one kind of table, written for the terminal, as Markdown, as CSV and as records.

mIoU comes in as a share in [0, 1] and is shown in percent. Several values in a cell are one figure per seed, shown as
mean ± sample standard deviation (n - 1).
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from rich.table import Table as RichTable

PRIMARY = ("val + CRF", "val", "train masks")
"""By which metric cycles are compared: the first of these that is there."""
PUS_ACTIVE = "PUS active"
"""Column with the share of steps on which PUS acted."""
FREQUENT = " (frequent)"
"""Ends the name of a column with the mean over classes that many images have."""
_ABSENT = "-"

Value = str | float | None | tuple[float, ...]
Kind = Literal["text", "percent", "points"]


class Score(Protocol):
    """One measured row for one seed: `values` maps a metric to a share in [0, 1]. `pmm_ray.method.Score` is one."""

    @property
    def row(self) -> str:
        """The method's name."""

    @property
    def seed(self) -> int:
        """Seed of the run."""

    @property
    def values(self) -> Mapping[str, float]:
        """Metric -> share in [0, 1]."""

    @property
    def variant(self) -> str:
        """Tells apart settings of one row, of which a table shows the best."""

    @property
    def cycle(self) -> int | None:
        """Number of the cycle, if the row is one."""


@dataclass(frozen=True)
class Column:
    """A column: 'text' as it is, 'percent' a share times 100, 'points' a signed difference of shares times 100."""

    name: str
    kind: Kind = "percent"


@dataclass(frozen=True)
class Table:
    """Rows of one value per column; `note` stands below the table."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Value, ...], ...]
    note: str = ""

    def cells(self) -> list[list[str]]:
        """The rows as texts."""
        return [[shown(value, col.kind) for value, col in zip(row, self.columns, strict=True)] for row in self.rows]

    def rich(self) -> RichTable:
        """For `rich.print` on a terminal."""
        from rich.markup import escape
        from rich.table import Table as RichTable

        table = RichTable(title=escape(self.title), caption=escape(self.note) or None, title_justify="left")
        for column in self.columns:
            table.add_column(escape(column.name), justify="left" if column.kind == "text" else "right")
        for row in self.cells():
            table.add_row(*map(escape, row))
        return table

    def markdown(self) -> str:
        """As GitHub shows it: columns padded, the title bold above, the note below."""
        lines = [[column.name for column in self.columns], *self.cells()]
        lines = [[cell.replace("|", "\\|") for cell in line] for line in lines]
        widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(self.columns))]
        marks = [
            "-" * width if column.kind == "text" else "-" * (width - 1) + ":"
            for column, width in zip(self.columns, widths, strict=True)
        ]
        padded = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in lines]
        body = "\n".join(f"| {' | '.join(line)} |" for line in (padded[0], marks, *padded[1:]))
        return "\n\n".join(part for part in (self.title and f"**{self.title}**", body, self.note) if part) + "\n"

    def csv(self) -> str:
        """Numbers in percent with all their digits; see `records` for the columns."""
        records = self.records()
        names = list(dict.fromkeys(name for record in records for name in record))
        sheet = io.StringIO()
        writer = csv.DictWriter(sheet, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
        return sheet.getvalue()

    def records(self) -> list[dict[str, str | float | None]]:
        """A dictionary per row, numbers in percent; a cell of several seeds gives its mean and a column '<name> sd'."""
        return [
            {
                name: value
                for cell, column in zip(row, self.columns, strict=True)
                for name, value in _record(cell, column).items()
            }
            for row in self.rows
        ]


def shown(value: Value, kind: Kind = "percent") -> str:
    """A cell's text: '36.81', '36.7 ± 0.7', '+1.20', or a dash where there is nothing."""
    if isinstance(value, str):
        return value
    if kind == "text":
        return _ABSENT if value is None else str(value)
    mean, spread = _mean_sd(value)
    if mean is None:
        return _ABSENT
    sign = "+" if kind == "points" else ""
    return f"{100 * mean:{sign}.2f}" if spread is None else f"{100 * mean:{sign}.1f} ± {100 * spread:.1f}"


def cycle_table(scores: Iterable[Score], *, title: str = "Comparison of cycles", note: str = "") -> Table:
    """A row per cycle: every metric, the share of steps on which PUS acted, and the change to the cycle before.

    Rows without a cycle (the CAM) stand above, under their own names. The change is that of the first metric of
    `PRIMARY` that a cycle has; with several seeds it is taken within each seed.
    """
    grouped = _grouped(scores)
    metrics = _metrics(grouped)
    primary = next((m for m in PRIMARY if any(s.cycle is not None and m in s.values for s in _flat(grouped))), None)
    by_cycle = {row[0].cycle: row for row in grouped.values() if row[0].cycle is not None}
    rows = []
    for name, members in grouped.items():
        cycle = members[0].cycle
        before = by_cycle.get(cycle - 1, []) if cycle is not None else []
        change = _change(before, members, primary) if primary else None
        rows.append((name, *(_over_seeds(members, metric) for metric in metrics), change))
    columns = (Column("", "text"), *map(Column, metrics))
    if primary is None:
        return Table(title, columns, tuple(row[:-1] for row in rows), note)
    return Table(title, (*columns, Column(f"change of {primary}", "points")), tuple(rows), note)


def ablation_table(scores: Iterable[Score], *, title: str = "Ablation", note: str = "") -> Table:
    """A row per method with mean ± sd over the seeds of every metric.

    Of a row's variants (settings of alpha, say) the one with the best mean of the row's first metric is shown; it was
    chosen on ground truth, and the row says so.
    """
    grouped = _best_variants(scores)
    metrics = _metrics(grouped)
    rows = tuple((name, *(_over_seeds(members, m) for m in metrics)) for name, members in grouped.items())
    return Table(title, (Column("", "text"), *map(Column, metrics)), rows, note)


def seeds_table(scores: Iterable[Score], *, title: str = "Each seed", note: str = "") -> Table:
    """A row per method and metric: what was measured, mean ± sd, and the figure of each seed."""
    grouped = _best_variants(scores)
    seeds = sorted({score.seed for score in _flat(grouped)})
    rows: list[tuple[Value, ...]] = []
    for name, members in grouped.items():
        of_seed = {score.seed: score.values for score in members}
        for metric in _metrics({name: members}):
            single = (of_seed.get(seed, {}).get(metric) for seed in seeds)
            rows.append((name, metric, _over_seeds(members, metric), *single))
    columns = (Column("", "text"), Column("measured on", "text"), Column("mean ± sd"))
    return Table(title, (*columns, *(Column(f"seed {seed}") for seed in seeds)), tuple(rows), note)


def _grouped(scores: Iterable[Score]) -> dict[str, list[Score]]:
    """Scores by row name (and variant, where a row has one), in order of appearance."""
    found: dict[str, list[Score]] = {}
    for score in scores:
        found.setdefault(f"{score.row}, {score.variant}" if score.variant else score.row, []).append(score)
    return found


def _best_variants(scores: Iterable[Score]) -> dict[str, list[Score]]:
    rows: dict[str, dict[str, list[Score]]] = {}
    for score in scores:
        rows.setdefault(score.row, {}).setdefault(score.variant, []).append(score)
    found = {}
    for row, variants in rows.items():
        best = max(variants, key=lambda variant: _mean_of_first_metric(variants[variant]))
        name = f"{row}, {best}" if best else row
        found[f"{name} (best of {len(variants)})" if len(variants) > 1 else name] = variants[best]
    return found


def _mean_of_first_metric(members: Sequence[Score]) -> float:
    metric = next(iter(members[0].values), None)
    mean, _ = _mean_sd(_over_seeds(members, metric)) if metric else (None, None)
    return -math.inf if mean is None else mean


def _metrics(grouped: Mapping[str, Sequence[Score]]) -> list[str]:
    """Metrics in order of appearance, the share of PUS last; without a mean over frequent classes that says no more."""
    scores = _flat(grouped)
    names = list(dict.fromkeys(name for score in scores for name in score.values))
    names.sort(key=lambda name: name == PUS_ACTIVE)
    return [name for name in names if not name.endswith(FREQUENT) or _differs(scores, name)]


def _differs(scores: Iterable[Score], frequent: str) -> bool:
    plain = frequent.removesuffix(FREQUENT)
    return any(_finite(s.values.get(frequent)) != _finite(s.values.get(plain)) for s in scores if frequent in s.values)


def _flat(grouped: Mapping[str, Sequence[Score]]) -> list[Score]:
    return [score for members in grouped.values() for score in members]


def _over_seeds(members: Iterable[Score], metric: str) -> tuple[float, ...] | None:
    found = (_finite(score.values.get(metric)) for score in members)
    return tuple(value for value in found if value is not None) or None


def _change(before: Sequence[Score], now: Sequence[Score], metric: str) -> Value:
    """Differences of one metric between rows, of the seeds that both have."""
    earlier = {score.seed: _finite(score.values.get(metric)) for score in before}
    pairs = ((earlier.get(score.seed), _finite(score.values.get(metric))) for score in now)
    return tuple(new - old for old, new in pairs if old is not None and new is not None) or None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _mean_sd(value: float | tuple[float, ...] | None) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation; None for what does not exist (no value, one value)."""
    values = value if isinstance(value, tuple) else () if value is None else (value,)
    values = tuple(v for v in values if math.isfinite(v))
    return (fmean(values) if values else None), (stdev(values) if len(values) > 1 else None)


def _record(value: Value, column: Column) -> dict[str, str | float | None]:
    name = column.name or "row"
    if isinstance(value, str) or column.kind == "text":
        return {name: value if isinstance(value, str) or value is None else str(value)}
    mean, spread = _mean_sd(value)
    record: dict[str, str | float | None] = {name: None if mean is None else round(100 * mean, 6)}
    return record if spread is None else record | {f"{name} sd": round(100 * spread, 6)}
