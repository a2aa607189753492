"""Rows over actors: what fails, dies or is killed ends in the table, and nothing is done twice."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pmm_ray.cluster.journal import Attempts, row_schema
from pmm_ray.cluster.rows import failures, map_rows
from pmm_ray.cluster.worker import RowActor, failed, one_by_one, succeeded, verdict_file
from pmm_ray.errors import UserError
from pmm_ray.places import StorageError

FACTS = pa.schema([("square", pa.int64()), ("divisors", pa.list_(pa.int32()))])


def rows_of(count):
    return [{"name": f"image{k}", "k": k} for k in range(count)]


def run(make_worker, rows, folder, *, batch_size=4, attempts=2, workers=None, **more):
    return map_rows(
        make_worker,
        rows,
        facts=FACTS,
        folder=folder,
        workers=workers,
        cpus=1,
        gpus=0,
        batch_size=batch_size,
        attempts=attempts,
        title="squares",
        **more,
    )


def square(row, *, log, bad=(), ends=(), ends_once=()):
    """The square of k, told to `log`; some rows raise, some end their worker, some only the first time."""
    k = row["k"]
    with Path(log).open("a") as file:
        file.write(f"{row['name']}\n")
    if k in bad:
        raise ValueError(f"{row['name']}.jpg:\nno   image")
    if k in ends:
        os._exit(1)
    if k in ends_once and not Path(f"{log}.ended{k}").exists():
        Path(f"{log}.ended{k}").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return {"square": k * k, "divisors": [d for d in range(1, k + 1) if k % d == 0]}


def squares(log, **what):
    return partial(one_by_one, partial(square, log=str(log), **what))


def done(log):
    return log.read_text().split()


# Without Ray: the actor's own logic.


FULL = "/data/masks: No space left on device; make room and run the same command again"


def disk_is_full(row):
    raise OSError(errno.ENOSPC, "No space left on device", "/data/masks")


def batch(rows):
    return pa.table({"rows": [json.dumps(rows)]})


def actor(make_worker, folder, attempts=3):
    Attempts(folder).clear()
    return RowActor(make_worker, folder, FACTS, attempts)


def test_a_row_that_raises_is_reported_on_one_line_beside_the_others(tmp_path):
    table = actor(squares(tmp_path / "log", bad=[1]), tmp_path)(batch(rows_of(3)))
    assert table["status"].to_pylist() == ["ok", "failed", "ok"]
    assert table["error"].to_pylist() == [None, "image1.jpg: no image", None]
    assert table["square"].to_pylist() == [0, None, 4]


def test_a_batch_worker_that_raises_is_tried_row_by_row(tmp_path):
    def make():
        def work(rows):
            if any(row["k"] == 2 for row in rows):
                raise KeyError("two")
            return [succeeded(row, {"square": row["k"] ** 2}) for row in rows]

        return work

    table = actor(make, tmp_path)(batch(rows_of(4)))
    assert table["square"].to_pylist() == [0, 1, None, 9]
    assert table["error"].to_pylist()[2] == "KeyError: 'two'"


def test_a_batch_that_was_begun_but_never_ended_is_tried_row_by_row(tmp_path):
    seen = []

    def make():
        def work(rows):
            seen.append([row["k"] for row in rows])
            return [succeeded(row, {}) for row in rows]

        return work

    act = actor(make, tmp_path)
    Attempts(tmp_path).begin(["image0", "image1"])
    act(batch(rows_of(2)))
    act(batch(rows_of(3)))
    assert seen == [[0], [1], [0, 1, 2]]


def test_a_row_with_enough_attempts_is_set_aside_untried(tmp_path, anywhere):
    act = actor(squares(tmp_path / "log"), anywhere, attempts=2)
    for names in (["image0", "image1"], ["image1"], ["image1"]):
        Attempts(anywhere).begin(names)
    table = act(batch(rows_of(2)))
    assert table["status"].to_pylist() == ["ok", "failed"]
    assert "ended its worker 2 times" in table["error"].to_pylist()[1]
    assert done(tmp_path / "log") == ["image0"]


def test_a_worker_that_drops_a_row_is_no_success(tmp_path):
    table = actor(lambda: lambda rows: [succeeded(row, {}) for row in rows[1:]], tmp_path)(batch(rows_of(2)))
    assert table["status"].to_pylist() == ["failed", "failed"]


def test_a_full_disk_is_no_rows_fault(tmp_path):
    with pytest.raises(OSError, match="No space"):
        failed({"name": "a"}, OSError(errno.ENOSPC, "No space left on device"))
    assert failed({"name": "a"}, OSError(errno.ENOENT, "No such file"))["status"] == "failed"


def test_a_silent_store_is_no_rows_fault_and_the_driver_hears_why(anywhere):
    def read(row):
        raise StorageError("s3://bucket: no answer")

    with pytest.raises(StorageError, match="no answer"):
        actor(partial(one_by_one, read), anywhere)(batch(rows_of(3)))
    assert verdict_file(anywhere).read_text() == "s3://bucket: no answer"


def test_odd_names_in_an_error_stay_writable():
    error = failed({"name": "a"}, ValueError("b\udc80.jpg"))["error"]
    assert pa.array([error]).to_pylist() == ["b?.jpg"]


def test_a_stage_whose_rows_all_failed_stops_with_the_first_reason():
    table = pa.table({"name": ["a", "b"], "status": ["failed", "failed"], "error": ["broken", "too"]})
    with pytest.raises(UserError, match="masks: all 2 images failed; the first: a: broken"):
        failures(table, title="masks")
    ok = pa.table({"name": ["a", "b"], "status": ["ok", "failed"], "error": [None, "too"]})
    assert failures(ok, title="masks") == [["b", "too"]]
    # however many: a stage counts by them what it made
    assert len(failures(pa.concat_tables([ok] * 3000), title="masks")) == 3000


def test_no_rows_give_an_empty_table_of_the_full_schema(tmp_path):
    table = run(squares(tmp_path / "log"), [], tmp_path)
    assert table.schema == row_schema(FACTS)
    assert table.num_rows == 0
    assert pq.read_table(tmp_path / "rows.parquet").schema == row_schema(FACTS)


def test_names_must_differ(tmp_path):
    with pytest.raises(ValueError, match="unique"):
        run(squares(tmp_path / "log"), rows_of(1) * 2, tmp_path)


@pytest.mark.parametrize("heard", [True, False])
def test_a_full_disk_ends_work_in_this_process_with_the_line_that_actors_leave(tmp_path, monkeypatch, heard):
    if not heard:  # nor is there room for that line
        monkeypatch.setattr("pmm_ray.cluster.worker.write_atomic", lambda path, text: disk_is_full({}))
    with pytest.raises(UserError, match=rf"^{FULL}$"):
        run(partial(one_by_one, disk_is_full), rows_of(2), tmp_path, workers=0)


# With Ray.


@pytest.fixture
def cluster(ray_session):
    """Ray whose workers are sent this module's functions themselves: they cannot import it."""
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    ray.cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.mark.ray
def test_results_come_in_input_order_and_a_second_run_redoes_only_what_failed(tmp_path, cluster):
    log, rows = tmp_path / "log", rows_of(11)
    table = run(squares(log, bad=[3]), rows, tmp_path, key=lambda row: -row["k"])
    assert table["name"].to_pylist() == [row["name"] for row in rows]
    assert table["square"].to_pylist() == [k * k if k != 3 else None for k in range(11)]
    assert table["divisors"].to_pylist()[6] == [1, 2, 3, 6]
    assert pq.read_table(tmp_path / "rows.parquet").equals(table)
    assert not (tmp_path / "journal").exists()
    assert sorted(done(log)) == sorted(row["name"] for row in rows)

    again = run(squares(log), rows, tmp_path)
    assert again["square"].to_pylist() == [k * k for k in range(11)]
    assert done(log)[11:] == ["image3"]


