"""What is known of each row of a stage: Parquet parts while it runs, one Parquet file when it is over."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Collection, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pmm_ray.files import atomic_path, make_folder, readable, remove_tree, write_atomic

OK, FAILED = "ok", "failed"
ROWS_FILE = "rows.parquet"
JOURNAL_FOLDER = "journal"
_BASE = (("name", pa.string()), ("status", pa.string()), ("error", pa.string()))


def row_schema(facts: pa.Schema) -> pa.Schema:
    """Columns of every row table: name, status ('ok' or 'failed'), error (one line or null), then the stage's facts."""
    return pa.schema([pa.field(name, kind) for name, kind in _BASE] + list(facts))


def write_table(table: pa.Table, path: Path) -> None:
    """Write a Parquet file whole or not at all."""
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary)


class Journal:
    """The results of one stage below `folder`: `journal/part-*.parquet` as they arrive, `rows.parquet` at the end.

    A part is written whole or not at all, so whatever kills the driver costs at most the rows not yet written. Where
    nothing keeps two drivers from the same stage (object storage has no locks), neither overwrites the other's parts.
    """

    def __init__(self, folder: Path, facts: pa.Schema):
        self._folder = folder
        self._parts = folder / JOURNAL_FOLDER
        self._schema = row_schema(facts)
        self._writer = uuid.uuid4().hex[:8]
        self._next = 1 + max((int(part.stem.split("-")[1]) for part in self._parts.glob("part-*.parquet")), default=-1)

    def read(self) -> pa.Table:
        """All rows known so far, newest last; a name may come more than once."""
        parts = [self._read(file) for file in sorted(self._parts.glob("part-*.parquet"))]
        # Read last, though it is the oldest: another driver that drops the parts has written it by then.
        found = [table for table in (self._read(self._folder / ROWS_FILE), *parts) if table is not None]
        return pa.concat_tables(found) if found else self._schema.empty_table()

    def _read(self, file: Path) -> pa.Table | None:
        try:
            table = pq.read_table(readable(file))
        except (FileNotFoundError, pa.ArrowInvalid):
            return None
        # Columns of another version of the program say nothing about this one's.
        return table if table.schema.equals(self._schema) else None

    def append(self, tables: Sequence[pa.Table]) -> None:
        """Write one more part."""
        write_table(pa.concat_tables(tables), self._parts / f"part-{self._next:06d}-{self._writer}.parquet")
        self._next += 1

    def keep(self, names: Collection[str]) -> None:
        """Forget all rows but those of `names`: they will be done again."""
        known = self.read()
        kept = known.filter(pc.is_in(known["name"], value_set=pa.array(list(names), pa.string())))
        if kept.num_rows < known.num_rows:
            write_table(kept, self._folder / ROWS_FILE)
            remove_tree(self._parts)

    def finish(self, names: Sequence[str]) -> pa.Table:
        """Merge to `rows.parquet` and drop the parts. Returns a row for each of `names`, in that order.

        What is known of others, asked for earlier, follows them in the file.
        """
        known = self.read()
        latest = {name: row for row, name in enumerate(known["name"].to_pylist())}
        if missing := [name for name in names if name not in latest]:
            raise RuntimeError(f"{len(missing)} rows were never reported, the first is {missing[0]!r}")
        order = list(dict.fromkeys([*names, *latest]))
        table = known.take(pa.array([latest[name] for name in order], pa.int64())).combine_chunks()
        write_table(table, self._folder / ROWS_FILE)
        remove_tree(self._parts)
        return table.slice(0, len(names))


class Attempts:
    """Counts how often a group of rows was begun and not ended, in files that outlive a killed worker."""

    def __init__(self, folder: Path):
        self._folder = folder / JOURNAL_FOLDER / "attempts"

    def clear(self) -> None:
        """Forget what an earlier run left: its end was not its rows' fault."""
        remove_tree(self._folder)
        make_folder(self._folder)

    def count(self, names: Sequence[str]) -> int:
        """Attempts at exactly this group that never ended."""
        try:
            return len(self._file(names).read_bytes())
        except FileNotFoundError:
            return 0

    def begin(self, names: Sequence[str]) -> None:
        """One more attempt."""
        # Written anew, as object storage cannot append: no two actors work on the same rows at once.
        write_atomic(self._file(names), b"x" * (self.count(names) + 1))

    def end(self, names: Sequence[str]) -> None:
        """The attempt came back, with whatever result."""
        self._file(names).unlink(missing_ok=True)

    def _file(self, names: Sequence[str]) -> Path:
        return self._folder / hashlib.sha256("\0".join(names).encode()).hexdigest()[:24]
