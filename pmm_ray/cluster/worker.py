"""What runs in a Ray Data actor: a worker on rows, guarded so that no row ends more than its own result."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from pmm_ray.cluster.journal import FAILED, JOURNAL_FOLDER, OK, Attempts, row_schema
from pmm_ray.errors import UserError, no_room
from pmm_ray.files import write_atomic
from pmm_ray.places import StorageError

Row = dict[str, Any]


class Worker(Protocol):
    """Lives in an actor, built there once. Gives one result for each row, in order, with the same `name`.

    A result has `name`, `status`, `error` and the facts that the stage's schema names (left out: null). What it says
    is written must be in its place, whole, when it returns.
    """

    def __call__(self, rows: list[Row]) -> list[Row]:
        """Work on `rows`."""
        ...


def succeeded(row: Row, facts: Mapping[str, Any]) -> Row:
    """The result of a row that worked."""
    return {"name": row["name"], "status": OK, "error": None, **facts}


def failed(row: Row, error: BaseException | str) -> Row:
    """The result of a row that did not work, with the reason on one line.

    Raises:
        OSError, StorageError: the disk is full or read-only, object storage does not answer. That is no fault of this
            row and would fail every other one, too.
    """
    _raise_if_hopeless(error)
    return {"name": row["name"], "status": FAILED, "error": one_line(error)}


def _raise_if_hopeless(error: BaseException | str) -> None:
    if isinstance(error, BaseException) and (isinstance(error, StorageError) or no_room(error)):
        raise error


def one_line(error: BaseException | str) -> str:
    """An error as one line; the type is named unless the message was written for people."""
    text = str(error)
    if isinstance(error, BaseException) and not isinstance(error, UserError | ValueError):
        text = f"{type(error).__name__}: {text}"
    # An odd file name in a message must not make the row unwritable.
    return " ".join(text.split()).encode("utf-8", "replace").decode()


def one_by_one(function: Callable[[Row], Mapping[str, Any]]) -> Worker:
    """A worker that gives `function` one row at a time and reports an exception as that row's failure."""

    def work(rows: list[Row]) -> list[Row]:
        results = []
        for row in rows:
            try:
                results.append(succeeded(row, function(row)))
            except Exception as error:
                results.append(failed(row, error))
        return results

    return work


class RowActor:
    """Runs a worker on batches of rows (each one JSON text in a table), guarded by counted attempts."""

    def __init__(self, make_worker: Callable[[], Worker], folder: Path, facts: pa.Schema, attempts: int):
        self._make_worker = make_worker
        self._worker: Worker | None = None
        self._schema = row_schema(facts)
        self._folder = folder
        self._attempts, self._allowed = Attempts(folder), attempts

    def __call__(self, table: pa.Table) -> pa.Table:
        """Results of the batches in column `rows`, with the columns of `row_schema`."""
        try:
            # Built here: an error in an actor's constructor reaches the driver as the actor's death, not as itself.
            self._worker = self._worker or self._make_worker()
            return pa.concat_tables([self._work(json.loads(text)) for text in table["rows"].to_pylist()])
        except (UserError, OSError) as error:
            _write_verdict(self._folder, error)
            raise

    def _work(self, rows: list[Row]) -> pa.Table:
        names = [row["name"] for row in rows]
        if len(rows) > 1 and self._attempts.count(names) == 0:
            results = self._together(rows, names)
        else:
            results = [self._alone(row) for row in rows]
        return pa.Table.from_pylist(results, schema=self._schema)

    def _together(self, rows: list[Row], names: list[str]) -> list[Row]:
        self._attempts.begin(names)
        try:
            results = self._call(rows)
        except Exception as error:
            _raise_if_hopeless(error)
            # Which row is to blame shows when each is tried alone.
            results = [self._alone(row) for row in rows]
        self._attempts.end(names)
        return results

    def _alone(self, row: Row) -> Row:
        name = [row["name"]]
        if self._attempts.count(name) >= self._allowed:
            return failed(
                row,
                f"ended its worker {self._allowed} times and was set aside; replace the image or take it off the list",
            )
        self._attempts.begin(name)
        try:
            result = self._call([row])[0]
        except Exception as error:
            result = failed(row, error)
        self._attempts.end(name)
        return result

    def _call(self, rows: list[Row]) -> list[Row]:
        assert self._worker is not None
        results = self._worker(rows)
        if [result["name"] for result in results] != [row["name"] for row in rows]:
            raise RuntimeError("the worker returned other rows than it was given")
        return results


def verdict(error: Exception, folder: Path) -> str:
    """What ended the work in `folder`, in one line."""
    return no_room(error, folder) or one_line(error)


def _write_verdict(folder: Path, error: Exception) -> None:
    """Leave word of what ended an actor: Ray hands on the traceback's text only."""
    with contextlib.suppress(OSError, StorageError):
        write_atomic(verdict_file(folder), verdict(error, folder))


def verdict_file(folder: Path) -> Path:
    """Where an actor leaves its last word, for the driver to tell the user."""
    return folder / JOURNAL_FOLDER / "attempts" / "verdict"
