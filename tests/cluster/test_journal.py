"""What is known of rows survives whatever ends their writer."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pmm_ray.cluster.journal import Attempts, Journal, row_schema, write_table
from pmm_ray.files import readable

FACTS = pa.schema([("value", pa.int64())])


def rows(**values):
    status = {name: "failed" if value is None else "ok" for name, value in values.items()}
    listed = [{"name": name, "status": status[name], "value": value} for name, value in values.items()]
    return pa.Table.from_pylist(listed, schema=row_schema(FACTS))


def test_the_newest_word_on_a_row_counts_and_the_order_is_the_callers(anywhere):
    Journal(anywhere, FACTS).append([rows(a=None), rows(b=2, c=3)])
    journal = Journal(anywhere, FACTS)
    journal.append([rows(a=1)])
    table = journal.finish(["c", "a", "b"])
    assert table["value"].to_pylist() == [3, 1, 2]
    assert table["status"].to_pylist() == ["ok"] * 3
    assert pq.read_table(readable(anywhere / "rows.parquet")).equals(table)
    assert not (anywhere / "journal").exists()


def test_a_finished_table_is_the_start_of_a_later_journal(anywhere):
    journal = Journal(anywhere, FACTS)
    journal.append([rows(a=None, b=2)])
    journal.finish(["a", "b"])
    later = Journal(anywhere, FACTS)
    later.append([rows(a=1)])
    assert later.finish(["a", "b"])["value"].to_pylist() == [1, 2]


def test_parts_that_cannot_be_read_or_have_other_columns_are_as_if_not_there(anywhere):
    journal = Journal(anywhere, FACTS)
    journal.append([rows(a=1)])
    (anywhere / "journal" / "part-000007.parquet").write_bytes(b"half a file")
    write_table(pa.table({"name": ["a"], "status": ["ok"]}), anywhere / "journal" / "part-000008.parquet")
    later = Journal(anywhere, FACTS)
    assert later.read()["name"].to_pylist() == ["a"]
    later.append([rows(b=2)])
    assert len(list((anywhere / "journal").glob("part-000009-*.parquet"))) == 1


def test_a_row_nobody_reported_is_an_error_not_a_gap(anywhere):
    journal = Journal(anywhere, FACTS)
    journal.append([rows(a=1)])
    with pytest.raises(RuntimeError, match="1 rows were never reported, the first is 'b'"):
        journal.finish(["a", "b"])


def test_rows_that_are_not_kept_are_forgotten_wherever_they_stood(anywhere):
    journal = Journal(anywhere, FACTS)
    journal.append([rows(a=1, b=2)])
    journal.finish(["a", "b"])
    later = Journal(anywhere, FACTS)
    later.append([rows(b=3, c=4)])
    later.keep(["a", "c", "never seen"])
    assert Journal(anywhere, FACTS).read()["name"].to_pylist() == ["a", "c"]
    later.append([rows(b=5)])
    assert later.finish(["a", "b", "c"])["value"].to_pylist() == [1, 5, 4]


def test_rows_that_are_not_asked_for_this_time_stay_in_the_file(anywhere):
    journal = Journal(anywhere, FACTS)
    journal.append([rows(a=1, b=2)])
    assert journal.finish(["b"])["name"].to_pylist() == ["b"]
    assert Journal(anywhere, FACTS).read()["value"].to_pylist() == [2, 1]


def test_two_drivers_at_once_lose_nothing_of_each_other(anywhere):
    one, two = Journal(anywhere, FACTS), Journal(anywhere, FACTS)
    one.append([rows(a=1)])
    two.append([rows(b=2)])
    assert sorted(Journal(anywhere, FACTS).read()["name"].to_pylist()) == ["a", "b"]
    one.append([rows(b=2)])
    one.finish(["a", "b"])
    # The parts of the second are gone with those of the first, which had the same rows.
    two.append([rows(a=1)])
    assert two.finish(["a", "b"])["value"].to_pylist() == [1, 2]
    assert not (anywhere / "journal").exists()


def test_attempts_count_what_was_begun_and_not_ended(anywhere):
    attempts = Attempts(anywhere)
    attempts.clear()
    assert attempts.count(["a"]) == 0
    attempts.begin(["a"])
    Attempts(anywhere).begin(["a"])
    assert attempts.count(["a"]) == 2
    assert attempts.count(["a", "b"]) == 0
    attempts.end(["a"])
    assert attempts.count(["a"]) == 0
    attempts.begin(["b"])
    attempts.clear()
    assert attempts.count(["b"]) == 0