@pytest.mark.ray
def test_what_ends_its_worker_is_tried_again_then_set_aside_and_the_others_finish(tmp_path, cluster):
    log = tmp_path / "log"
    table = run(squares(log, ends=[5], ends_once=[2]), rows_of(12), tmp_path)
    assert [k for k, status in enumerate(table["status"].to_pylist()) if status != "ok"] == [5]
    assert "ended its worker 2 times" in table["error"].to_pylist()[5]
    assert table["square"].to_pylist()[2] == 4
    # Once with its batch, twice alone.
    assert done(log).count("image5") == 3


def cannot_be_built():
    raise UserError("model.pt: no such model")


@pytest.mark.ray
def test_what_no_row_is_to_blame_for_ends_the_stage_with_one_line(tmp_path, cluster):
    with pytest.raises(UserError, match=r"^model\.pt: no such model$"):
        run(cannot_be_built, rows_of(2), tmp_path)
    with pytest.raises(UserError, match=rf"^{FULL}$"):
        run(partial(one_by_one, disk_is_full), rows_of(2), tmp_path)


@pytest.mark.ray
def test_an_actor_larger_than_the_cluster_is_refused_at_once(tmp_path, cluster):
    with pytest.raises(UserError, match="needs 64 CPUs"):
        map_rows(
            squares(tmp_path / "log"),
            rows_of(1),
            facts=FACTS,
            folder=tmp_path,
            workers=1,
            cpus=64,
            gpus=0,
            batch_size=1,
            attempts=1,
            title="too large",
        )


