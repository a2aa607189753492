"""What is known of rows survives whatever ends their writer."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pmm_ray.cluster.journal import Attempts, Journal, row_schema

FACTS = pa.schema([("value", pa.int64())])


def rows(**values):
    status = {name: "failed" if value is None else "ok" for name, value in values.items()}
    listed = [{"name": name, "status": status[name], "value": value} for name, value in values.items()]
    return pa.Table.from_pylist(listed, schema=row_schema(FACTS))


def test_the_newest_word_on_a_row_counts_and_the_order_is_the_callers(tmp_path):
    Journal(tmp_path, FACTS).append([rows(a=None), rows(b=2, c=3)])
    journal = Journal(tmp_path, FACTS)
    journal.append([rows(a=1)])
    table = journal.finish(["c", "a", "b"])
    assert table["value"].to_pylist() == [3, 1, 2]
    assert table["status"].to_pylist() == ["ok"] * 3
    assert pq.read_table(tmp_path / "rows.parquet").equals(table)
    assert not (tmp_path / "journal").exists()


def test_a_finished_table_is_the_start_of_a_later_journal(tmp_path):
    journal = Journal(tmp_path, FACTS)
    journal.append([rows(a=None, b=2)])
    journal.finish(["a", "b"])
    later = Journal(tmp_path, FACTS)
    later.append([rows(a=1)])
    assert later.finish(["a", "b"])["value"].to_pylist() == [1, 2]


def test_parts_that_cannot_be_read_or_have_other_columns_are_as_if_not_there(tmp_path):
    journal = Journal(tmp_path, FACTS)
    journal.append([rows(a=1)])
    (tmp_path / "journal" / "part-000007.parquet").write_bytes(b"half a file")
    pq.write_table(pa.table({"name": ["a"], "status": ["ok"]}), tmp_path / "journal" / "part-000008.parquet")
    later = Journal(tmp_path, FACTS)
    assert later.read()["name"].to_pylist() == ["a"]
    later.append([rows(b=2)])
    assert len(list((tmp_path / "journal").glob("part-000009-*.parquet"))) == 1


def test_a_row_nobody_reported_is_an_error_not_a_gap(tmp_path):
    journal = Journal(tmp_path, FACTS)
    journal.append([rows(a=1)])
    with pytest.raises(RuntimeError, match="1 rows were never reported, the first is 'b'"):
        journal.finish(["a", "b"])


def test_rows_no_longer_asked_for_are_dropped(tmp_path):
    journal = Journal(tmp_path, FACTS)
    journal.append([rows(a=1, b=2)])
    assert journal.finish(["b"])["name"].to_pylist() == ["b"]


def test_attempts_count_what_was_begun_and_not_ended(tmp_path):
    attempts = Attempts(tmp_path)
    attempts.clear()
    assert attempts.count(["a"]) == 0
    attempts.begin(["a"])
    Attempts(tmp_path).begin(["a"])
    assert attempts.count(["a"]) == 2
    assert attempts.count(["a", "b"]) == 0
    attempts.end(["a"])
    assert attempts.count(["a"]) == 0
    attempts.begin(["b"])
    attempts.clear()
    assert attempts.count(["b"]) == 0
