"""One row in, one row out, over Ray Data actors: nothing done twice, no row lost, no row that stops the others.

The rows are small (paths and numbers); actors read and write the files, in a place that all nodes reach. Three things
go wrong in practice, and each ends in the table instead of ending the run. A row that raises is reported 'failed'. A
worker that is killed, alone or with its node, is restarted and its rows come again. A row that ends its worker every
time is set aside after some attempts. The driver may be killed too: what it had been told is in the journal.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from pmm_ray.cluster.journal import FAILED, OK, Attempts, Journal
from pmm_ray.cluster.session import data_context, nodes, worker_slots
from pmm_ray.cluster.worker import Row, RowActor, Worker, verdict, verdict_file
from pmm_ray.errors import UserError
from pmm_ray.progress import Progress, progress

_FLUSH_SECONDS = 1.0


def map_rows(
    make_worker: Callable[[], Worker],
    rows: Sequence[Row],
    *,
    facts: pa.Schema,
    folder: Path,
    workers: int | None,
    cpus: float,
    gpus: float,
    batch_size: int,
    attempts: int,
    title: str,
    key: Callable[[Row], Any] | None = None,
) -> pa.Table:
    """Work on `rows` in actors and return one result for each, in their order; also kept as `<folder>/rows.parquet`.

    Rows that an interrupted run finished are not done again; failed ones are tried once more.

    Args:
        make_worker: called once in each actor; must pickle (functools.partial of a class or function).
        rows: JSON-able, each with a unique `name`.
        facts: columns of the results besides name, status and error, so that the table's schema never varies.
        folder: the stage's folder, which every node must reach; it holds the journal while work goes on.
        workers: most actors; None: as many as the cluster can hold; 0: work in this process, without Ray.
        cpus: CPUs that each actor takes.
        gpus: GPUs that each actor takes.
        batch_size: rows that an actor is handed at once. Parts of the journal are no finer.
        attempts: how often a row may end its worker before it is set aside.
        title: name of the progress bar.
        key: rows are handed out sorted by this, so that a batch holds alike ones.

    Raises:
        UserError: the cluster is too small for one actor, or the worker cannot be built and says why.
    """
    names = [row["name"] for row in rows]
    if len(set(names)) != len(names):
        raise ValueError("rows need unique names")
    journal = Journal(folder, facts)
    todo = _not_done(journal, rows)
    if todo:
        Attempts(folder).clear()
        todo.sort(key=key or (lambda row: 0))
        batches = _batches(todo, batch_size)
        constructor = (folder.resolve(), facts, attempts)
        if workers == 0:
            blocks = _here(RowActor(make_worker, *constructor), batches, folder)
        else:
            actors = _actors(workers, cpus, gpus, len(batches))
            dataset = _dataset(make_worker, batches, constructor=constructor, actors=actors, cpus=cpus, gpus=gpus)
            blocks = _blocks(dataset, folder)
        with progress(title, len(rows)) as bar:
            bar.advance(len(rows) - len(todo))
            _collect(blocks, journal, bar)
    return journal.finish(names)


def _not_done(journal: Journal, rows: Sequence[Row]) -> list[Row]:
    known = journal.read()
    status = dict(zip(known["name"].to_pylist(), known["status"].to_pylist(), strict=True))
    return [row for row in rows if status.get(row["name"]) != OK]


def _actors(workers: int | None, cpus: float, gpus: float, batches: int) -> int:
    room = worker_slots(cpus=cpus, gpus=gpus)
    if not room:
        have = ", ".join(f"{node.cpus:g} and {node.gpus:g}" for node in nodes())
        raise UserError(
            f"one worker needs {cpus:g} CPUs and {gpus:g} GPUs but Ray's nodes have {have}; "
            "set cluster.gpu=no, lower the worker's share, or join a larger cluster"
        )
    return max(1, min(room, batches, workers or batches))


def _batches(rows: Sequence[Row], size: int) -> list[dict[str, str]]:
    """An item is a whole batch and a block of its own: the unit of work, of retry and of what the driver hears of."""
    return [{"rows": json.dumps(rows[start : start + size])} for start in range(0, len(rows), size)]


def _here(actor: RowActor, batches: Sequence[dict[str, str]], folder: Path) -> Iterator[pa.Table]:
    """The results, worked out in this process. What ends it is told as of an actor."""
    try:
        for batch in batches:
            yield actor(pa.Table.from_pylist([batch]))
    except OSError as error:
        raise UserError(verdict(error, folder)) from error


def _dataset(
    make_worker: Callable[[], Worker],
    batches: list[dict[str, str]],
    *,
    constructor: tuple[Path, pa.Schema, int],
    actors: int,
    cpus: float,
    gpus: float,
) -> Any:
    import ray.data

    data_context()
    return ray.data.from_items(batches, override_num_blocks=len(batches)).map_batches(
        RowActor,
        fn_constructor_args=(make_worker, *constructor),
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors, initial_size=actors),
        num_cpus=cpus,
        num_gpus=gpus or None,
    )


def _blocks(dataset: Any, folder: Path) -> Iterator[pa.Table]:
    """The results as they arrive. An error that was meant for the user comes out as one."""
    from ray.data.exceptions import ExecutionTimeoutError
    from ray.exceptions import RayError

    try:
        yield from dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    except ExecutionTimeoutError as error:
        raise UserError(
            "no image was finished for half an hour: the nodes that could work are lost or others hold them (see "
            "`ray status`); the same command goes on where this one stopped"
        ) from error
    except RayError as error:
        if verdict_file(folder).exists():
            raise UserError(verdict_file(folder).read_text()) from error
        # A worker that cannot use the storage cannot leave word there either.
        if told := re.findall(r"^\S*StorageError: (.+)", str(error), re.MULTILINE):
            raise UserError(f"a worker says: {told[-1]}") from error
        raise


def _collect(blocks: Iterator[pa.Table], journal: Journal, bar: Progress) -> None:
    """Write results to the journal, soon after they arrive but not one file for each fast little block."""
    waiting: list[pa.Table] = []
    failures, flushed = 0, 0.0
    try:
        for block in blocks:
            waiting.append(block)
            failures += block["status"].to_pylist().count(FAILED)
            if time.monotonic() - flushed >= _FLUSH_SECONDS:
                journal.append(waiting)
                waiting, flushed = [], time.monotonic()
            bar.advance(block.num_rows, note=f"{failures} failed" if failures else "")
    finally:
        if waiting:
            journal.append(waiting)


def failures(table: pa.Table, *, title: str) -> list[list[str]]:
    """[name, error] of the failed rows, for a stage's facts.

    Raises:
        UserError: every row failed, so that there is nothing for later stages to work on.
    """
    rows = table.select(["name", "status", "error"]).to_pylist()
    found = [[row["name"], row["error"]] for row in rows if row["status"] == FAILED]
    if found and len(found) == table.num_rows:
        raise UserError(f"{title}: all {len(found)} images failed; the first: {found[0][0]}: {found[0][1]}")
    return found
