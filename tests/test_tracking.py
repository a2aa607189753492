"""What MLflow holds after runs. One database for all tests here (making one takes seconds), an experiment for each."""

from __future__ import annotations

import json
import logging
import math
import multiprocessing
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from pmm_ray.errors import UserError
from pmm_ray.files import write_atomic
from pmm_ray.places import place
from pmm_ray.tracking import RunLog, Tracker, open_tracker


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def tracker(store: Path, request: pytest.FixtureRequest) -> Tracker:
    return open_tracker(enabled=True, uri=None, experiment=request.node.name, store=store)


@pytest.fixture
def client(tracker: Tracker):
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracker.uri)


def runs(client, tracker: Tracker) -> dict:
    found = client.search_runs([tracker.experiment_id])
    assert len({run.info.run_name for run in found}) == len(found)
    return {run.info.run_name: run for run in found}


def files(client, run_id: str, folder: str = "") -> set[str]:
    return {item.path for item in client.list_artifacts(run_id, folder)}


def test_the_default_database_and_its_artefacts_lie_in_the_store(tracker, client, store):
    assert tracker.uri == f"sqlite:///{store}/mlflow.db" and (store / "mlflow.db").is_file()
    location = client.get_experiment(tracker.experiment_id).artifact_location
    assert location == (store / "mlflow-artifacts").as_uri()


def test_cycles_nest_in_the_recipe_and_stages_in_cycles(tracker, client):
    config = {"masks": {"s": 0.3, "crf": {"preset": "ppg"}}}
    with (
        tracker.run("pmm", tags={"recipe": "pmm", "seed": 0}, params=config) as top,
        top.child("cycle 0", tags={"cycle": 0}) as cycle,
        cycle.child("train", tags={"stage": "train_seg"}) as stage,
    ):
        pass
    found = runs(client, tracker)
    assert found["cycle 0"].data.tags["mlflow.parentRunId"] == top.run_id
    assert found["train"].data.tags["mlflow.parentRunId"] == cycle.run_id
    assert found["train"].info.run_id == stage.run_id
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert found["pmm"].data.params == {"masks.s": "0.3", "masks.crf.preset": "ppg"}
    tags = found["train"].data.tags
    assert (tags["recipe"], tags["seed"], tags["cycle"], tags["stage"]) == ("pmm", "0", "0", "train_seg")
    assert found["pmm"].data.tags["stage"] == "recipe" and found["pmm"].data.tags["commit"] == tags["commit"]


def test_an_error_fails_its_run_and_those_around_it_and_an_interrupt_kills(tracker, client):
    with pytest.raises(ValueError), tracker.run("top") as top:
        with top.child("fine"):
            pass
        with top.child("broken"):
            raise ValueError("mask of another size")
    with pytest.raises(KeyboardInterrupt), tracker.run("stopped"):
        raise KeyboardInterrupt
    found = runs(client, tracker)
    assert {name: run.info.status for name, run in found.items()} == {
        "top": "FAILED",
        "fine": "FINISHED",
        "broken": "FAILED",
        "stopped": "KILLED",
    }
    assert found["broken"].data.tags["error"] == "ValueError: mask of another size"


def test_the_same_config_reopens_its_run_and_another_makes_its_own(tracker, client):
    with pytest.raises(ValueError), tracker.run("a", params={"x": 1}, resume_key="k1") as first:
        raise ValueError
    with tracker.run("a", params={"x": 1, "y": 2}, resume_key="k1") as again, again.child("s", key="f1") as stage:
        assert client.get_run(again.run_id).info.status == "RUNNING"
    with tracker.run("a", params={"x": 1}, resume_key="k1") as third, third.child("s", key="f1") as same:
        pass
    with tracker.run("b", resume_key="k2") as other, other.child("s of b", key="f1") as elsewhere:
        pass
    assert first.run_id == again.run_id == third.run_id != other.run_id
    assert stage.run_id == same.run_id != elsewhere.run_id
    run = client.get_run(first.run_id)
    assert run.info.status == "FINISHED" and "error" not in run.data.tags and run.data.params == {"x": "1", "y": "2"}


_KILLED = """
import os, sys
from pathlib import Path
from pmm_ray.tracking import open_tracker
tracker = open_tracker(enabled=True, uri=None, experiment=sys.argv[2], store=Path(sys.argv[1]))
with (
    tracker.run("pmm", resume_key="k") as top,
    top.child("cycle", key="c") as cycle,
    cycle.child("train", key="f") as run,
):
    run.metrics({"loss": 1.0}, step=1)
    os.kill(os.getpid(), 9)
"""