SLOW = 0.15


def slow_square(row, *, folder):
    """Write `<name>.txt` whole, and how often that was done."""
    from pmm_ray.files import write_atomic

    time.sleep(SLOW)
    with (folder / "log").open("a") as file:
        file.write(f"{row['name']}\n")
    write_atomic(folder / f"{row['name']}.txt", str(row["k"] ** 2))
    return {"square": row["k"] ** 2}


DRIVER = """
import sys
from functools import partial
from pathlib import Path
import ray
sys.path[:0] = [{tests!r}]
import test_rows
from test_rows import rows_of, run, slow_square
from pmm_ray.cluster.session import session
from pmm_ray.cluster.worker import one_by_one
from pmm_ray.config import ClusterConfig
ray.cloudpickle.register_pickle_by_value(test_rows)
with session(ClusterConfig(num_cpus=2)):
    folder = Path({folder!r})
    run(partial(one_by_one, partial(slow_square, folder=folder)), rows_of({count}), folder, batch_size=2)
"""


@pytest.mark.ray
def test_a_driver_killed_in_the_middle_goes_on_where_it_stopped(tmp_path, cluster, request):
    count = 60
    script = DRIVER.format(tests=str(Path(__file__).parent), folder=str(tmp_path), count=count)
    # Killed, it cannot tidy up Ray's folder; short, for the sockets in it.
    scratch = tempfile.mkdtemp(prefix="k", dir="/tmp")
    request.addfinalizer(lambda: shutil.rmtree(scratch, ignore_errors=True))
    driver = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "TMPDIR": scratch},
    )
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("journal/part-*.parquet"))) < 2 and driver.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert driver.poll() is None, driver.stdout.read().decode()
    driver.kill()
    driver.wait()
    driver.stdout.close()
    parts = [pq.read_table(part) for part in tmp_path.glob("journal/part-*.parquet")]
    reported = [name for part in parts for name in part["name"].to_pylist()]
    assert 0 < len(reported) < count
    assert not (tmp_path / "rows.parquet").exists()
    time.sleep(3 * SLOW)  # what its actors still had in hand
    before = len(done(tmp_path / "log"))

    table = run(partial(one_by_one, partial(slow_square, folder=tmp_path)), rows_of(count), tmp_path, batch_size=16)
    assert table["square"].to_pylist() == [k * k for k in range(count)]
    written = {file.name: file.read_text() for file in tmp_path.glob("*.txt")}
    assert written == {f"image{k}.txt": str(k * k) for k in range(count)}
    assert sorted(done(tmp_path / "log")[before:]) == sorted({f"image{k}" for k in range(count)} - set(reported))
    assert list(tmp_path.glob(".*.tmp")) == []


@pytest.mark.ray
def test_workers_without_credentials_say_so_in_one_line(cluster, bucket, tmp_path):
    # Only this process has them: the cluster's were started before.
    with pytest.raises(UserError, match=r"a worker says: s3://.*Unable to locate credentials.*AWS_ACCESS_KEY_ID") as e:
        run(squares(tmp_path / "log"), rows_of(4), bucket / "out")
    assert "\n" not in str(e.value)
