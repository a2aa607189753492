"""Row work with a stage's settings: what every stage that goes image by image says to Ray Data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pmm_ray.cluster.rows import failures, map_rows
from pmm_ray.cluster.worker import Row, Worker
from pmm_ray.stages.stage import Context


@dataclass(frozen=True)
class Actors:
    """How many actors at most (None: as many as fit), and what each takes."""

    workers: int | None
    cpus: float
    gpus: float


def work_on(
    rows: Sequence[Row],
    make_worker: Callable[[], Worker],
    *,
    facts: pa.Schema,
    context: Context,
    actors: Actors | None = None,
    at_least: int = 1,
    key: Callable[[Row], Any] | None = None,
) -> tuple[pa.Table, list[list[str]]]:
    """Every row's result, in the rows' order, and [name, why] of those that failed; see `cluster.rows.map_rows`.

    Args:
        rows: JSON-able, each with a unique `name`.
        make_worker: called once in each actor.
        facts: columns of the results besides name, status and error.
        context: of the stage; its folder takes the journal.
        actors: None: one CPU each, `cluster.mask_workers` at most.
        at_least: rows handed out at once even where `cluster.batch_size` is less: for rows that take little time.
        key: rows are handed out sorted by this.

    Raises:
        UserError: every row failed.
    """
    cluster = context.cluster
    actors = actors or Actors(cluster.mask_workers, 1, 0)
    table = map_rows(
        make_worker,
        rows,
        facts=facts,
        folder=context.out,
        workers=actors.workers,
        cpus=actors.cpus,
        gpus=actors.gpus,
        batch_size=max(at_least, cluster.batch_size),
        attempts=cluster.attempts,
        title=context.title,
        key=key,
    )
    return table, failures(table, title=context.title)