def test_a_run_ended_by_sigkill_goes_on_in_the_same_runs(tracker, client, store, request):
    ended = subprocess.run([sys.executable, "-c", _KILLED, store, request.node.name], timeout=60)
    assert ended.returncode == -9
    before = {name: run.info.run_id for name, run in runs(client, tracker).items()}
    assert set(before) == {"pmm", "cycle", "train"}
    with (
        tracker.run("pmm", resume_key="k") as top,
        top.child("cycle", key="c") as cycle,
        cycle.child("train", key="f") as run,
    ):
        run.metrics({"loss": 0.5}, step=2)
    assert {name: run.info.run_id for name, run in runs(client, tracker).items()} == before
    assert [(m.step, m.value) for m in client.get_metric_history(run.run_id, "loss")] == [(1, 1.0), (2, 0.5)]


def test_nested_runs_that_a_kill_left_open_end_with_the_recipe(tracker, client):
    with tracker.run("pmm", resume_key="k") as top, top.child("cycle", key="c") as cycle:
        pass
    client.update_run(cycle.run_id, status="RUNNING")
    with tracker.run("pmm", resume_key="k"):
        pass
    assert client.get_run(cycle.run_id).info.status == "FINISHED"


def _work(log: RunLog, worker: int, picture: Path) -> None:
    for epoch in range(5):
        log.metrics({f"loss {worker}": 1 / (epoch + 1)}, step=epoch)
    log.picture(picture, f"overlays/worker{worker}.png")


def test_two_processes_write_to_one_run_at_once_through_a_pickled_log(tracker, client, tmp_path):
    picture = tmp_path / "x.png"
    Image.new("RGB", (4, 4)).save(picture)
    with tracker.run("top") as top:
        log = pickle.loads(pickle.dumps(top.log))
        other = multiprocessing.get_context("spawn").Process(target=_work, args=(log, 1, picture))
        other.start()
        _work(log, 0, picture)
        other.join(60)
    for worker in range(2):
        assert len(client.get_metric_history(top.run_id, f"loss {worker}")) == 5
    assert files(client, top.run_id, "overlays") == {"overlays/worker0.png", "overlays/worker1.png"}


def test_only_finite_figures_are_kept_and_odd_names_are_made_legal(tracker, client):
    values = {"a": math.nan, "b": math.inf, "c": None, "iou/dog (big)": 0.5, "iou//../cat": 1, "/": 2.0}
    with tracker.run("top") as top:
        top.metrics(values, step=3)
        top.metrics({})
    assert client.get_run(top.run_id).data.metrics == {"iou/dog _big_": 0.5, "iou/cat": 1.0, "_": 2.0}


def test_many_and_long_params_all_arrive_the_long_ones_cut(tracker, client):
    params = {f"p{i}": i for i in range(250)} | {"long": "x" * 10_000, "names": ["é"] * 5000, "none": None, "empty": ""}
    with tracker.run("top", params=params, tags={"text": "y" * 10_000}) as top:
        pass
    kept = client.get_run(top.run_id).data
    assert len(kept.params) == 254 and kept.params["p249"] == "249" and kept.params["none"] == "null"
    assert len(kept.params["long"]) == 6000 and "10000 characters" in kept.params["long"]
    assert len(kept.tags["text"]) == 5000


def test_a_table_is_shown_by_mlflow_and_replaced_by_its_next_version(tracker, client):
    with tracker.run("top") as top:
        top.table("cycles", [{"cycle": 9, "mIoU": 0.0}])
        top.table("cycles", [{"cycle": 0, "mIoU": 40.1}, {"cycle": 1, "mIoU": math.nan, "note": "é"}])
    table = json.loads(Path(client.download_artifacts(top.run_id, "tables/cycles.json")).read_text())
    assert table == {"columns": ["cycle", "mIoU", "note"], "data": [[0, 40.1, None], [1, None, "é"]]}
    sheet = Path(client.download_artifacts(top.run_id, "tables/cycles.csv")).read_text(encoding="utf-8")
    assert sheet == "cycle,mIoU,note\n0,40.1,\n1,,é\n"
    entries = json.loads(client.get_run(top.run_id).data.tags["mlflow.loggedArtifacts"])
    assert entries == [{"path": "tables/cycles.json", "type": "table"}]
    assert files(client, top.run_id, "tables") == {"tables/cycles.json", "tables/cycles.csv"}


def test_files_and_folders_are_copied_in(tracker, client, tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "a.txt").write_text("a")
    with tracker.run("top") as top:
        top.artifact(tmp_path / "set" / "a.txt")
        top.artifact(tmp_path / "set", "sets")
        top.tag("location", tmp_path)
    assert files(client, top.run_id) == {"a.txt", "sets"} and files(client, top.run_id, "sets") == {"sets/a.txt"}
    assert client.get_run(top.run_id).data.tags["location"] == str(tmp_path)


def test_pictures_and_files_in_object_storage_are_copied_in(tracker, client, bucket):
    write_atomic(bucket / "a.png", b"picture")
    with tracker.run("r") as run:
        run.picture(bucket / "a.png", "overlays/a.png")
        run.picture(bucket / "a.png", "overlays/b.png")
        run.artifact(bucket / "a.png", "tables")
    assert files(client, run.run_id, "overlays") == {"overlays/a.png", "overlays/b.png"}
    assert files(client, run.run_id, "tables") == {"tables/a.png"}


def test_a_store_that_cannot_hold_the_database_asks_for_one(tmp_path):
    store = place("s3://bucket/runs")
    with pytest.raises(UserError, match=r"tracking\.uri: .*s3://bucket/runs.*tracking\.enabled=false"):
        open_tracker(enabled=True, uri=None, experiment="x", store=store)
    uri = f"sqlite:///{tmp_path}/m.db"
    assert open_tracker(enabled=True, uri=uri, experiment="x", store=store).uri == uri


def test_a_panel_is_recorded_once_for_each_name_also_when_its_run_is_opened_again(tracker, client, tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png")
    for _ in range(2):
        with tracker.run("top", resume_key="k") as top:
            top.panel(tmp_path / "x.png", "masks/a/ß (1)")
            top.panel(tmp_path / "x.png", "masks/a")
    names = [name.removeprefix("images/").split("+")[:3] for name in files(client, top.run_id, "images")]
    # each as it is and as a small copy
    assert sorted(names) == 2 * [["masks~a", "step", "0"]] + 2 * [["masks~a~_ _1_", "step", "0"]]


def test_a_recipes_run_is_described_by_a_link_to_its_results_and_a_persons_words_stand(tracker, client):
    for _ in range(2):
        with tracker.run("top", resume_key="k") as top, top.child("cycle 0", tags={"stage": "cycle"}) as cycle:
            pass
        found = client.get_run(top.run_id).data.tags["mlflow.note.content"]
        assert found == "mine" or (f"experiments/{tracker.experiment_id}/runs?" in found and top.run_id in found)
        client.set_tag(top.run_id, "mlflow.note.content", "mine")
    assert found == "mine"
    assert "mlflow.note.content" not in client.get_run(cycle.run_id).data.tags


def test_a_failure_to_record_is_warned_of_once_and_does_not_stop_the_work(tmp_path, caplog):
    log = RunLog(f"sqlite:///{tmp_path}/gone/mlflow.db", "0" * 32)
    with caplog.at_level(logging.WARNING):
        log.metrics({"loss": 1.0})
        log.metrics({"loss": 1.0})
        log.picture(tmp_path / "absent.png", "absent.png")
    assert len(caplog.records) == 1 and "the work goes on" in caplog.text
    assert not (tmp_path / "gone" / "mlflow.db").exists()


def test_a_disabled_tracker_takes_every_call_without_importing_mlflow(tmp_path):
    program = f"""
import sys
from pathlib import Path
from pmm_ray.tracking import open_tracker
tracker = open_tracker(enabled=False, uri=None, experiment="x", store=Path({str(tmp_path)!r}))
with tracker.run("a", tags={{"a": 1}}, params={{"b": 2}}, resume_key="k") as run, run.child("b", key="c") as child:
    child.metrics({{"x": 1}}, 2); child.log.metrics({{"x": 1}}); child.log.picture(Path("x"), "x"); child.tag("a", 1)
    child.table("t", [{{"a": 1}}]); child.artifact(Path("absent")); child.picture(Path("absent"), "y")
assert "mlflow" not in sys.modules and not list(Path({str(tmp_path)!r}).iterdir())
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("./mlruns", "does not record in a folder"),
        ("file:///tmp/mlruns", "does not record in a folder"),
        ("sqlite://", "names no file"),
        ("sqlite:///:memory:", "names no file"),
        ("bogus://place", "cannot use"),
        ("sqlite:////dev/null/x/m.db", "cannot use sqlite:////dev/null/x/m.db .*Not a directory"),
        ("sqlite:////proc/m.db", "cannot use sqlite:////proc/m.db .*No such file"),
        ("http://127.0.0.1:9", "start the server"),
    ],
)
def test_an_unusable_address_is_one_line_with_the_mend(uri, says, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(UserError, match=says) as error:
        open_tracker(enabled=True, uri=uri, experiment="x", store=tmp_path)
    assert str(error.value).startswith("tracking.uri") and "\n" not in str(error.value)


def test_a_password_is_not_shown():
    from pmm_ray.tracking import _shown

    assert _shown("postgresql://me:secret@host:5/db") == "postgresql://me:***@host:5/db"


def test_a_relative_database_is_made_absolute(store, monkeypatch):
    monkeypatch.chdir(store.parent)
    uri = f"sqlite:///{store.name}/mlflow.db"
    tracker = open_tracker(enabled=True, uri=uri, experiment="relative", store=Path("x"))
    assert tracker.uri == f"sqlite:///{store}/mlflow.db"


def test_a_deleted_experiment_is_said_so(tracker, client, store, request):
    client.delete_experiment(tracker.experiment_id)
    with pytest.raises(UserError, match="deleted"):
        open_tracker(enabled=True, uri=None, experiment=request.node.name, store=store)
